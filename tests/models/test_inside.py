"""Which few steps a checkpoint has inside: what a bake here has noted, what a name says, and what neither tells."""

import json
from dataclasses import replace

import pytest
import torch
from hyper_sd.errors import ScheduleError, UnsupportedModelError
from hyper_sd.models.bake import bake
from hyper_sd.models.catalog import load_catalog
from hyper_sd.models.file_plan import plan_for_file
from hyper_sd.models.inside import FEW_STEP, few_step_note, few_steps_inside, plan_inside
from hyper_sd.models.recognition import Recognition
from hyper_sd.tests.models import bake_world as world
from safetensors import safe_open
from safetensors.torch import load_file, save_file

CATALOG = load_catalog()
LORAS = [entry for entry in CATALOG if entry.folder == "loras" and entry.family in ("sd15", "sdxl")]


def checkpoint(path, **metadata):
    save_file({"x": torch.zeros(2)}, path, {name.replace("__", "."): text for name, text in metadata.items()})
    return path


def noted(path, known, strength=1.0):
    save_file({"x": torch.zeros(2)}, path, few_step_note(known, strength))
    return path


def known_of(entry, evidence="content"):
    steps = entry.steps if entry.recipe is None or entry.recipe.segments == 0 else 0
    return Recognition(f"my {entry.name}", evidence, entry.kind, steps, entry, recipe=entry.recipe)


@pytest.mark.parametrize("entry", LORAS, ids=lambda entry: entry.id)
@pytest.mark.parametrize("steps", [2, 4])
def test_baked_lora_is_sampled_as_the_lora_itself(tmp_path, entry, steps):
    path = noted(tmp_path / "style.safetensors", known_of(entry), 0.8)
    inside = few_steps_inside(path, entry.family)
    found = plan_inside(entry.family, steps, inside)
    wanted = plan_for_file(entry.family, steps, "auto", known_of(entry))
    same = replace(wanted, variant="merged", file=None, entry_id=None, strength=0.0, reason=found.reason)
    assert found == same
    assert f"has my {entry.name} at strength 0.8 inside by its metadata, so no LoRA is added" in found.reason


def test_lora_trained_here_is_known_inside_by_its_own_steps_and_start(tmp_path):
    for known in (Recognition("mine", "metadata", "n-step", 4), Recognition("one", "metadata", "n-step", 1, None, 600)):
        inside = few_steps_inside(noted(tmp_path / f"{known.file}.safetensors", known), "sd15")
        assert inside.known == known
        found = plan_inside("sd15", known.steps, inside)
        assert (found.num_segments, found.start_timestep) == (known.steps, known.start_timestep or 999)
        assert (found.file, found.source) == (None, "its own training")


def test_a_guess_stays_a_guess_inside(tmp_path):
    lcm = next(recipe for recipe in CATALOG.recipes if recipe.name == "lcm")
    known = Recognition("LCM thing", "name", "other", 0, recipe=lcm)
    found = plan_inside("sd15", 4, few_steps_inside(noted(tmp_path / "x.safetensors", known), "sd15"))
    assert (found.eta, found.to_clean, found.source) == (1.0, True, "a guess")
    assert "so no LoRA is added. By its name alone this is LCM: LCM-like" in found.reason
    assert found.reason.endswith("If it is another's, choose its method.")


