"""The row of a download as pages read it, and durations in words."""

import json

import pytest
from hyper_sd.models.catalog import load_catalog
from hyper_sd.models.progress import Progress, Row, State, format_duration

ENTRY = load_catalog().get("hyper-sdxl-8steps-lora")
KNOWN = {  # what a page is told of every row, whatever its state
    "id": "hyper-sdxl-8steps-lora",
    "title": ENTRY.title,
    "family": "sdxl",
    "kind": "n-step",
    "method": "Hyper-SD",
    "steps": [8, 8],
    "size": ENTRY.approximate_size,
    "licence": {"title": ENTRY.licence.title, "url": ENTRY.licence.url, "acknowledge": False},
    "page": "https://huggingface.co/ByteDance/Hyper-SD/blob/main/Hyper-SDXL-8steps-lora.safetensors",
    "models": ENTRY.workflow_metadata(),
}
KEYS = [*KNOWN, "state", "bytes_done", "bytes_total", "rate", "eta_seconds", "note", "file", "problem"]


@pytest.mark.parametrize("state", State)
def test_row_in_json_has_the_keys_and_values_that_pages_read(state):
    progress = Progress(state, 120_000_000, 787_000_000, 11e6, 60.6, "a note")
    told = Row(ENTRY, progress, "sub/x.safetensors", "A problem.").to_json()
    assert list(told) == KEYS
    assert told == KNOWN | {
        "state": state.name.lower(), "bytes_done": 120_000_000, "bytes_total": 787_000_000, "rate": 11e6, "eta_seconds": 60.6,
        "note": "a note", "file": "sub/x.safetensors", "problem": "A problem.",
    }  # fmt: skip
    assert type(told["state"]) is str
    assert json.loads(json.dumps(told)) == told


@pytest.mark.parametrize("state", State)
def test_row_of_which_little_is_known_has_every_key_too(state):
    told = Row(ENTRY, Progress(state)).to_json()
    assert list(told) == KEYS
    assert [told[key] for key in KEYS[10:]] == [state.name.lower(), 0, 0, None, None, "", "", ""]


def test_only_downloading_and_verifying_are_busy():
    assert {state for state in State if Row(ENTRY, Progress(state)).is_busy} == {State.DOWNLOADING, State.VERIFYING}


@pytest.mark.parametrize(
    ("done", "total", "percent"), [(0, 0, 0), (5, 0, 0), (1, 3, 33), (299, 300, 99), (3, 3, 100), (4, 3, 100)]
)
def test_percent_is_rounded_down_and_never_above_100(done, total, percent):
    assert Progress(State.DOWNLOADING, done, total).percent == percent


def test_amounts_leave_out_what_is_not_known():
    assert Progress(State.DOWNLOADING, 120_000_000, 269_000_000).amounts() == ["120 MB of 269 MB"]
    known = Progress(State.DOWNLOADING, 120_000_000, 269_000_000, 11e6, 13.6)
    assert known.amounts() == ["120 MB of 269 MB", "11 MB/s", "14 s left"]
    assert Progress(State.DOWNLOADING, 120_000_000).amounts() == ["120 MB"]
    assert Progress(State.DOWNLOADING).amounts() == []
    assert Progress(State.VERIFYING, 9, 9, 3.0, 0.0).amounts() == ["9 B of 9 B", "3 B/s"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.2, "1 s"), (1.4, "1 s"), (59.4, "59 s"),
        (59.6, "1 min"), (60, "1 min"), (61, "1 min 1 s"), (200, "3 min 20 s"), (3599.4, "59 min 59 s"),
        (3599.6, "1 h"), (3600, "1 h"), (3900, "1 h 5 min"), (7169, "1 h 59 min"), (7171, "2 h"), (100_000, "27 h 47 min"),
    ],
)  # fmt: skip
def test_duration_is_told_in_its_two_largest_units(seconds, text):
    assert format_duration(seconds) == text
