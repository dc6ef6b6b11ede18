"""The tensors that tell one model from another, under the real models' names and with their sizes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .synthetic_unets import write

PREFIX = "model.diffusion_model."
Tensors = list[tuple[str, tuple[int, ...]]]


def unet(
    down: Sequence[int], middle: int, up: Sequence[int], width: int, layout: str = "original", channels: int = 4
) -> Tensors:
    """Returns a UNet's input layer and the layers that read the text, as the checkpoint has them.

    Args:
        down: transformer blocks of every residual block on the way down, two a level.
        middle: of the middle.
        up: of every residual block on the way up, three a level.
        width: of the text states.
        layout: "original" or "diffusers".
        channels: of the latents that it is given, 9 for inpainting.
    """
    if layout == "original":
        first, names = "input_blocks.0.0", ("input_blocks.{0}.1", "middle_block.1", "output_blocks.{0}.1")
        places = [[(1 + at + at // 2,) for at in range(len(down))], [(at,) for at in range(len(up))]]
    else:
        first, names = "conv_in", ("down_blocks.{0}.attentions.{1}", "mid_block.attentions.0", "up_blocks.{0}.attentions.{1}")
        places = [[divmod(at, 2) for at in range(len(down))], [divmod(at, 3) for at in range(len(up))]]
    blocks = [(names[0].format(*place), depth) for place, depth in zip(places[0], down, strict=True)]
    blocks += [(names[1], middle)]
    blocks += [(names[2].format(*place), depth) for place, depth in zip(places[1], up, strict=True)]
    attentions = [f"{block}.transformer_blocks.{i}.attn2.to_k.weight" for block, depth in blocks for i in range(depth)]
    return [(f"{first}.weight", (320, channels, 3, 3)), *((name, (640, width)) for name in attentions)]


def sd15(layout: str = "original", width: int = 768, **given: Any) -> Tensors:
    """Returns SD1.5's UNet, or with another text width SD2.x's."""
    return unet([1] * 6 + [0] * 2, 1, [0] * 3 + [1] * 9, width, layout, **given)


def sdxl(layout: str = "original", **given: Any) -> Tensors:
    """Returns SDXL's UNet."""
    return unet([0, 0, 2, 2, 10, 10], 10, [10, 10, 10, 2, 2, 2, 0, 0, 0], 2048, layout, **given)


def refiner(layout: str = "original") -> Tensors:
    """Returns the SDXL refiner's UNet."""
    return unet([0, 0, 4, 4, 4, 4, 0, 0], 4, [0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0], 1280, layout)


def ssd_1b() -> Tensors:
    """Returns the UNet of SSD-1B, SDXL with blocks left out."""
    return unet([0, 0, 2, 2, 4, 4], 0, [4, 4, 10, 2, 1, 1, 0, 0, 0], 2048)


def sd3(width: int = 1536, depth: int = 24, second: int = 0) -> Tensors:
    """Returns SD3's transformer, or a relative's; `second` blocks have a second attention, as SD3.5 Medium's."""
    blocks = [(f"joint_blocks.{i}.x_block.attn.qkv.weight", (3 * width, width)) for i in range(depth)]
    more = [(f"joint_blocks.{i}.x_block.attn2.qkv.weight", (3 * width, width)) for i in range(second)]
    return [("x_embedder.proj.weight", (width, 16, 2, 2)), ("x_embedder.proj.bias", (width,)), *blocks, *more]


def flux(double: int = 19, single: int = 38, width: int = 3072, entry: str = "img_in") -> Tensors:
    """Returns FLUX.1's transformer, or a relative's; `entry` is the name of its first layer."""
    blocks = [(f"double_blocks.{i}.img_attn.qkv.weight", (3 * width, width)) for i in range(double)]
    more = [(f"single_blocks.{i}.linear1.weight", (7 * width, width)) for i in range(single)]
    return [(f"{entry}.weight", (width, 64)), (f"{entry}.bias", (width,)), *blocks, *more]


def diffusers_sd3() -> Tensors:
    """Returns SD3's transformer in diffusers' names."""
    blocks = [(f"transformer_blocks.{i}.attn.add_q_proj.weight", (1536, 1536)) for i in range(24)]
    return [("pos_embed.proj.weight", (1536, 16, 2, 2)), ("pos_embed.proj.bias", (1536,)), *blocks]


def diffusers_flux() -> Tensors:
    """Returns FLUX.1's transformer in diffusers' names."""
    blocks = [(f"transformer_blocks.{i}.attn.add_q_proj.weight", (3072, 3072)) for i in range(19)]
    more = [(f"single_transformer_blocks.{i}.attn.to_q.weight", (3072, 3072)) for i in range(38)]
    return [("x_embedder.weight", (3072, 64)), ("x_embedder.bias", (3072,)), *blocks, *more]


TEXT_ENCODERS = {
    "SD1.5": [("cond_stage_model.transformer.text_model.final_layer_norm.weight", (768,))],
    "SD2.x": [("cond_stage_model.model.ln_final.weight", (1024,))],
    "SDXL": [
        ("conditioner.embedders.0.transformer.text_model.final_layer_norm.weight", (768,)),
        ("conditioner.embedders.1.model.ln_final.weight", (1280,)),
    ],
    "refiner": [("conditioner.embedders.0.model.ln_final.weight", (1280,))],
    "flow": [("text_encoders.clip_l.transformer.text_model.final_layer_norm.weight", (768,))],
}


def full(network: Tensors, text_encoders: str) -> Tensors:
    """Returns a full checkpoint: a network, the VAE's first layer, and the text encoders of one of TEXT_ENCODERS."""
    vae = [("first_stage_model.decoder.conv_in.weight", (512, 4, 3, 3))]
    return [(PREFIX + name, shape) for name, shape in network] + vae + TEXT_ENCODERS[text_encoders]


def header(tensors: Tensors, dtype: str = "F16") -> dict[str, Any]:
    """Returns the tensors as a file's header has them; the offsets are not those of a file."""
    return {name: {"dtype": dtype, "shape": list(shape), "data_offsets": [0, 0]} for name, shape in tensors}


def write_checkpoint(path: Path, tensors: Tensors) -> Path:
    """Writes a file with these tensors, which takes hardly any room on the disk, and returns its path."""
    return write(path, tensors, torch.float16, sparse=True)


def loaded(tensors: Tensors) -> torch.nn.Module:
    """Returns a network with these parameters and no memory for them."""
    root = torch.nn.Module()
    for name, shape in tensors:
        *path, last = name.split(".")
        layer = root
        for part in path:
            if part not in layer._modules:
                layer.add_module(part, torch.nn.Module())
            layer = layer._modules[part]
        layer.register_parameter(last, torch.nn.Parameter(torch.empty(shape, device="meta")))
    return root
