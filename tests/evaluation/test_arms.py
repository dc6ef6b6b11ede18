"""LoRAs are drawn with by the plans of their files."""

from pathlib import Path

import pytest
from hyper_sd.errors import EvaluationError, UnsupportedModelError
from hyper_sd.evaluation.arms import base_arms, lora_arms, require_arms
from hyper_sd.evaluation.plan import Model
from hyper_sd.models.embedded import LORAS, ONE_STEP, UNIFIED
from hyper_sd.tests.models.synthetic_loras import write_lora

DEMO = Model("demo model", "sd15", "abc", 128)
SDXL = Model("sdxl", "sdxl", "abc", 1024, Path("sdxl.safetensors"))


def settings(arms):
    return [(a.label, a.loras[0].strength, a.eta, a.num_segments, a.cfg, a.start_timestep) for a in arms]


def test_unified_lora_of_the_demo_model_follows_its_plan_at_every_count():
    assert settings(lora_arms("unified", DEMO)) == [
        ("unified, 1 step", 1.0, 1.0, 1, 1.0, 800),
        ("unified, 2 steps", 0.75, 1.0, 1, 1.0, 999),
        ("unified, 4 steps", 0.75, 1.0, 1, 1.0, 999),
        ("unified, 8 steps", 1.0, 0.3, 1, 1.0, 999),
    ]
    assert [arm.steps for arm in lora_arms("unified", DEMO, (3,))] == [3]


def test_n_step_loras_of_the_demo_model_are_drawn_at_their_own_counts():
    arms = lora_arms("n-step", DEMO)
    assert [(a.steps, a.num_segments, a.loras[0].path) for a in arms] == [
        (1, 1, LORAS[ONE_STEP]), (2, 2, LORAS["n-step", 2]), (4, 4, LORAS["n-step", 4]), (8, 8, LORAS["n-step", 8]),
    ]  # fmt: skip
    assert [arm.steps for arm in lora_arms("n-step", DEMO, (4, 5))] == [4]


def test_file_is_drawn_at_what_it_was_made_for():
    assert [arm.steps for arm in lora_arms(str(LORAS["n-step", 4]), DEMO)] == [4]
    assert [arm.steps for arm in lora_arms(str(LORAS[UNIFIED]), DEMO)] == [1, 2, 4, 8]


def test_second_lora_lies_on_the_first_at_its_strength():
    other = LORAS["n-step", 2]
    (arm,) = lora_arms(f"unified+{other}*0.5", DEMO, (4,))
    assert [(use.path, use.strength) for use in arm.loras] == [(LORAS[UNIFIED], 0.75), (other, 0.5)]
    assert arm.label == f"unified + {other.stem}, 4 steps"
    assert lora_arms(f"unified+{other}", DEMO, (4,))[0].loras[1].strength == 1
    with pytest.raises(EvaluationError, match=r"strength of .* is not a number"):
        lora_arms(f"unified+{other}*half", DEMO, (4,))


def test_lora_that_is_not_there_names_what_may_be_given():
    with pytest.raises(EvaluationError, match=r"no LoRA none\.safetensors.*unified or n-step"):
        lora_arms("none.safetensors", DEMO)
    with pytest.raises(EvaluationError, match="no LoRA unified; give the path"):
        lora_arms("unified", SDXL)


def test_lora_of_another_family_is_refused(tmp_path):
    path = write_lora(tmp_path / "a.safetensors", "sdxl", rank=1)
    with pytest.raises(UnsupportedModelError, match="is a LoRA for SDXL"):
        lora_arms(str(path), DEMO)
    with pytest.raises(UnsupportedModelError, match="is a LoRA for SDXL"):
        lora_arms(f"unified+{path}", DEMO)
    with pytest.raises(UnsupportedModelError, match="the model is SDXL"):
        lora_arms(str(LORAS[UNIFIED]), SDXL)
    assert [arm.steps for arm in lora_arms(str(path), SDXL)] == [1, 2, 4, 8]


def test_file_that_is_no_lora_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"not a lora")
    with pytest.raises(UnsupportedModelError):
        lora_arms(str(path), DEMO)


def test_nothing_to_draw_is_refused():
    with pytest.raises(EvaluationError, match="nothing to draw"):
        require_arms(lora_arms("n-step", DEMO, (5,)))
    assert [arm.slug for arm in require_arms(base_arms((25,), 7.0))] == ["base-25-steps"]
