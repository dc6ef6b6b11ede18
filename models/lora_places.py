"""Where the layers that a LoRA changes lie in a checkpoint file of SD1.5 or SDXL, whatever naming either of them has."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .families import FAMILIES, NETWORK
from .lora_keys import layer_path
from .unet_names import names_in_both

_TEXT_ENCODER = re.compile(
    r"(?:lora_te(?P<kohya>\d?)_|text_encoder(?:_(?P<diffusers>\d))?\.|text_encoders\.clip_(?P<comfyui>[lg])\.transformer\.)"
    r"(?P<path>.+)"
)
_NUMBERS = {"l": "1", "g": "2", "": "1"}
_CLIP_L = (FAMILIES["sd15"].text_encoders, f"{FAMILIES['sdxl'].text_encoders}0.transformer.")
_CLIP_G = f"{FAMILIES['sdxl'].text_encoders}1.model."  # in OpenCLIP's names
_RESBLOCK = re.compile(r"transformer\.resblocks\.(?P<index>\d+)\.(?P<layer>.+)")
_IN_RESBLOCK = {"attn.out_proj.weight": "self_attn_out_proj", "mlp.c_fc.weight": "mlp_fc1", "mlp.c_proj.weight": "mlp_fc2"}


TEXT = "te"  # how the names of text encoders' layers begin


class Place(NamedTuple):
    """A tensor of the checkpoint, or a part of it, that a layer's weight is.

    Args:
        key: the tensor's name.
        shape: of the weight, [out, in] or [out, in, height, width].
        first: the first row of it in the tensor; OpenCLIP keeps queries, keys and values in one.
        is_turned: whether the tensor is the weight's transpose.
    """

    key: str
    shape: tuple[int, ...]
    first: int = 0
    is_turned: bool = False


def layer_name(module: str) -> str:
    """Returns one name for a layer, in which all namings of LoRA files agree: "unet ..." or "te1 ...", with underscores.

    Args:
        module: a LoRA's module, as lora_keys.split_key gives it.
    """
    found = _TEXT_ENCODER.fullmatch(module.removeprefix("base_model.model."))
    if not found:
        return f"unet {layer_path(module)}"
    number = found["kohya"] or found["diffusers"] or found["comfyui"] or ""
    return f"{TEXT}{_NUMBERS.get(number, number)} {found['path'].replace('.', '_')}"


def places_in(header: Mapping[str, Any]) -> dict[str, Place]:
    """Returns layer_name -> place of every layer in a checkpoint or a lone UNet that a LoRA can change.

    Args:
        header: of the file, without metadata. A UNet may have the original names or diffusers'.
    """
    weights = {name: tuple(entry["shape"]) for name, entry in header.items() if len(entry["shape"]) > 1}
    return dict([*_unet(weights), *_clip_l(weights), *_clip_g(weights)])


def _unet(weights: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Place]]:
    prefix = NETWORK if any(name.startswith(NETWORK) for name in weights) else ""
    end = ".weight"
    keys = {n[len(prefix) : -len(end)]: n for n in weights if n.startswith(prefix) and n.endswith(end)}
    both = names_in_both(keys)
    for module, other in both.items():
        place = Place(keys[module], weights[keys[module]])
        for path in (module.replace(".", "_"), other.replace(".", "_")):
            yield f"unet {path}", place
            if path.endswith("_to_out_0"):
                yield f"unet {path.removesuffix('_0')}", place  # diffusers' old name


def _clip_l(weights: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Place]]:
    for name, shape in weights.items():
        start = next((start for start in _CLIP_L if name.startswith(start)), None)
        if start and name.endswith(".weight"):
            path = name[len(start) :].removesuffix(".weight").removeprefix("text_model.")  # which some old checkpoints lack
            yield f"te1 text_model_{path.replace('.', '_')}", Place(name, shape)


def _clip_g(weights: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Place]]:
    for name, shape in weights.items():
        if name == f"{_CLIP_G}text_projection":
            yield "te2 text_projection", Place(name, shape[::-1], is_turned=True)
        found = _RESBLOCK.fullmatch(name.removeprefix(_CLIP_G)) if name.startswith(_CLIP_G) else None
        if found is None:
            continue
        layer = f"te2 text_model_encoder_layers_{found['index']}"
        if found["layer"] in _IN_RESBLOCK:
            yield f"{layer}_{_IN_RESBLOCK[found['layer']]}", Place(name, shape)
        if found["layer"] == "attn.in_proj_weight":
            rows = shape[0] // 3
            for at, part in enumerate(("q_proj", "k_proj", "v_proj")):
                yield f"{layer}_self_attn_{part}", Place(name, (rows, shape[1]), at * rows)
