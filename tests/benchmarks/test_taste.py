"""The benchmark of a taste from votes: its simulated voter."""

import random

import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("accelerate")
taste = pytest.importorskip("hyper_sd.benchmarks.taste")
from hyper_sd.evaluation.comparison import plan_comparison  # noqa: E402
from hyper_sd.evaluation.votes import preferences, self_agreement  # noqa: E402

COUNT = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two hundred pairs of plain colours, as the benchmark draws pairs."""
    root, draw = tmp_path_factory.mktemp("pairs"), random.Random(0)
    for part, numbers in (("seen", range(COUNT - 20)), ("unseen", range(COUNT - 20, COUNT))):
        for arm in taste.ARMS:
            (root / part / arm).mkdir(parents=True)
            for number in numbers:
                colour = tuple(draw.randrange(256) for _ in range(3))
                Image.new("RGB", (128, 128), colour).save(root / part / arm / f"{number:04}.png")
    return root


def test_redness_is_that_of_the_coloured_pixels_alone():
    picture = torch.ones(1, 3, 20, 20)
    picture[:, :, :10] = torch.tensor([0.9, 0.1, 0.3])[:, None, None]
    assert taste.redness(picture).tolist() == pytest.approx([0.7])
    assert taste.redness(torch.ones(1, 3, 20, 20)).tolist() == [0.0]


def test_voter_answers_alike_in_three_cases_of_four(folder):
    voter = taste.Voter(folder)
    chances = [voter.chance(name) for name in voter.names]
    assert sum(p * p + (1 - p) ** 2 for p in chances) / COUNT == pytest.approx(taste.SAME_AGAIN, abs=1e-3)
    again, lead = [], []
    for seed in range(12):
        comparison = plan_comparison({arm: folder / "seen" / arm for arm in taste.ARMS}, rng=random.Random(seed))
        ballot = voter.ballot(comparison, seed)
        again.append(self_agreement(comparison, ballot))
        for winner, loser, _ in preferences(comparison, [ballot]):
            lead.append(voter.lead[winner.name] * (1 if winner.arm < loser.arm else -1))
    assert sum(one.count for one in again) / sum(one.total for one in again) == pytest.approx(taste.SAME_AGAIN, abs=0.08)
    assert 0.75 < sum(value > 0 for value in lead) / len(lead) < 0.9


def test_judge_who_sees_red_finds_every_redder_one_and_no_more_votes_than_can_be_foreseen(folder):
    voter = taste.Voter(folder)
    found = voter.tried(_Red(), set(voter.names[:50]), seed=0)
    assert (found["pairs"], found["redder"]) == (COUNT - 50, 1.0)
    assert found["votes"] == pytest.approx(found["best"], abs=0.1)


class _Red(torch.nn.Module):
    """A judge that sees redness itself."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def score(self, images, prompts):
        """Returns how red pictures are."""
        return taste.redness(images)
