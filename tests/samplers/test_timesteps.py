"""The grids, against the published tables, diffusers' own schedulers and every input a host may send."""

import math
from itertools import pairwise

import pytest
from hyper_sd.errors import ScheduleError
from hyper_sd.samplers.schedule import NoiseSchedule
from hyper_sd.samplers.timesteps import (
    LAST_TIMESTEP,
    ONE_STEP_START,
    cut_timesteps,
    hyper_sd_sigmas,
    hyper_sd_timesteps,
    segment_boundaries,
    segment_boundary,
)
from hyper_sd.tests.samplers.fakes import DIFFUSION, FOUR_SEGMENT_GRIDS, TRAILING_GRIDS, flow
from hypothesis import given, settings
from hypothesis import strategies as st

diffusers = pytest.importorskip("diffusers")

TCD_GRIDS = {
    1: [999],
    2: [999, 499],
    3: [999, 679, 339],
    4: [999, 759, 499, 259],
    5: [999, 799, 599, 399, 199],
    6: [999, 839, 679, 499, 339, 179],
    7: [999, 859, 719, 579, 439, 299, 159],
    8: [999, 879, 759, 639, 499, 379, 259, 139],
}
DIVISORS = [k for k in range(1, 1001) if 1000 % k == 0]

anything = st.one_of(st.integers(-3, 1200), st.integers(1, 12), st.floats(), st.integers(1, 12).map(float), st.booleans())
some_denoise = st.one_of(st.just(1.0), st.floats(0.001, 1.0), st.floats())


@pytest.mark.parametrize("steps", TCD_GRIDS)
def test_grid_is_the_published_one_for_plain_tcd(steps):
    assert hyper_sd_timesteps(steps) == TCD_GRIDS[steps]


@pytest.mark.parametrize("steps", TRAILING_GRIDS)
def test_grid_is_the_published_one_for_as_many_segments_as_steps(steps):
    assert hyper_sd_timesteps(steps, steps) == TRAILING_GRIDS[steps]


@pytest.mark.parametrize("steps", FOUR_SEGMENT_GRIDS)
def test_grid_holds_every_segment_start_for_four_segments(steps):
    grid = hyper_sd_timesteps(steps, 4)
    assert {999, 749, 499, 249} <= set(grid)
    assert grid == FOUR_SEGMENT_GRIDS[steps]


@pytest.mark.parametrize("steps", range(1, 51))
def test_grid_equals_diffusers_for_trailing(steps):
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    assert hyper_sd_timesteps(steps, steps) == scheduler.timesteps.tolist()


@pytest.mark.parametrize("steps", range(1, 51))
def test_grid_equals_diffusers_for_tcd_at_every_strength(steps):
    scheduler = diffusers.TCDScheduler(original_inference_steps=50)
    for strength in (1.0, 0.95, 0.9, 0.75, 0.7, 0.58, 0.5, 0.3, 0.29, 0.1):
        if int(50 * strength) >= steps:  # below that diffusers refuses
            scheduler.set_timesteps(steps, strength=strength)
            assert hyper_sd_timesteps(steps, denoise=strength) == scheduler.timesteps.tolist(), strength


def test_grid_is_cut_anew_for_img2img():
    assert hyper_sd_timesteps(5, denoise=0.7) == [699, 559, 419, 279, 139]  # the last 5 of 7 would start at 719
    assert hyper_sd_timesteps(4, 2, denoise=0.7) == [699, 499, 332, 166]


def test_grid_starts_where_the_one_step_unet_was_distilled():
    assert (LAST_TIMESTEP, ONE_STEP_START) == (999, 800)
    assert hyper_sd_timesteps(1, start_timestep=ONE_STEP_START) == [800]
    assert hyper_sd_sigmas(DIFFUSION, 1, start_timestep=ONE_STEP_START).tolist() == pytest.approx([5.1110, 0], abs=5e-5)


