"""How a person's own file is sampled: by its own recipe where that is known, else by a guess that says so."""

from dataclasses import replace

import pytest
from hyper_sd.errors import ScheduleError, UnsupportedModelError
from hyper_sd.models.catalog import load_catalog
from hyper_sd.models.embedded import LORAS as EMBEDDED_LORAS
from hyper_sd.models.embedded import ONE_STEP
from hyper_sd.models.families import FAMILIES
from hyper_sd.models.file_plan import plan_for_embedded, plan_for_file
from hyper_sd.models.lora_plan import AUTHORS, plan
from hyper_sd.models.recognition import Recognition
from hyper_sd.models.sampling_plan import SOURCES, VARIANTS

LORAS = [entry for entry in load_catalog() if entry.folder == "loras" and entry.recipe is None]
UNKNOWN = Recognition("mine.safetensors")
STYLE = Recognition("mine.safetensors", "metadata")
UNIFIED = Recognition("mine.safetensors", "metadata", "unified", 1)


def released(entry, file="mine.safetensors", evidence="content"):
    return Recognition(file, evidence, entry.kind, entry.steps, entry)


def n_step(steps, evidence="metadata"):
    return Recognition("mine.safetensors", evidence, "n-step", steps)


def one_step(start=800, evidence="metadata"):
    return Recognition("mine.safetensors", evidence, "n-step", 1, start_timestep=start)


def settings(made):
    return replace(made, reason="", source="", file="", entry_id="")