@pytest.mark.parametrize(
    ("name", "family", "method"),
    [
        ("juggernautXL_lightning.safetensors", "sdxl", "SDXL-Lightning"),
        ("realvis_LCM.safetensors", "sd15", "LCM"),
        ("turboVision.safetensors", "sdxl", "SDXL Turbo"),
        ("realvisHyperSD.safetensors", "sdxl", "Hyper-SD"),
        ("Hyper-SDXL-1step-Unet-Comfyui.fp16.safetensors", "sdxl", "Hyper-SD"),
        ("photo_turbo_lightning.safetensors", "sdxl", "SDXL Turbo or SDXL-Lightning"),
        ("realvisHyperSD_Lightning.safetensors", "sdxl", "Hyper-SD or SDXL-Lightning"),
        ("photo_lcm_turbo.safetensors", "sd15", "LCM"),
        ("turboVision.safetensors", "sd15", None),
        ("hyperRealism.safetensors", "sdxl", None),
        ("hyperPhotorealism_v1.safetensors", "sd15", None),
        ("hyperDetailed_v1.safetensors", "sd15", None),
        ("My Hyper Detailed Mix.safetensors", "sdxl", None),
        ("hyper3d_v2.safetensors", "sd15", None),
        ("hyper_cute_3d.safetensors", "sd15", None),
        ("hyper.safetensors", "sdxl", "Hyper-SD"),
        ("Hyper-8steps-portraits.safetensors", "sdxl", "Hyper-SD"),
        ("realisticVisionV60B1_v51HyperVAE.safetensors", "sd15", "Hyper-SD"),
        ("ponyRealism_V21MainHyper4S.safetensors", "sdxl", "Hyper-SD"),
        ("wildcardxXLTURBO_wildcardxXLTURBOV10.safetensors", "sdxl", "SDXL Turbo"),
        ("wildcardxXLLIGHTNING_wildcardxXL.safetensors", "sdxl", "SDXL-Lightning"),
        ("realitiesEdgeXLLCM_4STEP.safetensors", "sdxl", "LCM"),
        ("dreamshaper.safetensors", "sd15", None),
        ("flux_lightning.safetensors", "flux", None),
    ],
)
def test_a_name_alone_is_a_guess(tmp_path, name, family, method):
    inside = few_steps_inside(checkpoint(tmp_path / name), family)
    assert (inside and inside.method) == method
    if inside:
        found = plan_inside(family, 1 if "1step" in name else 4, inside)
        assert (found.variant, found.file, found.source) == ("merged", None, "a guess")
        assert "by its name alone, so no LoRA is added. If not, choose a variant." in found.reason


def test_the_steps_in_a_merges_name_count_as_those_in_a_loras(tmp_path):
    inside = few_steps_inside(checkpoint(tmp_path / "photo_Lightning_4Steps.safetensors"), "sdxl")
    assert "untried" not in plan_inside("sdxl", 4, inside).reason
    assert "It is made for exactly 4: set steps to 4, others are untried." in plan_inside("sdxl", 8, inside).reason
    one = few_steps_inside(checkpoint(tmp_path / "sdxl_lightning_1step_x0.safetensors"), "sdxl")
    assert "It is made for 2 to 8 steps: set steps to 2, others are untried." in plan_inside("sdxl", 1, one).reason
    lcm = few_steps_inside(checkpoint(tmp_path / "photo_LCM_4steps.safetensors"), "sdxl")
    assert "untried" not in plan_inside("sdxl", 8, lcm).reason  # one file for all of its steps


def test_a_file_that_cannot_be_read_is_told_by_its_name(tmp_path):
    pickled = tmp_path / "realvis_lcm.ckpt"
    pickled.write_bytes(b"PK\x03\x04")
    assert few_steps_inside(pickled, "sd15").method == "LCM"
    assert few_steps_inside(tmp_path / "gone_lcm.safetensors", "sd15").method == "LCM"


def test_one_step_checkpoint_built_here_keeps_its_start(tmp_path):
    inside = few_steps_inside(checkpoint(tmp_path / "mine.safetensors", hyper_sd__start_timestep="777"), "sdxl")
    found = plan_inside("sdxl", 1, inside)
    assert (found.start_timestep, found.cfg, found.timesteps()) == (777, 1.0, [777])
    assert "has Hyper-SD inside by its metadata" in found.reason


def test_too_many_steps_say_what_the_refusal_rests_on(tmp_path):
    inside = few_steps_inside(checkpoint(tmp_path / "hyper_mix.safetensors"), "sdxl")
    with pytest.raises(ScheduleError, match=r"by its name alone.*If not, choose a variant.*takes 1 to 8 steps, got 12"):
        plan_inside("sdxl", 12, inside)


