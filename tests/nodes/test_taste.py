"""The node that learns a taste, on the pinned host with the features that come with the pack."""

import random
from pathlib import Path

import pytest
import torch
from hyper_sd.errors import EvaluationError, HyperSDError, RewardError
from hyper_sd.evaluation import collected
from hyper_sd.evaluation.comparison import load_key
from hyper_sd.evaluation.vote_file import Ballot, Vote, save_ballot
from hyper_sd.rewards.personal import FILE, read_about
from PIL import Image

COUNT = 30


@pytest.fixture
def node(pack, monkeypatch, tmp_path):
    """The node, with folders of the test's own."""
    import importlib

    import folder_paths

    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path / "user"))
    for name in ("taste", "score", "training.judge"):
        module = importlib.import_module(f"hyper_sd.nodes.{name}")
        monkeypatch.setattr(module, "model_folders", lambda kind: [tmp_path / "rewards"])
    return pack["HyperSDLearnTaste"]


def collect(tmp_path: Path) -> Path:
    """Returns the folder of thirty collected pairs of plain colours."""
    draw = random.Random(0)
    colours = [[Image.new("RGB", (32, 32), tuple(draw.randrange(256) for _ in range(3))) for _ in range(COUNT)] for _ in "ab"]
    folder = collected.folder_of(tmp_path / "user" / "hyper_sd" / "comparisons", "red")
    collected.add_pairs(folder, [("a", colours[0]), ("b", colours[1])], [f"thing {n}" for n in range(COUNT)], draw)
    return folder


def vote_for_red(folder: Path) -> None:
    """Votes on every pair, for the redder picture."""
    comparison, votes = load_key(folder), []
    for number, pair in enumerate(comparison.pairs):
        left, right = (Image.open(comparison.pictures[key].path).getpixel((0, 0))[0] for key in (pair.left, pair.right))
        votes.append(Vote(number, "left" if left > right else "right", 1.0))
    save_ballot(Ballot(comparison.id, "0" * 8, tuple(votes)), folder / collected.BALLOT)


def test_votes_become_the_score_my_taste_that_sorts_a_batch(node, pack, tmp_path):
    folder = collect(tmp_path)
    before = node.fingerprint_inputs()
    vote_for_red(folder)
    assert node.fingerprint_inputs(comparison=None) != before
    text, scorer = node.execute("red").args
    assert scorer == "my_taste"
    assert f"Learnt from {COUNT} votes on {COUNT} pairs" in text
    assert str(tmp_path / "rewards" / FILE) in text
    assert read_about(tmp_path / "rewards" / FILE).votes == COUNT
    score = pack["HyperSDScore"]
    images = torch.tensor([[0.1, 0.3, 0.3], [0.9, 0.3, 0.3]]).view(2, 1, 1, 3).expand(2, 32, 32, 3)
    ordered, _, said, _ = score.execute(images, "", scorer, 0).args
    assert ordered.equal(images[[1, 0]])
    assert "knows small drawings alone" in said
    known, train = score.fingerprint_inputs(scorer=scorer), pack["HyperSDTrainLora"]
    known_to_train = train.fingerprint_inputs(start_from=["none"], reward=[scorer], name=["taste"], latents=[{}])
    assert "is kept as my_taste.safetensors.bak" in node.execute("red").args[0]
    assert score.fingerprint_inputs(scorer=scorer) != known
    assert score.fingerprint_inputs(scorer="clip") == ""
    assert train.fingerprint_inputs(start_from=["none"], reward=[scorer]) != known_to_train
    assert train.fingerprint_inputs(start_from=["none"], reward=["clip"]) == ""


def test_collection_without_votes_says_so(node, tmp_path):
    collect(tmp_path)
    with pytest.raises(RewardError, match="got 0 votes on 0;"):
        node.execute("red")
    assert not (tmp_path / "rewards").exists()


def test_unknown_collection_and_features_are_refused(node):
    with pytest.raises(EvaluationError, match=r"There is no comparison\.json"):
        node.execute("blue")
    with pytest.raises(HyperSDError, match="features must be one of"):
        node.execute("red", "dino")
