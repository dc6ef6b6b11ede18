"""The plan table: every family, step count and variant gives valid settings, or an error that says what is allowed."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from hyper_sd.errors import ScheduleError, UnsupportedModelError
from hyper_sd.models import lora_plan
from hyper_sd.models.catalog import load_catalog
from hyper_sd.models.families import FAMILIES
from hyper_sd.models.lora import plan
from hyper_sd.models.sampling_plan import SOURCES, VARIANTS, starting_at
from hyper_sd.samplers.timesteps import ONE_STEP_START, hyper_sd_timesteps

LORAS = [entry for entry in load_catalog() if entry.folder == "loras" and entry.recipe is None]
ALLOWED = {"unified": range(1, 9), "n-step": range(2, 17), "cfg": range(3, 17), "merged": range(1, 9)}


def _possible(family, steps, variant):
    offered = FAMILIES[family].variants
    return variant == "auto" or (variant in offered and (len(offered) == 1 or steps in ALLOWED.get(variant, ())))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_count_has_a_plan_or_a_reason_why_not(family, variant):
    for steps in range(1, 17):
        if not _possible(family, steps, variant):
            with pytest.raises((ScheduleError, UnsupportedModelError), match="choose"):
                plan(family, steps, variant)
            continue
        made = plan(family, steps, variant)
        assert (made.family, made.steps) == (family, steps)
        assert made.variant in FAMILIES[family].variants
        assert 1 <= made.num_segments <= steps
        assert 0 <= made.eta <= 1
        assert 1 <= made.cfg <= 8
        assert 0 < made.strength <= 1 or made.variant == "merged"
        assert made.source in SOURCES
        assert made.reason.endswith(".")
        assert (made.guidance is not None) == (family == "flux")
        assert str(made).count("\n") == 0


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_grid_falls_strictly_from_its_start(family, variant):
    for made in (plan(family, steps, variant) for steps in range(1, 17) if _possible(family, steps, variant)):
        grid = made.timesteps()
        if made.grid == "default":
            assert grid is None
            assert made.sampler == "euler"
            continue
        assert len(grid) == made.steps
        assert grid[0] == made.start_timestep == 999
        assert all(high > low >= 0 for high, low in pairwise(grid))
        assert (made.num_segments == 1) == (made.grid == "tcd")


@pytest.mark.parametrize("entry", LORAS, ids=lambda entry: entry.id)
def test_plan_agrees_with_the_catalogue_at_a_files_own_steps(entry):
    made = plan(entry.family, entry.steps, entry.kind)
    settings = entry.settings
    assert (made.entry_id, made.file, made.variant) == (entry.id, entry.name, entry.kind)
    assert (made.strength, made.num_segments, made.source) == (entry.strength, entry.num_segments, "released recipe")
    assert (made.sampler, made.grid, made.eta, made.cfg) == (settings.sampler, settings.grid, settings.eta, settings.cfg)
    assert (made.start_timestep, made.guidance) == (settings.start_timestep, settings.guidance)


def test_every_lora_of_the_catalogue_is_planned_for():
    assert len(LORAS) == 17
    planned = {
        plan(e.family, s, v).entry_id for e in LORAS for s in range(1, 17) for v in VARIANTS if _possible(e.family, s, v)
    }
    assert planned - {None} == {entry.id for entry in LORAS}


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_auto_takes_the_n_step_file_for_its_own_steps_only(family):
    chosen = {steps: plan(family, steps).variant for steps in range(1, 17)}
    assert [steps for steps in chosen if chosen[steps] == "n-step"] == [2, 4, 8]
    assert [steps for steps in chosen if chosen[steps] == "unified"] == [1, 3, 5, 6, 7]
    assert [steps for steps in chosen if chosen[steps] == "cfg"] == list(range(9, 17))
    assert plan(family, 4).timesteps() == [999, 749, 499, 249]
    assert plan(family, 3).timesteps() == [999, 679, 339]


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_eta_of_the_unified_lora_starts_at_one_and_falls(family):
    etas = [plan(family, steps, "unified").eta for steps in range(1, 9)]
    assert etas[:2] == [1.0, 1.0]
    assert etas == sorted(etas, reverse=True)
    assert etas[-1] == 0.3


@pytest.mark.parametrize(("steps", "file_steps"), [(2, 2), (3, 2), (4, 4), (5, 4), (6, 4), (7, 4), (8, 8), (9, 8), (16, 8)])
def test_n_step_file_keeps_its_segments_at_more_steps(steps, file_steps):
    made = plan("sdxl", steps, "n-step")
    assert made.file == f"Hyper-SDXL-{file_steps}steps-lora.safetensors"
    assert made.num_segments == file_steps
    assert set(hyper_sd_timesteps(file_steps, file_steps)) <= set(made.timesteps())
    assert made.source == ("released recipe" if steps == file_steps else "derived")


@pytest.mark.parametrize(
    ("steps", "file_steps", "cfg", "source"),
    [(3, 8, 3.5, "field practice"), (7, 8, 3.5, "field practice"), (8, 8, 5.0, "released recipe"), (9, 12, 5.0, "derived"),
     (12, 12, 5.0, "released recipe"), (14, 12, 5.0, "field practice"), (16, 12, 5.0, "derived")],
)  # fmt: skip
def test_lora_for_guidance_is_sampled_on_the_trailing_grid(steps, file_steps, cfg, source):
    made = plan("sd15", steps, "cfg")
    assert made.file == f"Hyper-SD15-{file_steps}steps-CFG-lora.safetensors"
    assert (made.cfg, made.source, made.eta, made.strength) == (cfg, source, 0.0, 1.0)
    assert made.timesteps() == hyper_sd_timesteps(steps, steps)


@pytest.mark.parametrize(
    ("family", "steps", "file_steps", "cfg"),
    [("sd3", 1, 4, 3.0), ("sd3", 4, 4, 3.0), ("sd3", 5, 8, 5.0), ("sd3", 9, 16, 7.0), ("sd3", 16, 16, 7.0),
     ("flux", 1, 8, 1.0), ("flux", 8, 8, 1.0), ("flux", 9, 16, 1.0), ("flux", 16, 16, 1.0)],
)  # fmt: skip
def test_flow_models_take_the_next_file_above(family, steps, file_steps, cfg):
    made = plan(family, steps)
    assert f"-{file_steps}steps" in made.file
    assert (made.cfg, made.strength, made.grid, made.sampler) == (cfg, 0.125, "default", "euler")
    assert ("rough" in made.reason) == (steps <= file_steps // 2)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_merged_checkpoint_gets_no_lora(family):
    made = plan(family, 4, "merged")
    assert (made.file, made.entry_id, made.strength, made.cfg, made.grid) == (None, None, 0.0, 2.0, "tcd")
    assert ("DPM++ SDE" in made.reason) == ("1024x1024" in made.reason) == (family == "sdxl")
    assert str(made).startswith("no LoRA (merged checkpoint), 4 steps")


@pytest.mark.parametrize(("steps", "grid"), [(1, [800]), (2, [800, 399]), (4, [800, 599, 399, 199])])
def test_grid_falls_from_the_plans_own_start(steps, grid):
    made = replace(plan("sdxl", steps, "merged"), start_timestep=ONE_STEP_START)
    assert made.timesteps() == grid


@pytest.mark.parametrize("own", [0, None, 999])
def test_without_a_start_of_ones_own_the_authors_999_stays(own):
    assert starting_at(plan("sdxl", 1), own) == plan("sdxl", 1)
    assert "from timestep" not in str(plan("sdxl", 1))


@pytest.mark.parametrize(("steps", "grid"), [(1, [800]), (4, [800, 599, 399, 199])])
def test_a_start_of_ones_own_is_taken_and_said(steps, grid):
    made = starting_at(plan("sdxl", steps, "unified"), 800)
    assert (made.timesteps(), made.source) == (grid, "your choice")
    assert made.reason.endswith("It starts at 800, as you chose, in place of 999.")
    assert "tcd grid from timestep 800," in str(made)
    plain = {"start_timestep": 999, "reason": "", "source": ""}
    assert replace(made, **plain) == replace(plan("sdxl", steps, "unified"), **plain)


def test_a_start_of_ones_own_leaves_a_guess_a_guess():
    assert starting_at(replace(plan("sdxl", 1), source="a guess"), 800).source == "a guess"


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_a_start_of_ones_own_is_refused_where_the_host_has_the_grid(family):
    with pytest.raises(UnsupportedModelError, match=r"is for SD1\.5 and SDXL; .* Set it to 0, got 800"):
        starting_at(plan(family, 8), 800)
    assert starting_at(plan(family, 8), 0) == plan(family, 8)


@pytest.mark.parametrize("start", [1000, -1, 800.5, True, "800"])
def test_a_start_that_is_no_timestep_is_refused(start):
    with pytest.raises(ScheduleError, match="must be 1 to 999, got"):
        starting_at(plan("sdxl", 1), start)


def test_a_start_that_leaves_too_few_timesteps_is_refused_before_sampling():
    with pytest.raises(ScheduleError, match="start_timestep 3 leaves 4 timesteps, too few for 8 steps"):
        starting_at(plan("sdxl", 8, "unified"), 3)


@pytest.mark.parametrize("steps", [0, -1, 17, 100, 2.5, 4.0, float("nan"), True, "4", None])
def test_steps_outside_1_to_16_are_refused(steps):
    for family in FAMILIES:
        with pytest.raises(ScheduleError, match="1 to 16 steps, got"):
            plan(family, steps)


@pytest.mark.parametrize(
    ("family", "steps", "variant", "error", "text"),
    [
        ("sd2", 4, "auto", UnsupportedModelError, "for sd2; there are some for SD1.5, SDXL, SD3, FLUX.1-dev"),
        ("sdxl", 4, "lcm", UnsupportedModelError, "'lcm' Hyper-SD LoRA for SDXL; choose auto or unified or n-step or cfg"),
        ("sd3", 4, "unified", UnsupportedModelError, "for SD3; choose auto or cfg"),
        ("flux", 8, "cfg", UnsupportedModelError, "for FLUX.1-dev; choose auto or n-step"),
        ("flux", 8, "merged", UnsupportedModelError, "choose auto or n-step"),
        ("sdxl", 9, "unified", ScheduleError, "1 to 8 steps, got 9; choose the variant cfg"),
        ("sdxl", 1, "n-step", ScheduleError, "2 to 16 steps, got 1; choose the variant unified"),
        ("sdxl", 2, "cfg", ScheduleError, "3 to 16 steps, got 2; choose the variant unified"),
        ("sdxl", 9, "merged", ScheduleError, "1 to 8 steps, got 9; choose"),
    ],
)
def test_what_cannot_be_planned_says_what_can(family, steps, variant, error, text):
    with pytest.raises(error) as raised:
        plan(family, steps, variant)
    assert text in str(raised.value)


def test_measured_values_replace_the_others(monkeypatch):
    row = {"strength": 0.8, "eta": 0.45, "reason": "Nearest to 25 steps of the base model."}
    monkeypatch.setitem(lora_plan.MEASURED, ("sdxl", "unified", 6), row)
    made = plan("sdxl", 6)
    assert (made.strength, made.eta, made.source, made.reason) == (0.8, 0.45, "measured here", row["reason"])
    assert plan("sd15", 6).source == "released recipe"


def test_measured_rows_are_of_use():
    json.dumps(list(lora_plan.MEASURED.values()))
    for (family, variant, steps), row in lora_plan.MEASURED.items():
        assert set(row) <= {"strength", "eta", "num_segments", "cfg", "start_timestep", "reason"}
        assert row["reason"].endswith(".")
        recommended = plan("sd15" if family == lora_plan.EMBEDDED else family, steps, variant)
        assert lora_plan.as_measured(recommended, family).source == "measured here"