@pytest.mark.parametrize("num_segments", [1, 3])
@pytest.mark.parametrize("start", [37, 300, 799, 800, 998, 999])
def test_grid_falls_from_any_start_and_denoise_cuts_below_it(start, num_segments):
    grid = hyper_sd_timesteps(4, num_segments, start_timestep=start)
    assert grid[0] == start
    assert all(high > low >= 0 for high, low in pairwise(grid))
    assert hyper_sd_timesteps(4, num_segments, 0.02, start_timestep=start) == hyper_sd_timesteps(4, num_segments, 0.02)
    assert hyper_sd_timesteps(4, num_segments, 1.0, start_timestep=start) == grid


@given(steps=st.integers(1, 60), num_segments=st.integers(1, 60), denoise=st.floats(0, 1), start=st.integers(60, 999))
@settings(max_examples=300, deadline=None)
def test_cut_grid_exists_at_every_strength(steps, num_segments, denoise, start):
    grid = cut_timesteps(steps, num_segments, denoise, start_timestep=start)
    assert len(grid) == steps
    assert start >= grid[0]
    assert grid[0] <= max(1000 * denoise, steps)
    assert all(high > low >= 0 for high, low in pairwise(grid))


def test_cut_grid_is_the_whole_one_where_it_exists():
    assert cut_timesteps(4, 1, 1.0) == hyper_sd_timesteps(4)
    assert cut_timesteps(5, 2, 0.7) == hyper_sd_timesteps(5, 2, 0.7)
    assert cut_timesteps(2, 4, 0.5) == [499, 249]  # the two segments that are left
    assert cut_timesteps(2, 4, 0.9) == hyper_sd_timesteps(2, 2, 0.9)  # four are left, so the trailing grid


@pytest.mark.parametrize(
    ("steps", "spacing"), [(50, 20), (51, 10), (100, 10), (160, 5), (200, 5), (250, 4), (500, 2), (1000, 1)]
)
def test_grid_takes_the_next_finer_spacing_when_hosts_ask_for_steps_over_denoise(steps, spacing):
    grid = hyper_sd_timesteps(steps)
    assert len(set(grid)) == steps
    assert grid[0] == 999
    assert {(t + 1) % spacing for t in grid} == {0}
    assert spacing == 1 or any((t + 1) % (2 * spacing) for t in grid)


def test_boundary_matches_the_hand_table_for_four_segments():
    table = {999: 749, 998: 749, 750: 749, 749: 499, 748: 499, 500: 499, 499: 249, 250: 249, 249: 0, 1: 0, 0: 0}
    assert {t: segment_boundary(t, 4) for t in table} == table
    assert segment_boundaries(4) == [999, 749, 499, 249]


def test_boundary_is_zero_for_one_segment():
    assert {segment_boundary(t, 1) for t in range(1000)} == {0}


@pytest.mark.parametrize("num_segments", DIVISORS)
def test_boundary_matches_the_closed_form_for_counts_that_divide_the_timesteps(num_segments):
    width = 1000 // num_segments
    expected = [max((math.ceil((i + 1) * num_segments / 1000) - 1) * width - 1, 0) for i in range(1000)]
    assert [segment_boundary(i, num_segments) for i in range(1000)] == expected


@given(steps=anything, num_segments=st.one_of(st.just(1), anything), denoise=some_denoise)
@settings(max_examples=200, deadline=None)
def test_grid_is_sound_or_refused_for_any_input(steps, num_segments, denoise):
    try:
        grid = hyper_sd_timesteps(steps, num_segments, denoise)
    except ScheduleError:
        return
    assert len(grid) == steps
    assert all(type(t) is int for t in grid)
    assert all(high > low for high, low in pairwise(grid))
    assert 0 <= grid[-1] <= grid[0] <= 999
    assert grid[0] == 999 if denoise == 1 else grid[0] <= 1000 * denoise
    edges = {t: segment_boundary(t, int(num_segments)) for t in grid} if num_segments > 1 else {}
    assert all(low >= edges.get(high, 0) for high, low in pairwise(grid))
    assert edges.get(grid[-1], 0) == 0


