"""One record for each family, and one answer to which family a checkpoint is of."""

import dataclasses

import pytest
from hyper_sd.models.families import FAMILIES, STREAM_WIDTHS, TEXT_WIDTHS, family_of_checkpoint, model_of, title_of
from hyper_sd.models.lora_family import family_of
from hyper_sd.models.sampling_plan import VARIANTS
from hyper_sd.tests.models import synthetic_checkpoints as make
from hyper_sd.tests.models.synthetic_loras import layers


def test_the_families_are_those_of_the_catalogue_and_frozen():
    assert list(FAMILIES) == ["sd15", "sdxl", "sd3", "flux"]
    assert [family.title for family in FAMILIES.values()] == ["SD1.5", "SDXL", "SD3", "FLUX.1-dev"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        FAMILIES["sd15"].title = "other"


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.key)
def test_a_family_is_either_a_unet_or_a_transformer(family):
    is_unet = family.text_width is not None and family.cross_attentions > 0
    is_transformer = family.stream_width is not None and sum(family.blocks) > 0
    assert is_unet != is_transformer
    assert is_transformer == family.is_flow
    assert set(family.variants) <= set(VARIANTS)
    assert family.latent_channels == (16 if family.is_flow else 4)


KNOWN = {
    "SD1.5": (make.full(make.sd15(), "SD1.5"), "sd15"),
    "SD1.5 for inpainting": (make.full(make.sd15(channels=9), "SD1.5"), "sd15"),
    "SD1.5 alone": (make.sd15(), "sd15"),
    "SD1.5 alone, diffusers": (make.sd15("diffusers"), "sd15"),
    "SDXL": (make.full(make.sdxl(), "SDXL"), "sdxl"),
    "SDXL for inpainting": (make.full(make.sdxl(channels=9), "SDXL"), "sdxl"),
    "SDXL alone": (make.sdxl(), "sdxl"),
    "SDXL alone, diffusers": (make.sdxl("diffusers"), "sdxl"),
    "SD3": (make.full(make.sd3(), "flow"), "sd3"),
    "SD3 alone": (make.sd3(), "sd3"),
    "SD3 alone, diffusers": (make.diffusers_sd3(), "sd3"),
    "FLUX": (make.full(make.flux(), "flow"), "flux"),
    "FLUX alone": (make.flux(), "flux"),
    "FLUX alone, diffusers": (make.diffusers_flux(), "flux"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_checkpoint_of_a_family_is_known_by_its_sizes(name):
    tensors, family = KNOWN[name]
    assert family_of_checkpoint(make.header(tensors)) == family


@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16", "F8_E4M3", "F8_E5M2"])
def test_every_kind_of_float_is_known(dtype):
    assert family_of_checkpoint(make.header(make.full(make.sdxl(), "SDXL"), dtype)) == "sdxl"


OTHERS = {
    "the SDXL refiner": make.full(make.refiner(), "refiner"),
    "the SDXL refiner, with SDXL's text encoders": make.full(make.refiner(), "SDXL"),
    "the SDXL refiner, alone": make.refiner("diffusers"),
    "SD2.x": make.full(make.sd15(width=1024), "SD2.x"),
    "SD2.x, with SD1.5's text encoder": make.full(make.sd15(width=1024), "SD1.5"),
    "a relative of SDXL with another number of layers": make.full(make.ssd_1b(), "SDXL"),
    "a relative of SD1.5 with another number of layers": make.full(make.sd15()[:-3], "SD1.5"),
    "a UNet of text width 192": make.full(make.sd15(width=192), "SD1.5"),
    "SD3.5 Large": make.full(make.sd3(width=2432, depth=38), "flow"),
    "SD3.5 Medium": make.full(make.sd3(second=13), "flow"),
    "Chroma": make.full([*make.flux(), ("distilled_guidance_layer.in_proj.weight", (5120, 64))], "flow"),
    "a relative of FLUX.1-dev with another number of layers": make.flux(double=8),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_relative_is_named_and_of_no_family(name):
    header = make.header(OTHERS[name])
    assert model_of(header) == name.partition(",")[0]
    assert family_of_checkpoint(header) is None


UNTOLD = {
    "nothing": {},
    "metadata alone": {"__metadata__": {"format": "pt"}},
    "a VAE": make.header([("decoder.conv_in.weight", (512, 4, 3, 3))]),
    "text encoders alone": make.header(make.TEXT_ENCODERS["SDXL"]),
    "names without the layers": make.header(
        [(f"{make.PREFIX}input_blocks.0.0.weight", (320, 4, 3, 3)), *make.TEXT_ENCODERS["SDXL"]]
    ),
    "a LoRA": make.header([("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight", (4, 2048))]),
    "a LoRA of FLUX": make.header([(f"double_blocks.{i}.img_attn.qkv.lora_A.weight", (4, 3072)) for i in range(19)]),
    "a video model": make.header(make.flux(20, 40, entry="img_in.proj")),
    "a quantised UNet": make.header(make.sdxl(), "U8"),
    "a quantised transformer": make.header(make.flux(), "U8"),
    "a shape that is none": {"mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight": {"dtype": "F16", "shape": []}},
}


@pytest.mark.parametrize("name", UNTOLD)
def test_what_cannot_be_told_is_of_no_family(name):
    assert family_of_checkpoint(UNTOLD[name]) is None


def test_averaged_weights_beside_the_network_do_not_count():
    averaged = [(f"model_ema.diffusion_model{name.replace('.', '')}", shape) for name, shape in make.sd15()]
    assert family_of_checkpoint(make.header([*make.full(make.sd15(), "SD1.5"), *averaged])) == "sd15"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_is_known_by_the_sizes_that_a_checkpoint_is_known_by(family):
    shapes = {layer.path.replace(".", "_"): (layer.width, 2) for layer in layers(family)}
    assert family_of(shapes) == family
    own = FAMILIES[family]
    assert TEXT_WIDTHS.get(own.text_width, STREAM_WIDTHS.get(own.stream_width)) == family
    if not own.is_flow:
        assert sum(path.endswith("attn2_to_k") for path in shapes) == own.cross_attentions


@pytest.mark.parametrize(
    ("name", "title"), [("flux", "FLUX.1-dev"), ("SD2.x", "SD2.x"), ("the SDXL refiner", "the SDXL refiner")]
)
def test_every_model_has_a_name_for_people(name, title):
    assert title_of(name) == title
