"""The benchmark of the demo model's scorers, on pictures of one grey each."""

import json

import numpy as np
import pytest
import torch
from hyper_sd.benchmarks import demo_scorers
from hyper_sd.rewards.scorer import Scorer
from hyper_sd.tests.conftest import ROOT

LABELS = ["red apple", "bee"]


class Brightness(Scorer):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(10.0), requires_grad=False)

    def rate(self, images, prompts):
        return self.factor * images.mean((1, 2, 3))


def grey(*values):
    return np.stack([np.full((128, 128, 3), value, dtype=np.uint8) for value in values])


@pytest.fixture
def measured(monkeypatch):
    """Means and shares of two ways, two things and two seeds."""
    monkeypatch.setattr(demo_scorers, "TOLD_APART", {"many": ("few",), "drawings": ("many",)})
    painted = {"few": [grey(51, 51), grey(51, 102)], "many": [grey(102, 0), grey(102, 255)]}
    means, shares = demo_scorers.scores_of_ladder(painted, grey(255, 153, 255, 255), LABELS, {"brightness": Brightness()})
    return {title: found["brightness"] for title, found in means.items()}, shares["brightness"]


def test_mean_scores_are_over_things_and_then_seeds(measured):
    means, _ = measured
    assert means["few"] == pytest.approx({"mean": 2.5, "deviation": 0.5**0.5})
    assert means["drawings"] == pytest.approx({"mean": 9.0, "deviation": 0.0})


def test_shares_compare_pictures_of_one_thing_and_seed(measured):
    _, shares = measured
    assert shares["many above few"] == pytest.approx({"mean": 0.75, "deviation": 0.5 * 0.5**0.5})
    assert shares["drawings above many"]["mean"] == pytest.approx(0.75)


def test_kept_result_says_that_the_quality_score_knows_the_order():
    result = json.loads((ROOT / "benchmarks" / "results" / "demo_scorers.json").read_text(encoding="utf-8"))
    means = {title: found["embedded_quality"]["mean"] for title, found in result["mean_scores"].items()}
    base = [means[f"base, {steps} steps"] for steps in (1, 2, 4, 8, 25)]
    assert base == sorted(base)
    assert means["drawings"] == max(means.values())
    assert result["told_apart"]["embedded_quality"]["base, 25 steps above base, 1 steps"]["mean"] >= 0.9
