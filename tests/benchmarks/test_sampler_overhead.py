"""What the sampler's benchmark says of a card, with a card that is only asked: this machine may have none."""

from types import SimpleNamespace

import pytest
import torch
from hyper_sd.benchmarks import sampler_overhead
from hyper_sd.benchmarks.sampler_overhead import BUSY, OURS, PEER, ConstantModel, bars_met, footprint, waits
from hyper_sd.samplers.schedule import NoiseSchedule
from hyper_sd.samplers.tcd import sample_tcd
from hyper_sd.samplers.timesteps import hyper_sd_sigmas

SCHEDULE = NoiseSchedule.from_betas()


class Card:
    """Stands in for torch.cuda: keeps the order of what is asked, and runs what it is given when it is waited for."""

    def __init__(self):
        self.asked, self.mode, self.cycles = [], "default", 0

    def set_sync_debug_mode(self, mode):
        self.asked.append(mode)
        self.mode = mode

    def synchronize(self):
        if self.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        self.cycles = 0

    def pageable_copy(self):
        """Waits like synchronize(), which the debug mode does not see."""
        self.cycles = 0

    def _sleep(self, cycles):
        self.cycles += cycles

    def current_stream(self):
        return SimpleNamespace(query=lambda: self.cycles == 0)


@pytest.fixture
def card(monkeypatch):
    stand_in = Card()
    monkeypatch.setattr(sampler_overhead.torch, "cuda", stand_in)
    return stand_in


@pytest.fixture
def model():
    return ConstantModel(SimpleNamespace(sigmas=torch.tensor(SCHEDULE.table)), torch.zeros(1, 4, 16, 16))


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        (lambda card: None, (False, False)),
        (lambda card: card.synchronize(), (True, True)),
        (lambda card: card.pageable_copy(), (False, True)),
    ],
    ids=["free", "synchronises", "copies pageable memory"],
)
def test_waiting_is_told_by_the_mode_and_by_a_busy_card(card, model, inside, expected):
    def sample(loop):
        card.synchronize()  # the plan, before the first step, may wait
        for _ in range(3):
            answer = loop(None, None)
            inside(card)
        return answer

    assert waits(sample, model) == dict(zip(("waits_for_cuda", "waits_for_a_busy_card"), expected, strict=True))
    assert card.asked == ["error", "default"]
    assert card.cycles == 0


def test_other_errors_of_a_sampler_are_not_taken_for_waiting(card, model):
    def sample(loop):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        waits(sample, model)
    assert card.mode == "default"


def test_model_calls_what_it_starts_with_once(model):
    calls = []
    loop = model.starting_with(lambda: calls.append(BUSY))
    assert all(loop(None, None) is model.denoised for _ in range(3))
    assert calls == [BUSY]


def test_footprint_is_that_of_the_loop(model):
    sigmas = hyper_sd_sigmas(SCHEDULE, sampler_overhead.STEPS).float()
    found = footprint(lambda loop: sample_tcd(loop, torch.zeros(1, 4, 16, 16), sigmas, {"seed": 3}, disable=True), model)
    assert found["waiting_operators"] == []
    assert found["allocations_per_step"] == 1.75
    assert found["operators_per_step"] <= 6


@pytest.mark.parametrize(
    ("device", "ratio", "ours", "missed"),
    [
        ("cpu", 1.1, {}, set()),
        ("cpu", 1.11, {}, {"time"}),
        ("cuda", 1.3, {"waits_for_cuda": False, "waits_for_a_busy_card": False}, set()),
        ("cuda", 1.31, {"waits_for_cuda": True}, {"time", "no_waiting"}),
        ("cuda", 1.0, {"waits_for_a_busy_card": True}, {"no_waiting"}),
        ("cuda", 1.0, {"waiting_operators": ["aten::item"]}, {"no_waiting"}),
        ("cuda", 1.0, {"allocations_per_step": 2.0}, {"allocations"}),
    ],
)
def test_bars_that_are_missed_are_named(device, ratio, ours, missed):
    plain = {"allocations_per_step": 1.75, "waiting_operators": []}
    result = {"samplers": {OURS: {**plain, **ours}, PEER: plain}, "ratio_to_lcm": {"median": ratio}}
    assert {name for name, met in bars_met(device, result).items() if not met} == missed
