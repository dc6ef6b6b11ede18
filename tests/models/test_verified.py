"""What the hub said of a file that was fetched: kept, used to know the file under any name, and never believed blindly."""

import functools
import json
import logging
from dataclasses import replace

import pytest
from hyper_sd.models import download as client
from hyper_sd.models.catalog import load_catalog
from hyper_sd.models.download import open_hub_file
from hyper_sd.models.file_plan import plan_for_file
from hyper_sd.models.files import UNVERIFIED
from hyper_sd.models.jobs import Downloads, user_catalog
from hyper_sd.models.progress import State
from hyper_sd.models.recognition import recognise
from hyper_sd.models.verified import NAME, remember, with_verified
from hyper_sd.tests.models.synthetic_loras import Form, tensors, write_tensors

ENTRY = next(entry for entry in load_catalog() if entry.id == "lcm-lora-sdv1-5")
HASH = "a" * 64


@pytest.fixture
def running(world, tmp_path):
    """The downloads of a host whose hub has a file for an entry without a hash."""
    made = write_tensors(tmp_path / "made.safetensors", tensors("sd15", 1, Form("kohya")))
    raw = {"id": "mine", "title": "Mine", "family": "sd15", "kind": "other", "steps": 4, "recipe": "lcm"}
    raw |= {"repo": world.entry.repo, "file": "few.safetensors", "licence": "unknown"}
    world.hub.add(raw["repo"], raw["file"], made.read_bytes())
    path = user_catalog(tmp_path)
    path.parent.mkdir()
    path.write_text(json.dumps({"entries": [raw]}), encoding="utf-8")
    opener = functools.partial(open_hub_file, endpoint=world.hub.endpoint)
    return Downloads(lambda kind: [tmp_path / "models" / kind], path, opener=opener)


def fetch(running):
    running.start("mine")
    *_, row = running.follow("mine", pause=0.05)
    assert row.state is State.READY, row.problem
    return row


def test_file_that_the_hub_itself_named_is_known_by_its_content(running, world, tmp_path, monkeypatch, transfer):
    monkeypatch.setattr(client, "HUB", world.hub.endpoint)
    row = fetch(running)
    assert row.progress.note == ""
    path = (tmp_path / "models" / "loras" / "few.safetensors").rename(tmp_path / "any name.safetensors")
    known = recognise(path, running.catalog()[0])
    assert (known.evidence, known.entry.id, known.recipe.name) == ("content", "mine", "lcm")
    found = plan_for_file("sd15", 4, "auto", known)
    assert found.source != "a guess"
    assert found.reason.startswith("This is few.safetensors. Mine: LCM-like")
    assert recognise(path, load_catalog()).variant is None


def test_what_a_mirror_said_is_not_kept(running, tmp_path, transfer):
    assert fetch(running).progress.note == UNVERIFIED
    assert not (tmp_path / "hyper_sd" / NAME).exists()
    assert recognise(tmp_path / "models" / "loras" / "few.safetensors", running.catalog()[0]).evidence == "name"


def test_newer_file_of_the_hub_can_be_fetched(running, world, tmp_path, monkeypatch, transfer):
    monkeypatch.setattr(client, "HUB", world.hub.endpoint)
    fetch(running)
    first = running.catalog()[0].get("mine").sha256
    (tmp_path / "models" / "loras" / "few.safetensors").unlink()
    newer = write_tensors(tmp_path / "newer.safetensors", tensors("sd15", 2, Form("kohya")))
    world.hub.add(world.entry.repo, "few.safetensors", newer.read_bytes())
    fetch(running)
    assert running.catalog()[0].get("mine").sha256 not in (first, None)


def entry_with(told, tmp_path):
    path = tmp_path / NAME
    path.write_text(told if isinstance(told, str) else json.dumps({ENTRY.id: told}), encoding="utf-8")
    return with_verified(load_catalog(), path).get(ENTRY.id)


WHOLE = {"repo": ENTRY.repo, "file": ENTRY.file, "size": 7, "sha256": HASH}


def test_record_is_used_for_the_same_file_alone(tmp_path):
    assert ENTRY.sha256 is None
    assert entry_with(WHOLE, tmp_path) == replace(ENTRY, size=7, sha256=HASH)
    for wrong in (
        {"repo": "a/b"},
        {"file": "c"},
        {"size": "7"},
        {"size": 0},
        {"size": True},
        {"sha256": HASH[1:]},
        {"sha256": 1},
    ):
        assert entry_with(WHOLE | wrong, tmp_path) == ENTRY, wrong
    hashed = next(entry for entry in load_catalog() if entry.sha256)
    remember(tmp_path / NAME, hashed, 7, HASH)
    assert with_verified(load_catalog(), tmp_path / NAME).get(hashed.id) == hashed


@pytest.mark.parametrize("told", ["", "x", "[]", "null", "[" * 100_000, '"text"', '{"lcm-lora-sdv1-5": []}', "\udcff"])
def test_damaged_record_is_no_record(tmp_path, told, caplog):
    caplog.set_level(logging.WARNING)
    path = tmp_path / NAME
    path.write_bytes(told.encode("utf-8", "surrogateescape"))
    assert with_verified(load_catalog(), path) == load_catalog()
    assert ("cannot be read" in caplog.text) == (told in ("", "x", "[" * 100_000, "\udcff"))
    remember(path, ENTRY, 7, HASH)
    assert with_verified(load_catalog(), path).get(ENTRY.id).sha256 == HASH


def test_record_that_cannot_be_written_is_said_and_costs_nothing(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    (tmp_path / "taken").write_text("")
    remember(tmp_path / "taken" / NAME, ENTRY, 7, HASH)
    assert f"{ENTRY.name} will be known by its name alone" in caplog.text
