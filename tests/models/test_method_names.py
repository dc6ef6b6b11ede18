"""Other methods' files told by words alone: in a LoRA's name or title, and in a checkpoint's name; and names that lie."""

import pytest
from hyper_sd.models.catalog import Catalog, load_catalog
from hyper_sd.models.file_plan import plan_for_file
from hyper_sd.models.recipe import tokens_of
from hyper_sd.models.recognition import named_recipe, recognise
from hyper_sd.tests.models.synthetic_loras import Form, tensors, write_sparse, write_tensors

CATALOG = load_catalog()


@pytest.mark.parametrize(
    ("name", "recipe", "steps"),
    [
        ("SDXL-Lightning-8steps-my-copy.safetensors", "sdxl-lightning", 8),
        ("sdxl_lightning_2step_lora_rank32.safetensors", "sdxl-lightning", 2),
        ("LCM_LoRA_Weights_SDXL.safetensors", "lcm", 0),
        ("lcm_sdxl.safetensors", "lcm", 0),
        ("hyperDetailed_lcm_lora.safetensors", "lcm", 0),
        ("sdxl_lightning_32step_lora.safetensors", "sdxl-lightning", 0),
        ("TCD-SDXL-LoRA-resized.safetensors", "tcd", 0),
        ("dmd2_sdxl_4step_lora_rank64.safetensors", "dmd2", 0),
        ("pcm_sdxl_smallcfg_4step_converted_fp16_v2.safetensors", "pcm-small-cfg", 4),
        ("lightning_storm_style.safetensors", None, 0),
        ("turbo charger.safetensors", None, 0),
        ("flash photography.safetensors", None, 0),
        ("Hyper-SDXL-lightning-lora.safetensors", None, 0),
        ("lcm-lora_sdxl-lightning_mix.safetensors", None, 0),
        ("elcmental-lora.safetensors", None, 0),
    ],
)
def test_name_with_a_methods_words_is_a_guess_and_other_words_are_none(tmp_path, name, recipe, steps):
    known = recognise(write_sparse(tmp_path / name, CATALOG.get("tdd-sdxl-lora")), Catalog((), CATALOG.recipes))
    assert (known.recipe.name if known.recipe else None, known.steps) == (recipe, steps)
    assert known.evidence == ("name" if recipe else "nothing")


@pytest.mark.parametrize(
    ("name", "title", "recipe"),
    [
        ("fast.safetensors", "sdxl_lightning_4step_lora", "sdxl-lightning"),
        ("fast.safetensors", "my style", None),
        ("fast.safetensors", "Hyper-SDXL lightning lora", None),
        ("lcm_lora.safetensors", "sdxl_lightning_4step_lora", None),
        ("lcm_lora.safetensors", "epoch 7", "lcm"),
        ("hyper mix.safetensors", "lcm_lora", None),
    ],
)
@pytest.mark.parametrize("key", ["modelspec.title", "ss_output_name"])
def test_title_in_the_metadata_is_a_guess_where_the_name_says_nothing_else(tmp_path, key, name, title, recipe):
    path = write_sparse(tmp_path / name, CATALOG.get("tdd-sdxl-lora"), **{key: title})
    known = recognise(path, Catalog((), CATALOG.recipes))
    assert (known.recipe.name if known.recipe else None) == recipe
    if known.recipe and name == "fast.safetensors":
        assert (known.evidence, known.steps, known.is_certain) == ("title", 4, False)
        found = plan_for_file("sdxl", 4, "auto", known)
        assert found.reason.startswith("By the title in its metadata alone this is SDXL-Lightning for 4 steps: Euler-like.")
        assert found.source == "a guess"


@pytest.mark.parametrize("without", ["resnets", "family", "text encoder"])
def test_style_with_a_methods_name_is_no_few_step_lora(tmp_path, without):
    made = tensors("sd15" if without == "family" else "sdxl", 1, Form("kohya"))
    if without == "resnets":
        made = [tensor for tensor in made if "resnets" not in tensor[0]]
    if without == "text encoder":
        parts = ("lora_down", (1, 768)), ("lora_up", (768, 1))
        made += [(f"lora_te1_text_model_encoder_layers_0_mlp_fc1.{part}.weight", shape, None) for part, shape in parts]
    path = write_tensors(tmp_path / "sdxl_lightning_4step_lora.safetensors", sorted(made))
    assert recognise(path, CATALOG).variant is None


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("juggernautXL_v9Rdphoto2Lightning.safetensors", "sdxl-lightning"),
        ("dreamshaperXL_lightningDPMSDE.safetensors", "sdxl-lightning"),
        ("DreamShaperXL_Turbo_v2_1.safetensors", "sdxl-turbo"),
        ("bigasp_DMD2_merge.safetensors", "dmd2"),
        ("dmd2_sdxl_1step_unet_fp16.safetensors", "dmd2-1step"),
        ("nitrosd-realism_comfyui.safetensors", "nitrosd-realism"),
        ("dreamshaper8LCM.safetensors", "lcm"),
        ("sd_xl_base_1.0.safetensors", None),
        ("turbovisionxl.safetensors", None),
        ("lightning-turbo-mix.safetensors", None),
        ("realvisHyperLightning.safetensors", None),
        ("hyperRealism_LCM.safetensors", "lcm"),
    ],
)
def test_merged_checkpoint_is_told_by_its_name_where_one_method_stands_in_it(name, recipe):
    found = named_recipe(name, CATALOG, "checkpoint_names")
    assert (found.name if found else None) == recipe


def test_names_come_apart_at_letters_digits_and_capitals():
    assert tokens_of("juggernautXL_v9Rdphoto2Lightning") == "-juggernaut-xl-v-9-rdphoto-2-lightning-"
    assert tokens_of("TCD-SD15-LoRA") == "-tcd-sd-15-lora-"
