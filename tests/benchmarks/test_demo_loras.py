"""The benchmark of the embedded model's LoRAs, on a few prompts and with features that cost nothing."""

import numpy as np
import pytest
import torch
from hyper_sd.benchmarks import demo_loras
from hyper_sd.benchmarks.demo_loras import UNIFIED
from hyper_sd.benchmarks.embedded import Painter, Way

LABELS = ["red apple", "bee", "strawberry", "tree", "ghost"]  # every second one is drawn


class FewDrawings:
    labels = LABELS

    def trained_on(self):
        pictures = np.random.default_rng(0).integers(0, 256, (len(LABELS), 128, 128, 3), dtype=np.uint8)
        return pictures, list(range(len(LABELS)))


def small(images):
    """Features [n, 48] of pictures: their colours in a grid of four by four."""
    return torch.nn.functional.avg_pool2d(demo_loras.pixels(images), 32).flatten(1)


@pytest.fixture(scope="module")
def painter():
    pytest.importorskip("diffusers")
    return Painter()


def test_scores_hold_diversity_and_fine_energy_relative_to_25_steps(painter, monkeypatch):
    monkeypatch.setattr(demo_loras, "MANY", Way(2))
    ways = {"base": Way(2), "one": demo_loras.ONE}
    monkeypatch.setattr(demo_loras, "arms", lambda: ways)
    monkeypatch.setattr(demo_loras, "MANY_SEEDS", demo_loras.SEEDS)
    found = demo_loras.measure(painter, FewDrawings(), small)
    assert set(found["teacher_25_steps"]) == {"kid_to_drawings", "retrieval_top1", "diversity", "fine_energy"}
    for scores in found["scores"].values():
        assert set(scores) == {"kid_to_teacher", "kid_to_drawings", "retrieval_top1", "diversity", "fine_energy"}
    base, one = found["scores"].values()
    assert base["diversity"]["mean"] == pytest.approx(1)  # the very pictures that it is compared with
    assert base["fine_energy"]["mean"] == pytest.approx(1)
    assert one["diversity"]["mean"] > 0
    assert one["fine_energy"]["mean"] != pytest.approx(1)


def test_every_lora_is_drawn_and_one_step_in_three_ways():
    arms = demo_loras.arms()
    one = {name: (way.lora, way.start_timestep) for name, way in arms.items() if way.steps == 1 and way.lora}
    assert one == {
        "one-step LoRA from 800": ("one step", 800),
        "unified LoRA, 1 step from 800": ("1", 800),
        "unified LoRA, 1 step from 999": ("1", 999),
    }
    assert {way.lora for way in arms.values()} == {None, "1", "2", "4", "8", "one step"}


def test_painter_draws_one_step_from_the_start_that_is_set(painter):
    ways = [Way(1, UNIFIED, 800), Way(1, UNIFIED, 999), Way(1, None, 800), Way(2, UNIFIED)]
    pictures = [painter.paint(["red apple"], way, 0) for way in ways]
    assert all(picture.shape == (1, 128, 128, 3) for picture in pictures)
    assert not any(np.array_equal(pictures[0], other) for other in pictures[1:])
    told = []
    hook = painter.denoiser.unet.register_forward_pre_hook(lambda net, args: told.append(int(args[1][0])))
    painter.paint(["red apple"], demo_loras.ONE, 0)
    hook.remove()
    assert told == [800]


def test_diversity_is_that_of_every_two_seeds():
    seeds = [torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([[1.0, 0, 0], [0, 0, 0]])]
    root = 3**0.5
    assert demo_loras.diversities(seeds) == pytest.approx([root, 0.5, (2**0.5 + root) / 2])
