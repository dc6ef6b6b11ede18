"""What is read from a LoRA file's head: naming, family, rank, alpha; and which model it fits."""

import re

import numpy as np
import pytest
import torch
from hyper_sd.errors import UnsupportedModelError
from hyper_sd.models.lora import (
    check_family,
    load_lora_file,
    read_lora,
)
from hyper_sd.tests.models.synthetic_loras import (
    BYTES,
    MODULES,
    NAMINGS,
    RELEASED,
    Form,
    head,
    layers,
    tensors,
    write_lora,
    write_tensors,
)

FAMILIES = list(MODULES)
UNETS = ["sd15", "sdxl"]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "a.safetensors"


@pytest.mark.parametrize("family", FAMILIES)
def test_synthetic_files_at_rank_64_have_the_released_size_to_the_byte(family):
    first, data = head(tensors(family, 64), RELEASED[family].metadata)
    assert len(layers(family)) == MODULES[family]
    assert len(first) + data == BYTES[family]


def _network(family):
    diffusers = pytest.importorskip("diffusers")
    if family == "sd3":
        return diffusers.SD3Transformer2DModel(num_layers=24, num_attention_heads=24, caption_projection_dim=1536)
    if family == "flux":
        return diffusers.FluxTransformer2DModel(guidance_embeds=True)
    if family == "sd15":
        return diffusers.UNet2DConditionModel(cross_attention_dim=768)
    return diffusers.UNet2DConditionModel(
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_synthetic_layers_are_those_of_the_real_network(family):
    with torch.device("meta"):
        network = _network(family)
    weights = {
        name: tuple(m.weight.shape) for name, m in network.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)
    }
    if family in UNETS:  # the released ones leave the ends of the network and its time embedding alone
        weights = {name: shape for name, shape in weights.items() if not re.match("conv_|time_embedding|add_embedding", name)}
    assert {layer.path: layer.weight for layer in layers(family)} == weights


@pytest.mark.parametrize("family", FAMILIES)
def test_released_form_is_told_from_the_head(family, file):
    info = read_lora(write_lora(file, family, 4))
    assert (info.family, info.rank, info.modules, info.kind) == (family, 4, MODULES[family], "LoRA")
    assert (info.dtype, info.text_encoder_modules) == ("float32", 0)
    assert (info.format, info.alpha) == (("kohya", 8.0) if family in UNETS else ("peft", None))
    assert f"{MODULES[family]} modules" in str(info)
    check_family(info, family)
    load_lora_file(file)


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_a_large_file_reads_its_head_alone(family, file):
    first, data = head(tensors(family, 64), RELEASED[family].metadata)
    with file.open("wb") as sparse:
        sparse.write(first)
        sparse.truncate(len(first) + data)
    info = read_lora(file)
    assert info.rank == 64
    assert file.stat().st_size == BYTES[family]


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_family_and_modules_are_told_in_every_naming(naming, family, file):
    info = read_lora(write_lora(file, family, 1, Form(naming)))
    wanted = {"kohya": "kohya", "diffusers": "diffusers"}.get(naming, "peft")
    assert (info.family, info.modules, info.format, info.alpha) == (family, MODULES[family], wanted, None)


@pytest.mark.parametrize(
    ("family", "part"),
    [
        ("sd15", r"attn1"), ("sd15", r"attn2\.to_k"), ("sd15", r"resnets"), ("sd15", r"samplers|resnets"), ("sd15", r"proj_in"),
        ("sdxl", r"attn1"), ("sdxl", r"attn2\.to_v"), ("sdxl", r"ff\."), ("sdxl", r"proj_|attn1"),
        ("sd3", r"attn"), ("sd3", r"\.0\.ff\."), ("sd3", r"add_k_proj"), ("sd3", r"norm1\.linear"),
        ("flux", r"single_transformer_blocks"), ("flux", r"^transformer_blocks.*attn"), ("flux", r"proj_mlp"),
    ],
)  # fmt: skip
def test_family_is_told_from_a_part_of_the_layers(family, part, file):
    made = [t for layer in layers(family) if re.search(part, layer.path) for t in NAMINGS["kohya"](layer, 1, None)]
    assert read_lora(write_tensors(file, made)).family == family


def test_family_of_layers_both_unets_have_is_left_open(file):
    made = [t for layer in layers("sdxl") if "mid_block.resnets" in layer.path for t in NAMINGS["kohya"](layer, 1, 1.0)]
    info = read_lora(write_tensors(file, made))
    assert info.family is None
    check_family(info, "sdxl")
    check_family(info, "sd15")


