"""Lists that repeat a noise level, as hosts' schedulers give them where more steps are asked for than there are levels."""

import math
from itertools import pairwise

import pytest
import torch
from hyper_sd.errors import ScheduleError
from hyper_sd.samplers.tcd import plan_steps, sample_tcd
from hyper_sd.samplers.timesteps import sliceable_sigmas
from hyper_sd.tests.samplers.fakes import DIFFUSION, flow, normal, sigmas_of

SCHEDULES = pytest.mark.parametrize("schedule", [DIFFUSION, flow(3.0)], ids=["diffusion", "flow"])
PLAIN = [0, 1, 2, 3, 4]
REPEATED = {
    "at the start": [0, 0, 0, 1, 2, 3, 4],
    "in between": [0, 1, 1, 2, 2, 2, 3, 4],
    "at the end": [0, 1, 2, 3, 4, 4],
    "everywhere": [0, 0, 1, 1, 2, 2, 3, 3, 4, 4],
}


def levels_of(schedule, places):
    return sigmas_of(schedule, [899, 759, 499, 259])[places]


def run(schedule, places, **options):
    """Our sampler on a nonlinear model, the levels it was evaluated at, and what the callback got."""
    evaluated, seen = [], []

    def model(x, sigma, **extra_args):
        evaluated.append(float(sigma[0]))
        return torch.tanh(x + sigma[0].cos() * x.roll(1, -1))

    result = sample_tcd(
        model, normal(2, 4, 8, 8), levels_of(schedule, places), {"seed": 3}, seen.append, True, schedule=schedule, **options
    )
    return result, evaluated, seen


@SCHEDULES
@pytest.mark.parametrize("where", REPEATED)
@pytest.mark.parametrize(("eta", "num_segments"), [(0.0, 1), (0.3, 1), (1.0, 1), (1.0, 4)])
def test_repeated_levels_change_no_bit_and_evaluate_nothing_twice(schedule, where, eta, num_segments):
    result, evaluated, _ = run(schedule, REPEATED[where], eta=eta, num_segments=num_segments)
    plain, once, _ = run(schedule, PLAIN, eta=eta, num_segments=num_segments)
    assert torch.equal(result, plain)
    assert evaluated == once


@SCHEDULES
@pytest.mark.parametrize("where", REPEATED)
def test_step_of_no_length_draws_no_noise(schedule, where):
    drawn = {}
    for places in (PLAIN, REPEATED[where]):
        drawn[len(places)] = asked = []
        noise_sampler = lambda *levels, asked=asked: asked.append(levels) or torch.ones(2, 4, 8, 8)  # noqa: E731
        run(schedule, places, eta=1.0, noise_sampler=noise_sampler)
    assert drawn[len(PLAIN)] == drawn[len(REPEATED[where])] != []


@pytest.mark.parametrize("where", REPEATED)
def test_callback_counts_every_step_of_the_list(where):
    places = REPEATED[where]
    result, _, seen = run(DIFFUSION, places)
    assert [state["i"] for state in seen] == list(range(len(places) - 1))
    assert [float(state["sigma"]) for state in seen] == levels_of(DIFFUSION, places)[:-1].tolist()
    assert torch.equal(seen[-1]["denoised"], result)
    for state, after in pairwise(seen):
        if state["sigma"] == after["sigma"]:
            assert torch.equal(state["x"], after["x"])
            assert torch.equal(state["denoised"], after["denoised"])


def test_list_of_one_level_leaves_the_latents_as_they_are():
    result, _, seen = run(DIFFUSION, [2, 2, 2])
    assert torch.equal(result, normal(2, 4, 8, 8))
    assert len(seen) == 2


def test_skipped_steps_are_said_once(caplog):
    run(DIFFUSION, REPEATED["in between"])
    assert [record.message for record in caplog.records] == [
        "3 of 7 steps repeat a noise level and are skipped; fewer steps give the same image."
    ]
    caplog.clear()
    run(DIFFUSION, PLAIN)
    assert not caplog.records


@pytest.mark.parametrize(
    "sigmas",
    [[5.0, 5.0, 6.0, 0.0], [5.0, -1.0, -1.0], [math.inf, math.inf, 0.0], [math.inf, 5.0, 0.0], [5.0, math.nan, math.nan]],
)
def test_lists_that_rise_or_are_not_finite_stay_refused(sigmas):
    with pytest.raises(ScheduleError, match="sigmas must be finite and decrease from step to step, got"):
        plan_steps(DIFFUSION, torch.tensor(sigmas), 0.3, 1)


@pytest.mark.parametrize("length", [50, 1000])
@pytest.mark.parametrize("steps", [0, 1, 8, 100, 1000, 1001, 8000])
def test_grid_to_slice_serves_any_number_of_steps_on_any_table(length, steps):
    table = flow(3.0, length)
    sigmas = sliceable_sigmas(table, steps)
    assert len(sigmas) == steps + 1
    assert sigmas[-1] == 0
    assert bool((sigmas[1:] <= sigmas[:-1]).all())
    plan_steps(table, sigmas, 0.3, 1)
