"""How strongly a file is applied: by its own scale where it has one, and by 0.125 where the released files have none."""

import json

import pytest
from hyper_sd.models.catalog import load_catalog
from hyper_sd.models.file_plan import plan_for_file
from hyper_sd.models.lora import effective_strength, plan, read_lora, scale_note
from hyper_sd.models.recognition import Recognition
from hyper_sd.tests.models.synthetic_loras import MODULES, Form, write_lora, write_tensors

FAMILIES = list(MODULES)
UNETS = ["sd15", "sdxl"]
PAIR = [("x.lora_down.weight", (4, 8), None), ("x.lora_up.weight", (8, 4), None)]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "a.safetensors"


@pytest.mark.parametrize("family", FAMILIES)
def test_strength_of_a_released_file_is_the_plans(family, file):
    info, chosen = read_lora(write_lora(file, family, 1)), plan(family, 8)
    assert effective_strength(info, chosen) == chosen.strength == (1.0 if family in UNETS else 0.125)
    assert scale_note(info, chosen) == (
        "" if family in UNETS else "The file has no alpha, as released: strength 0.125 stands for it."
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_strength_is_one_where_the_file_has_alpha(family, file):
    info = read_lora(write_lora(file, family, 1, Form("kohya", 8.0)))
    assert effective_strength(info, plan(family, 8)) == 1.0
    assert scale_note(info, plan(family, 8)) == ""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("alpha", "scale"), [(8, 0.125), (64, 1.0)])
def test_strength_follows_the_scale_in_the_metadata(family, alpha, scale, file):
    described = json.dumps({"transformer.r": 64, "transformer.lora_alpha": alpha, "transformer.alpha_pattern": {}})
    info = read_lora(write_lora(file, family, 1, Form("transformer", None, {"lora_adapter_metadata": described})))
    assert info.described_scale == scale
    assert effective_strength(info, plan(family, 8)) == scale
    assert f"{scale:g}" in scale_note(info, plan(family, 8))


@pytest.mark.parametrize(
    "described",
    ["", "[]", "1", "{}", "[" * 99999, '{"a.r": 0, "a.lora_alpha": 1}', '{"a.r": 2}', '{"a.r": "2", "a.lora_alpha": 1}',
     '{"a.r": 2, "a.lora_alpha": 1, "a.alpha_pattern": {"x": 1}}',
     '{"a.r": 2, "a.lora_alpha": 2, "b.r": 4, "b.lora_alpha": 1}'],
)  # fmt: skip
def test_metadata_that_gives_no_one_scale_is_left_out(described, file):
    assert read_lora(write_tensors(file, PAIR, {"lora_adapter_metadata": described})).described_scale is None


def test_sd15_file_without_alpha_keeps_its_strength_and_a_note_says_so(file):
    info = read_lora(write_lora(file, "sd15", 1, Form("kohya")))
    assert effective_strength(info, plan("sd15", 8)) == 1.0
    assert "no alpha, unlike the released one" in scale_note(info, plan("sd15", 8))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_own_file_without_alpha_is_taken_as_it_was_saved(family, file):
    info = read_lora(write_lora(file, family, 1, Form("transformer" if family not in UNETS else "kohya")))
    chosen = plan_for_file(family, 8, "auto", Recognition("own.safetensors"))
    assert effective_strength(info, chosen) == 1.0
    assert scale_note(info, chosen).startswith("The file has no alpha: if the picture is overdone")
    named = load_catalog().get(plan(family, 8).entry_id)  # a converted one, say: the name alone tells
    chosen = plan_for_file(family, 8, "auto", Recognition(named.name, "name", named.kind, named.steps, named))
    assert effective_strength(info, chosen) == (1.0 if family in UNETS else 0.125)
