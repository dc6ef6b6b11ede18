"""The Chinese of the catalogue: every title has it, with the same numbers and names, and a damaged table is said."""

import re

import pytest
from hyper_sd.models import chinese
from hyper_sd.models.catalog import HEADINGS, load_catalog
from hyper_sd.models.files import UNVERIFIED

CATALOG = load_catalog()
SAID = chinese.translations(CATALOG)


@pytest.mark.parametrize("title", sorted({entry.title for entry in CATALOG}))
def test_title_has_the_same_numbers_in_both_languages(title):
    assert re.findall(r"\d+(?:\.\d+)?", SAID[title]) == re.findall(r"\d+(?:\.\d+)?", title)


@pytest.mark.parametrize("entry", [entry for entry in CATALOG if entry.recipe], ids=lambda entry: entry.id)
def test_title_keeps_the_name_of_the_method(entry):
    assert SAID[entry.title].startswith(entry.method.split(",")[0])


def test_licences_headings_and_notes_are_translated():
    assert {entry.licence.title for entry in CATALOG} < SAID.keys()
    assert SAID["Scores of pictures"] == "图像评分"
    assert UNVERIFIED in SAID
    assert not {HEADINGS["sdxl"], "SDXL"} & SAID.keys()  # the same in both


def test_text_of_a_persons_own_entry_stays_as_it_is():
    assert chinese.in_chinese("My own LoRA") == "My own LoRA"


@pytest.mark.parametrize("content", [None, "{", "\udcff"])
def test_table_that_cannot_be_read_is_said_and_leaves_english(tmp_path, caplog, content):
    path = tmp_path / "zh_CN.json"
    if content:
        path.write_text(content, encoding="utf-8", errors="surrogateescape")
    assert chinese._table.__wrapped__(path) == {}
    assert "have no Chinese" in caplog.text
