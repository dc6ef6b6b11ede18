"""Twenty thousand settings, most of them wrong: each is refused with a ScheduleError before the model is asked, or right.

The model knows the clean latents, so a right run keeps them and ends with noise of exactly the last level: every draw is a
direction of its own, and the length of what is not clean must be the last sigma.
"""

import math
import random

import numpy as np
import pytest
import torch
from hyper_sd.errors import ScheduleError
from hyper_sd.samplers.tcd import sample_tcd
from hyper_sd.samplers.timesteps import hyper_sd_timesteps
from hyper_sd.tests.samplers.fakes import DIFFUSION, ZERO_SNR, flow

RUNS, GRIDS = 12_000, 8_000
CLEAN = 0.25
SCHEDULES = (DIFFUSION, ZERO_SNR, flow(), flow(3.0), flow(1.0, 57))
ODD_LEVELS = (
    0.0, -1.0, -0.0, 1.0, 1 - 1e-7, 1 + 1e-7, 1.5, 14.6, 80.0, 4096.0, 1e6, 7e4, 1e30, 1e160, 1e300, 1e308, math.inf, -math.inf,
    math.nan, 5e-324, 1e-40, 1e-12,
)  # fmt: skip
ODD_NUMBERS = (
    0, 1, 2, 3, 4, 8, 12, 50, 999, 1000, 1001, 10**9, 10**400, -1, -(10**30), True, False, 2.0, 4.5, math.nan, math.inf,
    -math.inf, None, "4", b"4", [4], np.int64(4), np.float32(4), torch.tensor(4), torch.tensor([4, 5]), 1j,
)  # fmt: skip
ETAS = (0, 0.0, 0.3, 0.5, 1, 1.0, -0.1, 1.1, math.nan, math.inf, True, None, "0.3", 1e-300, 1 - 1e-12, [0.3], 1j)
TOLERANCES = {torch.float64: 1e-7, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}


def _levels(rng: random.Random, schedule) -> list[float]:
    levels = [schedule.sigma(rng.uniform(0, 999)) for _ in range(rng.randrange(0, 7))]
    if rng.random() < 0.7:
        levels.sort(reverse=True)
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        place = rng.randrange(len(levels) + 1)
        levels.insert(place, rng.choice(ODD_LEVELS))
    if rng.random() < 0.5:
        levels.sort(key=lambda level: 0 if math.isnan(level) else -level)
    return [*levels, 0.0] if rng.random() < 0.4 else levels


def _run(rng: random.Random) -> str:
    """Returns "refused" or "right", and fails for anything else."""
    schedule, dtype = rng.choice(SCHEDULES), rng.choice(list(TOLERANCES))
    levels, eta = _levels(rng, schedule), rng.choice((*ETAS, *ETAS[:6], *ETAS[:6]))
    num_segments = rng.choice((1, 2, 4) if rng.random() < 0.7 else ODD_NUMBERS)
    sigmas = torch.tensor(levels, dtype=rng.choice((torch.float64, torch.float32)))
    size = len(levels) + 2
    first = float(sigmas[0]) if levels else 1.0
    fits = math.isfinite(first) and abs(first) < torch.finfo(dtype).max / 2
    keep = 1 - first if fits and schedule.is_flow else 1.0
    x = torch.full((1, size), CLEAN * keep, dtype=torch.float64)
    x[0, 0] += first if math.isfinite(first) else 1.0
    drawn, asked = iter(range(1, size)), []

    def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        asked.append(float(sigma))
        return torch.full_like(x, CLEAN)

    def noise(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor([next(drawn)]), size).to(dtype)

    settings = f"{levels} {sigmas.dtype}, eta {eta!r}, {num_segments!r} segments, {dtype}, flow {schedule.is_flow}"
    try:
        found = sample_tcd(
            model, x.to(dtype), sigmas, disable=True, noise_sampler=noise, eta=eta, num_segments=num_segments, schedule=schedule
        )
    except ScheduleError:
        assert not asked, settings
        return "refused"
    last = float(sigmas[-1])
    clean = CLEAN * (1 - last if schedule.is_flow else 1)
    unit = max(last, CLEAN, first * torch.finfo(dtype).eps)
    length = float(((found.double() - clean) / unit).norm())  # in units, since squares could overflow
    assert abs(length - last / unit) <= 4 * TOLERANCES[dtype], f"{settings}: {length} instead of {last / unit}"
    return "right"


def test_every_run_is_refused_before_the_model_is_asked_or_ends_at_its_level(reliability):
    rng = random.Random(20)
    counts = {"refused": 0, "right": 0}
    for _ in range(RUNS):
        counts[_run(rng)] += 1
    reliability("runs of the sampler", tried=RUNS, wrong=0, **counts)


def _is_whole(value: object) -> bool:
    if isinstance(value, torch.Tensor):
        return not value.ndim
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def test_every_grid_is_refused_or_decreases_and_has_its_length(reliability):
    rng, right = random.Random(21), 0

    def odd(*usual: object, among: tuple = ODD_NUMBERS) -> object:
        return rng.choice(among if rng.random() < 0.2 else usual)

    for _ in range(GRIDS):
        steps, num_segments = odd(rng.randrange(1, 40), rng.randrange(1, 1100)), odd(1, 1, 4)
        denoise = odd(1.0, 1, rng.random(), 1e-9, among=(*ETAS, *ODD_NUMBERS))
        start = odd(999, 999, rng.randrange(1000))
        settings = f"{steps!r} steps, {num_segments!r} segments, denoise {denoise!r}, start {start!r}"
        try:
            found = hyper_sd_timesteps(steps, num_segments, denoise, start_timestep=start)
        except ScheduleError:
            continue
        right += 1
        assert _is_whole(steps), settings
        assert _is_whole(num_segments), settings
        assert len(found) == int(steps), settings
        assert all(type(t) is int for t in found), settings
        assert 999 >= int(start) >= found[0], settings
        assert all(high > low for high, low in zip(found, [*found[1:], -1], strict=True)), settings
    reliability("grids of timesteps", tried=GRIDS, refused=GRIDS - right, right=right, wrong=0)


@pytest.mark.parametrize("level", [1.5, 1 + 1e-3, 80.0])
def test_level_above_one_on_a_flow_model_names_the_level_and_the_remedy(level):
    with pytest.raises(ScheduleError, match=r"flow model.*at most 1.*got .*use"):
        sample_tcd(lambda x, s: x, torch.zeros(1, 2), torch.tensor([level, 0.5, 0.0]), disable=True, schedule=flow())


def test_level_beyond_the_latents_dtype_says_so():
    with pytest.raises(ScheduleError, match="float16"):
        sample_tcd(lambda x, s: x, torch.zeros(1, 2).half(), torch.tensor([7e4, 0.5]), disable=True, schedule=DIFFUSION)


def test_foreign_grid_is_told_once_a_run_however_many_steps_leave_their_segments(caplog):
    levels = torch.tensor([DIFFUSION.sigma(t) for t in (999, 600, 300, 50)] + [0.0])
    for _ in range(2):
        sample_tcd(lambda x, s: x, torch.zeros(1, 2), levels, disable=True, eta=0.0, num_segments=8, schedule=DIFFUSION)
    told = [record.message for record in caplog.records if "segment" in record.message]
    assert len(told) == 2
    assert "3 of 4 steps leave their segments" in told[0]