@given(steps=st.integers(1, 1000), data=st.data())
@settings(max_examples=100, deadline=None)
def test_grid_exists_whenever_enough_timesteps_do(steps, data):
    denoise = data.draw(st.floats(min(steps / 1000 + 1e-9, 1.0), 1.0))
    assert len(hyper_sd_timesteps(steps, denoise=denoise)) == steps
    assert len(hyper_sd_timesteps(steps, data.draw(st.integers(1, steps)))) == steps


@given(steps=st.integers(1, 1000), num_segments=st.integers(1, 16), denoise=st.floats(0.02, 1.0))
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("schedule", [DIFFUSION, flow()], ids=["diffusion", "flow"])
def test_sigmas_strictly_decrease_for_any_grid(schedule, steps, num_segments, denoise):
    try:
        grid = hyper_sd_timesteps(steps, num_segments, denoise)
    except ScheduleError:
        return
    sigmas = hyper_sd_sigmas(schedule, steps, num_segments, denoise).tolist()
    assert len(sigmas) == steps + 1
    assert sigmas[-1] == 0
    assert all(high > low for high, low in pairwise(sigmas))
    assert [schedule.timestep(sigma) for sigma in sigmas[:-1]] == grid


def test_sigmas_end_on_alpha_bar_zero_when_asked():
    on_zero, above = hyper_sd_sigmas(DIFFUSION, 4), hyper_sd_sigmas(DIFFUSION, 4, end_on_zero=False)
    assert on_zero[:-1].tolist() == above[:-1].tolist()
    assert (on_zero[-1].item(), above[-1].item()) == (0.0, pytest.approx(0.0292, abs=5e-5))


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ({"steps": 0}, "got 0"),
        ({"steps": -2}, "got -2"),
        ({"steps": 2.5}, "got 2.5"),
        ({"steps": math.nan}, "got nan"),
        ({"steps": math.inf}, "got inf"),
        ({"steps": True}, "got True"),
        ({"steps": 4, "num_segments": 0}, "got 0"),
        ({"steps": 4, "num_segments": 8}, "4 steps cannot visit 8 segments"),
        ({"steps": 2000, "num_segments": 1500}, "denoise 1.0 leaves 1000 timesteps, too few for 2000 steps"),
        ({"steps": 1001}, "leaves 1000 timesteps, too few for 1001 steps"),
        ({"steps": 4, "denoise": 0}, "got 0"),
        ({"steps": 4, "denoise": 1.5}, "got 1.5"),
        ({"steps": 4, "denoise": -0.1}, "got -0.1"),
        ({"steps": 4, "denoise": math.nan}, "got nan"),
        (
            {"steps": 4, "start_timestep": 1000},
            "at most 999, pure noise, got 1000; use 999",
        ),
        ({"steps": 4, "start_timestep": -1}, "got -1"),
        ({"steps": 4, "start_timestep": "800"}, "start_timestep must be a whole number of at least 0, got '800'"),
        ({"steps": 4, "start_timestep": None}, "start_timestep must be a whole number of at least 0, got None"),
        ({"steps": 4, "start_timestep": 2}, "start_timestep 2 leaves 3 timesteps, too few for 4 steps"),
        ({"steps": 25, "num_segments": 2, "denoise": 0.03}, "denoise 0.03 leaves 20 timesteps, too few for 25 steps"),
        ({"steps": 40, "denoise": 0.03}, "denoise 0.03 leaves 30 timesteps, too few for 40 steps"),
    ],
)
def test_error_names_what_was_given_for_impossible_grids(arguments, given):
    with pytest.raises(ScheduleError, match=given):
        hyper_sd_timesteps(**arguments)


def test_error_names_the_levels_when_the_table_is_too_coarse():
    coarse = NoiseSchedule(tuple((k + 1) / 10 for k in range(50)))
    assert len(hyper_sd_sigmas(coarse, 60)) == 61  # interpolated between the levels
    with pytest.raises(ScheduleError, match="has 50 levels, too few for 100 distinct steps"):
        hyper_sd_sigmas(coarse, 100)


def test_error_is_raised_when_the_grid_already_visits_the_end():
    with pytest.raises(ScheduleError, match="1000 steps already visit timestep 0"):
        hyper_sd_sigmas(DIFFUSION, 1000, end_on_zero=False)