@pytest.mark.parametrize(
    "note",
    [
        "", "x", "[]", "null", "[" * 10_000, "{}", '{"variant": "n-step"}',
        '{"file": "a", "variant": "n-step", "steps": "4", "strength": 1}',
        '{"file": "a", "variant": "n-step", "steps": 1e3, "strength": 1}',
        '{"file": "a", "variant": "n-step", "steps": 4, "strength": NaN}',
        '{"file": "a", "variant": "n-step", "steps": 4, "strength": -1}',
        '{"file": "a", "variant": "n-step", "steps": 1, "strength": 1, "start_timestep": 1000}',
        '{"file": "a", "variant": "auto", "steps": 4, "strength": 1}',
        '{"file": "a", "variant": ["n-step"], "steps": 4, "strength": 1}',
        '{"file": "a", "variant": "n-step", "steps": 4, "strength": 1, "recipe": "lcm"}',
        '{"file": 7, "variant": "n-step", "steps": 4, "strength": 1}',
    ],
)  # fmt: skip
def test_a_note_that_says_nothing_usable_is_none(tmp_path, note):
    assert few_steps_inside(checkpoint(tmp_path / "x.safetensors", hyper_sd__few_step=note), "sd15") is None


def test_a_baked_lora_of_a_method_that_is_not_known_here_is_told_and_gets_none_on_top(tmp_path):
    note = '{"file": "mine.safetensors", "variant": "other", "steps": 4, "strength": 1, "recipe": "of another computer"}'
    inside = few_steps_inside(checkpoint(tmp_path / "x.safetensors", hyper_sd__few_step=note), "sd15")
    with pytest.raises(
        UnsupportedModelError, match=r"x\.safetensors has mine\.safetensors .* is in no catalogue here\. Choose"
    ):
        plan_inside("sd15", 4, inside)


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_bake_notes_a_few_step_lora_and_a_style_leaves_the_note(tmp_path):
    base = world.write_base(tmp_path / "base.safetensors", "sd15")
    style = world.write_lora(tmp_path / "style.safetensors", world.layers("sd15")[:4])
    few = tmp_path / "mine.safetensors"
    save_file(load_file(style), few, {"hyper_sd_objective": "TSCD distillation", "hyper_sd_stages": "8-4"})

    def baked(on, lora, name, strength):
        bake(on, lora, tmp_path / name, strength=strength)
        return few_steps_inside(tmp_path / name, "sd15")

    assert baked(base, style, "a.safetensors", 1.0) is None
    first = baked(base, few, "b.safetensors", 0.5)
    assert (first.known, first.strength) == (Recognition("mine.safetensors", "metadata", "n-step", 4), 0.5)
    assert baked(tmp_path / "b.safetensors", style, "c.safetensors", 1.0) == replace(first, checkpoint="c.safetensors")
    assert baked(tmp_path / "c.safetensors", few, "d.safetensors", -0.5) is None  # taken away again
    assert FEW_STEP in json.loads(metadata_of(tmp_path / "d.safetensors")["hyper_sd.before"])
    assert baked(base, few, "e.safetensors", 0) is None


def test_bake_notes_what_a_persons_own_catalogue_tells_and_says_so(tmp_path):
    lcm = next(recipe for recipe in CATALOG.recipes if recipe.name == "lcm")
    mine = replace(CATALOG, recipes=(*CATALOG.recipes, replace(lcm, name="mine", lora_names=("mydistil",))))
    base = world.write_base(tmp_path / "base.safetensors", "sd15")
    lora = world.write_lora(tmp_path / "mydistil.safetensors", [x for x in world.layers("sd15") if not x.encoder])
    plain = bake(base, lora, tmp_path / "plain.safetensors")
    assert (plain.note, few_steps_inside(plain.path, "sd15", mine)) == ("", None)
    baked = bake(base, lora, tmp_path / "noted.safetensors", catalog=mine)
    assert (
        baked.note == "It is noted in noted.safetensors how mydistil.safetensors is sampled: leave the variant at auto there."
    )
    assert few_steps_inside(baked.path, "sd15", mine).known.recipe.name == "mine"
