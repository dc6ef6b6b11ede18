"""The table of scorers, and how their files are found."""

import hashlib
import json
import shutil

import pytest
import torch
from hyper_sd.errors import RewardError
from hyper_sd.models.catalog import load_catalog
from hyper_sd.rewards import table
from hyper_sd.rewards.scorer import Scorer
from hyper_sd.rewards.table import MY_TASTE, SCORERS, ScorerKind, find_files, load, scorer_kind

EMBEDDED = ["embedded_match", "embedded_quality"]


def test_every_scorer_names_files_of_the_catalogue():
    catalog = load_catalog()
    named = {entry_id for kind in SCORERS.values() for entry_id in kind.files}
    assert named == {entry.id for entry in catalog if entry.is_reward}
    assert list(SCORERS) == ["clip", "aesthetic", "image_reward", "pick_score", "hps", *EMBEDDED, MY_TASTE]


def test_unknown_scorer_names_those_that_there_are():
    with pytest.raises(RewardError, match=f"no score 'beauty'; choose one of {', '.join(SCORERS)}"):
        scorer_kind("beauty")


@pytest.mark.parametrize("scorer_id", sorted(SCORERS.keys() - {*EMBEDDED, MY_TASTE}))
def test_missing_files_are_named_with_the_way_to_have_them(tmp_path, scorer_id):
    with pytest.raises(RewardError) as caught:
        load(scorer_id, tmp_path)
    said, kind = str(caught.value), SCORERS[scorer_id]
    assert said.startswith(f"{kind.title} lacks its files: ")
    assert f"`python install.py download {' '.join(kind.files)}`" in said
    for entry_id in kind.files:
        assert f"{load_catalog().get(entry_id).name} is not there" in said


def test_damaged_file_is_told_and_the_one_that_is_there_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "load_catalog", lambda: _Known(sizes={"reward-bert-tokenizer": 40}))
    (tmp_path / "bert-tokenizer.json").write_text(json.dumps({"model": {"vocab": {"aaaaaaa": 0}}}).ljust(40))
    (tmp_path / "ImageReward.pt").write_bytes(b"cut off")
    with pytest.raises(RewardError, match=r"lacks its files: ImageReward.pt is damaged: it has 7 bytes") as caught:
        load("image_reward", [tmp_path / "none", tmp_path])
    assert "bert" not in str(caught.value)


class _Known:
    """The catalogue with other sizes and hashes.

    Args:
        sizes: by id.
        hashes: by id.
    """

    def __init__(self, sizes, hashes=None):
        self.sizes, self.hashes = sizes, hashes or {}

    def get(self, entry_id):
        from dataclasses import replace

        entry = load_catalog().get(entry_id)
        if entry_id not in self.sizes:
            return entry
        return replace(entry, size=self.sizes[entry_id], sha256=self.hashes.get(entry_id))


def test_scorer_is_loaded_from_several_folders_also_under_another_name(small, tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    ids = SCORERS["hps"].files
    shutil.copy(small.paths["reward-hps-v2-1"], first / "my copy.pt")
    shutil.copy(small.paths["reward-clip-tokenizer"], second / "clip-tokenizer.json")
    sizes = {entry_id: small.paths[entry_id].stat().st_size for entry_id in ids}
    hashes = {entry_id: hashlib.sha256(small.paths[entry_id].read_bytes()).hexdigest() for entry_id in ids}
    monkeypatch.setattr(table, "load_catalog", lambda: _Known(sizes, hashes))
    paths, problems = find_files(ids, (first, second))
    assert not problems
    assert paths["reward-hps-v2-1"].name == "my copy.pt"
    scorer = load("hps", (first, second), "cpu")
    assert isinstance(scorer, Scorer)
    assert scorer.score(torch.rand(1, 3, 20, 30), ["w1"]).shape == (1,)


def test_scorer_without_files_needs_no_folder(tmp_path, monkeypatch):
    made = object()
    own = ScorerKind("own", "Own", table.PICTURE, lambda paths, device: made)
    monkeypatch.setitem(table.SCORERS, "own", own)
    assert load("own", ()) is made
