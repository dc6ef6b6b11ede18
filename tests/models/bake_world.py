"""Small checkpoints with every layer of SD1.5's and SDXL's kind under the real names, and LoRAs over them in every naming."""

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from hyper_sd.models.sdxl_unet import UnetShape
from safetensors.torch import save_file

UNET, VAE = "model.diffusion_model.", "first_stage_model.decoder.conv_in.weight"
# As wide as the families' own where that tells them apart: in the text states.
SDXL = UnetShape(channels=32, context=2048, vector=2816)
_SD15 = UnetShape(channels=32, multipliers=(1, 2, 4, 4), depths=(1, 1, 1, 1), context=768)
_NOT_IN_SD15 = re.compile(r"add_embedding\.|(?:down_blocks\.3|up_blocks\.0)\.attentions\.")
_IN_TEXT = {"self_attn.q_proj": (1, 1), "self_attn.k_proj": (1, 1), "self_attn.v_proj": (1, 1), "self_attn.out_proj": (1, 1)}
_IN_TEXT |= {"mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
_OPENCLIP = {"self_attn.out_proj": "attn.out_proj.weight", "mlp.fc1": "mlp.c_fc.weight", "mlp.fc2": "mlp.c_proj.weight"}
DEPTH, WIDTHS = 2, {1: 32, 2: 48}  # of the text encoders


class Layer(NamedTuple):
    """A layer that a LoRA can change.

    Args:
        encoder: 0 for the UNet, 1 or 2 for a text encoder.
        path: in diffusers.
        original: in the original layout; the same as `path` in a text encoder.
        key: the tensor of a full checkpoint that has its weight.
        shape: of the weight.
        rows: the first row of the tensor that is it and the one after the last; None for all.
    """

    encoder: int
    path: str
    original: str
    key: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None


def unet(family: str) -> list[tuple[str, str, tuple[int, ...]]]:
    """Returns (name in diffusers, name in the original layout, shape) of every tensor of a small UNet."""
    if family == "sdxl":
        return [tuple(tensor) for tensor in SDXL.tensors()]
    tensors = []
    for name, original, shape in _SD15.tensors():
        if _NOT_IN_SD15.match(name):
            continue
        kernel = (1, 1) if re.search(r"proj_(in|out)\.weight$", name) else ()
        tensors.append((name, original.replace("output_blocks.2.2.conv", "output_blocks.2.1.conv"), (*shape, *kernel)))
    return tensors


def layers(family: str) -> list[Layer]:
    """Returns every layer of the small model that a LoRA can change."""
    found = [
        Layer(0, name.removesuffix(".weight"), original.removesuffix(".weight"), UNET + original, shape)
        for name, original, shape in unet(family)
        if len(shape) > 1
    ]
    start = "cond_stage_model." if family == "sd15" else "conditioner.embedders.0."
    for block in range(DEPTH):
        for layer, (out, read) in _IN_TEXT.items():
            path = f"text_model.encoder.layers.{block}.{layer}"
            key = f"{start}transformer.{path}.weight"
            found.append(Layer(1, path, path, key, (out * WIDTHS[1], read * WIDTHS[1])))
            if family == "sdxl":
                found.append(_openclip(block, layer, path, (out * WIDTHS[2], read * WIDTHS[2])))
    return found


def _openclip(block: int, layer: str, path: str, shape: tuple[int, int]) -> Layer:
    start = f"conditioner.embedders.1.model.transformer.resblocks.{block}."
    if layer in _OPENCLIP:
        return Layer(2, path, path, start + _OPENCLIP[layer], shape)
    at = ("q", "k", "v").index(layer.removeprefix("self_attn.")[0]) * shape[0]
    return Layer(2, path, path, f"{start}attn.in_proj_weight", shape, (at, at + shape[0]))


def part_of(held: dict[str, torch.Tensor], layer: Layer) -> torch.Tensor:
    """Returns a layer's weight out of a checkpoint's tensors."""
    return held[layer.key][slice(*layer.rows)] if layer.rows else held[layer.key]


def tensors(family: str, dtype: torch.dtype = torch.float16, seed: int = 0) -> dict[str, torch.Tensor]:
    """Returns a full checkpoint; among it float32 weights, whole numbers and a tensor that no LoRA knows."""
    shapes = {UNET + original: shape for _, original, shape in unet(family)}
    for layer in layers(family):
        if layer.encoder:
            rows = 3 * layer.shape[0] if layer.rows else layer.shape[0]
            shapes[layer.key] = (rows, layer.shape[1])
    shapes |= {VAE: (8, 4, 3, 3)}
    if family == "sdxl":
        shapes["conditioner.embedders.1.model.text_projection"] = (WIDTHS[2], WIDTHS[2] + 4)
    generator = torch.Generator().manual_seed(seed)
    held = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
        held[name] = values.to(torch.float32 if name == VAE else dtype)
    start = "cond_stage_model." if family == "sd15" else "conditioner.embedders.0."
    return held | {f"{start}transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}


def write_base(path: Path, family: str, dtype: torch.dtype = torch.float16, metadata: dict[str, str] | None = None) -> Path:
    """Writes a full checkpoint and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors(family, dtype), path, metadata)
    return path


def write_lone(path: Path, family: str, layout: str, prefix: str = "") -> Path:
    """Writes the UNet alone, in "diffusers" or "original" names, and returns its path."""
    held = tensors(family)
    names = {UNET + original: (name if layout == "diffusers" else original) for name, original, _ in unet(family)}
    save_file({prefix + names[key]: tensor for key, tensor in held.items() if key in names}, path)
    return path


def _kohya(layer: Layer, path: str) -> str:
    start = f"lora_te{layer.encoder}_" if layer.encoder else "lora_unet_"
    return start + path.replace(".", "_")


def _kohya_sd15(layer: Layer) -> str:
    return _kohya(layer, layer.path).replace("lora_te1_", "lora_te_")


def _dotted(layer: Layer) -> str:
    start = {0: "unet.", 1: "text_encoder.", 2: "text_encoder_2."}[layer.encoder]
    return start + layer.path


def _attention(layer: Layer) -> str:
    """Returns the names of diffusers' LoRAs before PEFT, which have an attention's layers only."""
    path = re.sub(r"\.(attn[12])\.(to_[qkv]|to_out)(?:\.0)?$", r".\1.processor.\2_lora", layer.path)
    return f"unet.{path}" if not layer.encoder and path != layer.path else ""


def _comfyui(layer: Layer) -> str:
    start = {0: "diffusion_model.", 1: "text_encoders.clip_l.transformer.", 2: "text_encoders.clip_g.transformer."}
    return start[layer.encoder] + layer.original


# How a naming calls a layer's module, "" where it has no name for it, and the two halves and what ends the names.
NAMINGS: dict[str, tuple[Callable[[Layer], str], str, str]] = {
    "kohya": (lambda layer: _kohya(layer, layer.path), "lora_down.weight", "lora_up.weight"),
    "kohya, original names": (lambda layer: _kohya(layer, layer.original), "lora_down.weight", "lora_up.weight"),
    "kohya for SD1.5": (_kohya_sd15, "lora_down.weight", "lora_up.weight"),
    "diffusers": (_dotted, "lora.down.weight", "lora.up.weight"),
    "diffusers before PEFT": (_attention, "down.weight", "up.weight"),
    "diffusers, text encoders before PEFT": (_dotted, "lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
    "PEFT": (lambda layer: f"base_model.model.{_dotted(layer)}", "lora_A.weight", "lora_B.weight"),
    "PEFT in diffusers": (_dotted, "lora_A.weight", "lora_B.weight"),
    "PEFT with an adapter": (_dotted, "lora_A.default.weight", "lora_B.default.weight"),
    "ComfyUI": (_comfyui, "lora_down.weight", "lora_up.weight"),
}


def lora(
    listed: Iterable[Layer],
    naming: str = "kohya",
    rank: int = 2,
    alpha: float | None = 1.0,
    mid: bool = False,
    scale: float = 0.1,
) -> tuple[dict[str, torch.Tensor], dict[Layer, dict[str, torch.Tensor]]]:
    """Returns a LoRA's tensors as a file has them, and layer -> its parts, for the layers that the naming has names for.

    Args:
        listed: the layers.
        naming: a key of NAMINGS.
        rank: of every module.
        alpha: of every module, None for a file without.
        mid: whether 3x3 convolutions have three parts.
        scale: of the random values.
    """
    name_of, down_end, up_end = NAMINGS[naming]
    generator, file, parts = torch.Generator().manual_seed(1), {}, {}

    def random(*shape: int) -> torch.Tensor:
        return scale * torch.randn(shape, generator=generator)

    for layer in listed:
        name = name_of(layer)
        if not name:
            continue
        out, read, *kernel = layer.shape
        is_three = mid and kernel and kernel[0] > 1
        down = random(rank, read, *([1] * len(kernel) if is_three else kernel))
        held = {"down": down, "up": random(out, rank, *[1] * len(kernel))}
        if is_three:
            held["mid"] = random(rank, rank, *kernel)
            file[f"{name}.lora_mid.weight"] = held["mid"]
        file |= {f"{name}.{down_end}": held["down"], f"{name}.{up_end}": held["up"]}
        if alpha is not None:
            file[f"{name.removesuffix('_lora')}.alpha"] = torch.tensor(alpha)
        parts[layer] = held
    return file, parts


def write_lora(path: Path, listed: Iterable[Layer], **options) -> Path:
    """Writes a LoRA file, see lora(), and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(lora(listed, **options)[0], path)
    return path