def everything():
    known = [UNKNOWN, STYLE, UNIFIED, n_step(3), n_step(8, "embedded"), one_step(), *map(released, LORAS)]
    return [*known, *(released(entry, evidence="name") for entry in LORAS)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_file_at_every_step_count_has_a_plan_with_its_name(family):
    for known in everything():
        if known.is_certain and known.entry and known.entry.family != family:
            continue
        for steps in range(1, 17):
            made = plan_for_file(family, steps, "auto", known)
            assert (made.family, made.steps, made.file) == (family, steps, "mine.safetensors")
            assert 1 <= made.num_segments <= steps
            assert 0 <= made.eta <= 1
            assert made.source in SOURCES
            assert made.reason.endswith(".")
            grid = made.timesteps()
            assert grid is None or (len(grid) == steps and grid[0] == made.start_timestep)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_authors_are_named_for_their_own_files_only(family):
    for known in everything():
        is_theirs = known.is_certain and known.entry is not None
        if is_theirs and known.entry.family != family:
            continue
        for steps in range(1, 17):
            made = plan_for_file(family, steps, "auto", known)
            assert (AUTHORS in made.reason) == is_theirs
            assert is_theirs or made.source != "released recipe"
            assert made.entry_id == (known.entry.id if known.entry and known.entry.family == family else None)


@pytest.mark.parametrize("entry", LORAS, ids=lambda entry: entry.id)
def test_a_released_file_has_its_recipe_under_any_name(entry):
    own = plan_for_file(entry.family, entry.steps, "auto", released(entry))
    assert settings(own) == settings(plan(entry.family, entry.steps, entry.kind))
    assert own.source == "released recipe"
    assert own.reason.startswith(f"This is {entry.name}. {AUTHORS}")
    named = plan_for_file(entry.family, entry.steps, "auto", released(entry, entry.name.upper()))
    assert named.reason.startswith(AUTHORS)


@pytest.mark.parametrize(
    ("steps", "segments", "words"), [(4, 4, "made this file for 8 steps: set steps to 8"), (12, 8, "kept")]
)
def test_a_file_at_other_steps_than_its_own_says_so(steps, segments, words):
    entry = next(entry for entry in LORAS if entry.id == "hyper-sdxl-8steps-lora")
    made = plan_for_file("sdxl", steps, "auto", released(entry, entry.name))
    assert (made.num_segments, made.source) == (segments, "derived")
    assert words in made.reason


def test_a_cfg_file_keeps_its_cfg_at_any_steps():
    entries = {entry.steps: entry for entry in LORAS if (entry.family, entry.kind) == ("sd15", "cfg")}
    cfgs = {(k, n): plan_for_file("sd15", n, "auto", released(entries[k])).cfg for k in entries for n in (2, 4, 8, 12)}
    assert cfgs == {(8, 2): 3.5, (8, 4): 3.5, (8, 8): 5, (8, 12): 5, (12, 2): 5, (12, 4): 5, (12, 8): 5, (12, 12): 5}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unknown_file_is_sampled_as_before_and_the_text_says_that_it_is_a_guess(family):
    remedy = "set variant" if len(FAMILIES[family].variants) > 1 else "that its author names"
    for steps in range(1, 17):
        made = plan_for_file(family, steps, "auto", UNKNOWN)
        assert settings(made) == settings(plan(family, steps))
        assert made.source == "a guess"
        assert remedy in made.reason
    assert "from the steps" in made.reason


def test_a_guess_from_the_name_says_so():
    entry = next(entry for entry in LORAS if entry.id == "hyper-sdxl-8steps-cfg-lora")
    made = plan_for_file("sdxl", 8, "auto", released(entry, evidence="name"))
    assert (made.cfg, made.source, made.entry_id) == (5.0, "a guess", entry.id)
    assert made.reason.startswith("By its name alone")
    other = plan_for_file("sd15", 8, "auto", released(entry, evidence="name"))  # whose name is of another family
    assert settings(other) == settings(plan("sd15", 8))
    assert "from the steps" in other.reason


def test_own_training_is_sampled_as_its_metadata_says():
    made = plan_for_file("sdxl", 4, "auto", UNIFIED)
    assert (made.variant, made.grid, made.num_segments, made.cfg, made.source) == ("unified", "tcd", 1, 1.0, "its own training")
    made = plan_for_file("sdxl", 3, "auto", n_step(3))
    assert (made.variant, made.num_segments, made.timesteps()) == ("n-step", 3, [999, 666, 332])
    assert made.reason == "By its metadata this file was made for exactly 3 steps."
    assert plan_for_file("sdxl", 2, "auto", n_step(3)).num_segments == 2


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("variant", ["auto", "n-step"])
@pytest.mark.parametrize("start", [800, 650, 999])
def test_a_lora_for_one_step_is_sampled_from_its_own_start(family, variant, start):
    made = plan_for_file(family, 1, variant, one_step(start))
    assert (made.timesteps(), made.start_timestep, made.num_segments) == ([start], start, 1)
    assert (made.eta, made.cfg, made.strength, made.grid, made.sampler) == (0.0, 1.0, 1.0, "tcd", "hyper_sd_tcd")
    assert made.source == "its own training"
    assert made.reason == f"By its metadata this file was made for exactly 1 step, from timestep {start}."


@pytest.mark.parametrize("steps", [2, 4, 16])
def test_a_lora_for_one_step_says_so_at_more_steps(steps):
    made = plan_for_file("sdxl", steps, "auto", one_step())
    assert (made.steps, made.num_segments, made.timesteps()[0], made.source) == (steps, 1, 800, "derived")
    assert "for exactly 1 step, from timestep 800: set steps to 1, others are untried." in made.reason


def test_another_variant_counts_before_a_lora_for_one_step_and_says_what_it_is():
    made = plan_for_file("sdxl", 1, "unified", one_step())
    assert (made.start_timestep, made.source) == (999, "your choice")
    assert "this file was made for 1 step; auto takes its own recipe" in made.reason


@pytest.mark.parametrize(
    ("steps", "variant", "key", "start"),
    [
        (1, "auto", ONE_STEP, 800),
        (1, "n-step", ONE_STEP, 800),
        (1, "unified", ("unified", 1), 800),
        (2, "auto", ("n-step", 2), 999),
        (3, "auto", ("unified", 1), 999),
        (4, "unified", ("unified", 1), 999),
        (8, "n-step", ("n-step", 8), 999),
    ],
)
def test_the_embedded_models_files_by_steps_and_variant(steps, variant, key, start):
    made, path = plan_for_embedded(steps, variant)
    assert (path, made.file) == (EMBEDDED_LORAS[key], EMBEDDED_LORAS[key].name)
    assert (made.steps, made.start_timestep, made.timesteps()[0], made.cfg) == (steps, start, start, 1.0)
    assert made.num_segments == (1 if key[0] == "unified" else key[1])


def test_the_embedded_models_unified_lora_has_its_measured_start_at_one_step():
    made, _ = plan_for_embedded(1, "unified")
    assert (made.strength, made.source) == (1.0, "measured here")


def test_the_embedded_model_has_no_lora_for_guidance_and_none_where_it_is_merged():
    assert plan_for_embedded(4, "merged")[1] is None
    with pytest.raises(UnsupportedModelError, match="some for 1, 2, 4 and 8 steps"):
        plan_for_embedded(9)


def test_a_style_is_said_to_be_none_of_few_steps():
    made = plan_for_file("sdxl", 4, "auto", STYLE)
    assert "beside the Hyper-SD LoRA, not in its place" in made.reason
    assert made.source == "a guess"


def test_segments_of_a_flow_model_have_no_recipe():
    made = plan_for_file("sd3", 4, "auto", n_step(4))
    assert (made.source, made.sampler) == ("a guess", "euler")
    assert "no recipe on SD3" in made.reason


def test_measured_values_are_of_the_embedded_loras_alone():
    own = Recognition("hyper_sd_demo_1step_lora.safetensors", "embedded", "unified", 1)
    assert plan_for_file("sd15", 4, "auto", own).strength == 0.75
    assert plan_for_file("sd15", 4, "auto", UNIFIED).strength == 1


@pytest.mark.parametrize("variant", VARIANTS[1:4])
def test_an_explicit_variant_wins_and_what_contradicts_it_is_said(variant):
    for known in everything():
        if known.entry and known.entry.family != "sdxl":
            continue
        made = plan_for_file("sdxl", 8, variant, known)
        assert made.variant == variant
        says = "The variant that you chose is kept" in made.reason
        assert says == (known.is_style or known.variant not in (None, variant)), f"{known}: {made.reason}"
        assert (made.source == "your choice") == (known.variant != variant)


def test_an_explicit_variant_that_agrees_changes_nothing():
    entry = next(entry for entry in LORAS if entry.id == "hyper-sdxl-8steps-cfg-lora")
    assert plan_for_file("sdxl", 8, "cfg", released(entry)) == plan_for_file("sdxl", 8, "auto", released(entry))


def test_a_merged_checkpoint_is_planned_without_the_file():
    assert plan_for_file("sdxl", 4, "merged", UNIFIED) == plan("sdxl", 4, "merged")


def test_a_known_file_of_another_family_is_refused():
    entry = next(entry for entry in LORAS if entry.family == "sdxl")
    with pytest.raises(UnsupportedModelError, match=r"mine\.safetensors is a LoRA for SDXL, the model is SD1\.5"):
        plan_for_file("sd15", 4, "auto", released(entry))


def test_steps_and_variants_that_there_are_not_are_refused():
    with pytest.raises(ScheduleError, match="1 to 16 steps, got 17"):
        plan_for_file("sdxl", 17, "auto", UNIFIED)
    with pytest.raises(UnsupportedModelError, match="no 'unified' Hyper-SD LoRA for SD3"):
        plan_for_file("sd3", 4, "unified", UNKNOWN)