@pytest.mark.parametrize(
    ("name", "width", "wanted"),
    [
        ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", 1024, "SD2.x"),
        ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", 1280, "the SDXL refiner"),
        ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", 99, "a UNet of cross-attention width 99"),
        ("lora_unet_down_blocks_0_attentions_0_proj_in", 320, "SD2.x"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q", 640, "sdxl"),
        ("lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q", 320, "sd15"),
        ("diffusion_model.output_blocks.9.0.in_layers.2", 640, "sd15"),
        ("diffusion_model.joint_blocks.3.context_block.attn.qkv", 1536, "sd3"),
        ("diffusion_model.double_blocks.3.img_attn.qkv", 3072, "flux"),
        ("lora_unet_single_blocks_37_linear1", 3072, "flux"),
        ("transformer.transformer_blocks.59.attn.to_q", 3072, "a transformer of FLUX's width, but deeper"),
        ("transformer.single_transformer_blocks.38.attn.to_q", 3072, "a transformer of FLUX's width, but deeper"),
        ("transformer.transformer_blocks.0.attn.to_q", 2432, "SD3.5 Large"),
        ("transformer.transformer_blocks.0.attn2.to_q", 1536, "SD3.5 Medium"),
        ("transformer.transformer_blocks.0.attn1.to_q", 1152, "a transformer of width 1152"),
        ("transformer.joint_transformer_blocks.0.attn.to_q", 3072, "an unknown kind of model"),
        ("diffusion_model.blocks.0.cross_attn.k", 5120, "an unknown kind of model"),
    ],
)
def test_other_families_are_named(name, width, wanted, file):
    info = read_lora(
        write_tensors(file, [(f"{name}.lora_down.weight", (2, width), None), (f"{name}.lora_up.weight", (8, 2), None)])
    )
    assert info.family.startswith(wanted)
    if wanted not in FAMILIES:
        with pytest.raises(UnsupportedModelError, match="the model is SDXL"):
            check_family(info, "sdxl")


@pytest.mark.parametrize("lora", FAMILIES)
@pytest.mark.parametrize("model", FAMILIES)
def test_lora_of_another_family_is_refused_naming_both(lora, model, file):
    info = read_lora(write_lora(file, lora, 1))
    if lora == model:
        return check_family(info, model)
    names = {"sd15": "SD1.5", "sdxl": "SDXL", "sd3": "SD3", "flux": "FLUX.1-dev"}
    with pytest.raises(
        UnsupportedModelError, match=f"{re.escape(file.name)} is a LoRA for {names[lora]}, the model is {names[model]}"
    ):
        check_family(info, model)
    return None


def test_text_encoder_modules_are_counted_apart(file):
    text = [t for p in ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "text_encoder_2.text_model.encoder.layers.0.mlp.fc2")
            for t in ((f"{p}.lora_down.weight", (4, 768), None), (f"{p}.lora_up.weight", (8, 4), None))]  # fmt: skip
    info = read_lora(write_tensors(file, tensors("sdxl", 4, Form("kohya")) + text))
    assert (info.family, info.modules, info.text_encoder_modules) == ("sdxl", 790, 2)
    assert "790 modules (2 in text encoders)" in str(info)
    assert read_lora(write_tensors(file, text)).family is None


def test_mixed_ranks_and_alphas_are_given_as_ranges(file):
    conv = [t for layer in layers("sd15") if layer.kernel for t in NAMINGS["kohya"](layer, 2, 1.0)]
    linear = [t for layer in layers("sd15") if not layer.kernel for t in NAMINGS["kohya"](layer, 4, 8.0)]
    info = read_lora(write_tensors(file, conv + linear))
    assert (info.rank, info.alpha) == ((2, 4), (1.0, 8.0))
    assert "rank 2 to 4, alpha 1 to 8" in str(info)


@pytest.mark.parametrize(
    ("parts", "kind", "rank"),
    [
        ({"lora_down.weight": (4, 320), "lora_up.weight": (320, 4), "dora_scale": (320, 1)}, "DoRA", 4),
        ({"lora_A.weight": (4, 320), "lora_B.weight": (320, 4), "lora_magnitude_vector": (320,)}, "DoRA", 4),
        ({"hada_w1_a": (320, 4), "hada_w1_b": (4, 320), "hada_w2_a": (320, 4), "hada_w2_b": (4, 320)}, "LoHa", 4),
        ({"lokr_w1": (8, 8), "lokr_w2": (40, 40)}, "LoKr", None),
        ({"oft_blocks": (4, 8, 8)}, "OFT", None),
        ({"lora_down.weight": (4, 320, 1, 1), "lora_mid.weight": (4, 4, 3, 3), "lora_up.weight": (320, 4, 1, 1)}, "LoRA", 4),
    ],
)
def test_relatives_of_lora_are_named(parts, kind, rank, file):
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    info = read_lora(write_tensors(file, [(f"{name}.{part}", shape, None) for part, shape in parts.items()]))
    assert (info.kind, info.rank, info.family, info.modules) == (kind, rank, "sd15", 1)


@pytest.mark.parametrize(
    ("parts", "lacking"),
    [
        (("hada_w1_a", "hada_w1_b"), "no hada_w2_a and no hada_w2_b"),
        (("hada_w1_a", "hada_w2_a", "hada_w2_b"), "no hada_w1_b"),
        (("lokr_w1", "lokr_w2_a"), "no lokr_w2"),
        (("lokr_w1_a", "lokr_w2"), "no lokr_w1"),
    ],
)
def test_module_without_all_of_its_factors_is_refused(parts, lacking, file):
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    write_tensors(file, [(f"{name}.{part}", (8, 8), None) for part in parts])
    with pytest.raises(UnsupportedModelError, match=f"is incomplete: {name} has {lacking}. Download or save it again"):
        read_lora(file)


@pytest.mark.parametrize("name", ["lora_unet_time_embedding_linear_1", "diffusion_model.time_embed.0", "lora_unet_conv_in"])
def test_layers_that_several_families_have_tell_no_family(name, file):
    pair = [(f"{name}.lora_down.weight", (4, 320), None), (f"{name}.lora_up.weight", (1280, 4), None)]
    assert read_lora(write_tensors(file, pair)).family is None


def test_written_values_are_those_the_header_describes(file):
    load_file = pytest.importorskip("safetensors.numpy").load_file
    loaded = load_file(write_lora(file, "sd15", 2))
    assert {name: value.shape for name, value in loaded.items()} == {name: shape for name, shape, _ in tensors("sd15", 2)}
    assert all(0 < np.abs(value).max() <= 8 for value in loaded.values())
