"""The search of the tab "Hyper-SD models", and its folded part with the other few-step methods, on both gradios."""

import asyncio

from hyper_sd.models.search import MORE
from hyper_sd.tests.webui_extension import fake_gradio
from hyper_sd.tests.webui_extension.downloads_page import built, of


def searched(components, text):
    """Types into the field, and returns (ids of the rows that are shown, labels of the open parts that are shown)."""
    (field,) = of(components, "Textbox", label="Search")
    field.value = text
    asyncio.run(fake_gradio.fire(field.events["change"][0]))
    rows = [c for c in of(components, "Row") if c.options.get("elem_id", "").startswith("hyper_sd_model_")]
    shown = [c.options["elem_id"].removeprefix("hyper_sd_model_") for c in rows if c.options.get("visible", True)]
    parts = [c.value for c in of(components, "Accordion", open=True) if c.options.get("visible", True)]
    return shown, parts


def test_search_shows_what_fits_and_opens_the_folded_part_it_lies_in(tab, tmp_path, downloads):
    _, components = built(tab, tmp_path)
    folds = [accordion for accordion in of(components, "Accordion") if accordion.value == MORE]
    assert [fold.options["open"] for fold in folds] == [False, False]
    assert searched(components, "lightning 4") == (["sdxl-lightning-4step-lora"], ["SDXL", MORE])
    assert len(searched(components, "sd15 pcm")[0]) == 8
    shown, parts = searched(components, "")
    assert sorted(shown) == sorted(entry.id for entry in downloads.catalog()[0])
    assert parts == ["SD1.5", "SDXL"]


def test_search_that_finds_nothing_says_so(tab, tmp_path):
    _, components = built(tab, tmp_path)
    (nothing,) = [text for text in of(components, "Markdown") if text.value.startswith("Nothing found")]
    assert searched(components, "zebra") == ([], [])
    assert nothing.options["visible"] is True
    searched(components, "tcd")
    assert nothing.options["visible"] is False
