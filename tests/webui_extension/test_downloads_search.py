"""The search of the tab "Hyper-SD models", and its folded part with the other few-step methods, on both gradios."""

import asyncio

from hyper_sd.models.search import MORE
from hyper_sd.tests.webui_extension import fake_gradio
from hyper_sd.tests.webui_extension.downloads_page import built, of


def searched(components, text):
    """Types into the field, and returns (ids of the rows that are shown, labels of the parts that are shown)."""
    (field,) = of(components, "Textbox", label="Search")
    field.value = text
    asyncio.run(fake_gradio.fire(field.events["change"][0]))
    rows = [c for c in of(components, "Row") if c.options.get("elem_id", "").startswith("hyper_sd_model_")]
    shown = [c.options["elem_id"].removeprefix("hyper_sd_model_") for c in rows if c.options.get("visible", True)]
    parts = [c for c in of(components, "Accordion") if c.options.get("elem_id", "").startswith("hyper_sd_part_")]
    return shown, [c.value for c in parts if c.options.get("visible", True)]


def test_search_shows_what_fits_and_the_folded_part_it_lies_in(tab, tmp_path, downloads):
    _, components = built(tab, tmp_path)
    folds = [accordion for accordion in of(components, "Accordion") if accordion.value == MORE]
    assert [fold.options["open"] for fold in folds] == [False, False]
    assert searched(components, "lightning 4") == (["sdxl-lightning-4step-lora"], ["SDXL", MORE])
    assert len(searched(components, "sd15 pcm")[0]) == 8
    shown, parts = searched(components, "")
    assert sorted(shown) == sorted(entry.id for entry in downloads.catalog()[0])
    assert parts == ["SD1.5", MORE, "SDXL", MORE, "SD3", "FLUX.1-dev", "Scores of pictures"]


def test_search_leaves_it_to_the_page_what_is_open(tab, tmp_path):
    _, components = built(tab, tmp_path)
    parts = [c for c in of(components, "Accordion") if c.options.get("elem_id", "").startswith("hyper_sd_part_")]
    before = [part.options["open"] for part in parts]
    for part in parts:
        part.options["open"] = "as the person has it"
    searched(components, "lightning 4")
    searched(components, "")
    assert {part.options["open"] for part in parts} == {"as the person has it"}
    assert before == [True, False, True, False, False, False, False]


def test_words_of_the_search_go_through_the_pages_own_script(tab, tmp_path):
    _, components = built(tab, tmp_path)
    (field,) = of(components, "Textbox", label="Search")
    (event,) = field.events["change"]
    import gradio

    assert "hyperSDSearch" in event.options["_js" if gradio.__version__.startswith("3.") else "js"]
    assert event.inputs == [field]


def test_chinese_words_find_the_rows(tab, tmp_path):
    _, components = built(tab, tmp_path)
    assert searched(components, "小CFG 4步 SDXL")[0] == ["pcm-sdxl-smallcfg-4step-lora"]


def test_search_that_finds_nothing_says_so(tab, tmp_path):
    _, components = built(tab, tmp_path)
    (nothing,) = [text for text in of(components, "Markdown") if text.value.startswith("Nothing found")]
    assert searched(components, "zebra") == ([], [])
    assert nothing.options["visible"] is True
    searched(components, "tcd")
    assert nothing.options["visible"] is False
