"""The recipe of the quality score, for a few steps on pictures of noise, and the samples that it learns the order of."""

from itertools import islice

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="the recipe's classes need diffusers: pip install -e .[recipe]")

from hyper_sd.demo.recipe import scorer_samples, train_scorers
from hyper_sd.demo.recipe.export import load_checkpoint
from hyper_sd.demo.recipe.sample import generate
from hyper_sd.demo.recipe.scorer_data import LEVELS, World
from hyper_sd.demo.recipe.scorer_samples import DRAWING, HELD_OUT, LADDERS, SAMPLINGS, chosen_things, draw_samples
from hyper_sd.demo.recipe.train_scorers import QualityTraining, Training
from hyper_sd.models.embedded import CHECKPOINT
from hyper_sd.rewards.embedded import QUALITY
from hyper_sd.training.data.examples import seeded

THINGS, STEPS = 20, 4


@pytest.fixture(scope="module")
def world():
    """Drawings of noise of 20 things; of the samples each pixel is 10 times the way's number."""
    rng, sampled = np.random.default_rng(0), [thing for thing in range(THINGS) if thing % HELD_OUT]
    images = rng.integers(150, 256, (2 * THINGS, 128, 128, 3), dtype=np.uint8)
    renditions = np.repeat(images[:, None], LEVELS, 1)
    images[:, 0, 0, 0] = list(range(THINGS)) * 2  # which thing it is
    samples = np.zeros((len(sampled), len(SAMPLINGS), 128, 128, 3), dtype=np.uint8)
    samples += 10 * np.arange(len(SAMPLINGS), dtype=np.uint8)[:, None, None, None]
    timesteps = torch.linspace(60, 960, LEVELS).long().expand(2 * THINGS, -1)
    return World(images, np.zeros(0), renditions, timesteps, [0] * 2 * THINGS, samples, sampled)


@pytest.fixture
def trained(world, monkeypatch):
    """Trains to a step, saving at each second one; returns the losses and the weights."""
    monkeypatch.setattr(train_scorers, "SAVE_EVERY", 2)

    def run(checkpoint, until=STEPS):
        torch.manual_seed(0)
        network = QualityTraining(world, 8)
        losses = list(islice(train_scorers._run(network, Training(QUALITY, STEPS, 8, 1e-3), checkpoint, 1), until))
        return losses, {name: tensor.clone() for name, tensor in network.scorer.state_dict().items()}

    return run


def test_resumed_training_equals_an_uninterrupted_one_bit_for_bit(trained, tmp_path):
    losses, whole = trained(tmp_path / "whole.pt")
    trained(tmp_path / "parts.pt", until=3)  # the last checkpoint before is that of step 2
    rest, resumed = trained(tmp_path / "parts.pt")

    assert rest == losses[2:]
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_pairs_are_of_one_ladder_with_the_worse_one_first(world):
    training, seen = QualityTraining(world, 400), set()
    for worse, better in training._pairs(seeded(0, 1)):
        ways = [DRAWING if picture.max() >= 150 else int(picture.max()) // 10 for picture in (worse, better)]
        assert any(tuple(way for way in ladder if way in ways) == tuple(ways) for ladder in LADDERS)
        if ways[1] == DRAWING:
            seen.add(int(better[0, 0, 0]))
    assert seen <= set(world.sampled)
    assert len(seen) > 3


def test_nothing_of_what_is_held_out_is_learnt_from(world):
    held_out = {thing for thing in range(THINGS) if not thing % HELD_OUT}
    assert {number % THINGS for number in QualityTraining(world, 4).known} == set(range(THINGS)) - held_out
    assert not held_out & set(chosen_things(THINGS))
    assert chosen_things(632)[: len(set(chosen_things(632)))] == chosen_things(632)  # none twice


def test_loss_falls_when_the_better_pictures_get_higher_scores(world):
    training = QualityTraining(world, 16)
    torch.nn.init.zeros_(training.scorer.judge.weight)
    equal = training(1, seeded(0, 1))
    training.scorer.rate = lambda images, prompts: 10 * images.mean((1, 2, 3))  # the way's number decides
    assert training(1, seeded(0, 1)) < equal


def test_samples_are_what_each_way_draws_from_the_same_noise(monkeypatch):
    ways = (SAMPLINGS[0], SAMPLINGS[1], SAMPLINGS[8], SAMPLINGS[-1])
    monkeypatch.setattr(scorer_samples, "SAMPLINGS", ways)
    monkeypatch.setattr(scorer_samples, "TOGETHER", 1)
    vae, denoiser = load_checkpoint(CHECKPOINT)
    drawn = draw_samples(vae, denoiser, ["red heart", "fox"])

    assert drawn.shape == (2, len(ways), 128, 128, 3)
    for row, prompt in enumerate(["red heart", "fox"]):
        bare = generate(vae, denoiser, [prompt], steps=2, seed=scorer_samples.FIRST_SEED + row)  # no adapter is left in it
        assert np.array_equal(drawn[row, 1], bare[0].numpy())
    assert all(not np.array_equal(drawn[0, 0], drawn[0, way]) for way in range(1, len(ways)))
