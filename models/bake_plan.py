"""What baking a LoRA into a checkpoint would do, from the two files' heads and the LoRA's alphas; and what cannot be baked."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import UnsupportedModelError
from .casting import DTYPES
from .families import FAMILIES, model_of
from .lora import LoraInfo, Tensor, check_family, described, modules_of
from .lora_fit import Match, match, require_fit
from .lora_keys import host_keys, split_key
from .lora_places import TEXT, Place, layer_name, places_in
from .tensor_file import TensorFile
from .unet_file import describe

PRODUCT = {"down", "up", "mid", "alpha"}  # the parts of a module that is a product of matrices
SCALES = (".scale_weight", ".weight_scale", ".comfy_quant")  # how the names end of what belongs to a quantised weight
REMEDY = "load it in the host beside the checkpoint as it is, or have it converted into a plain LoRA first."


@dataclass(frozen=True)
class Change:
    """What a module of a LoRA adds to a weight: scale * up @ down, or scale * up @ mid @ down.

    Args:
        place: of the weight in the checkpoint.
        down: the name of its tensor in the LoRA's file.
        up: the same.
        mid: the same, "" where there is none.
        scale: strength * lora_alpha / rank.
    """

    place: Place
    down: str
    up: str
    mid: str
    scale: float


@dataclass(frozen=True)
class BakePlan:
    """What baking would do.

    Args:
        changes: a tensor's name in the checkpoint -> what is added to it.
        match: how much of the LoRA finds a place.
        note: a sentence on the LoRA's scale, often empty.
    """

    changes: Mapping[str, list[Change]]
    match: Match
    note: str


def plan_bake(model: TensorFile, lora: TensorFile, strength: float, text_strength: float) -> BakePlan:
    """Returns what baking would do.

    Args:
        model: the checkpoint, or a UNet alone.
        lora: the LoRA.
        strength: in the UNet. At 0, and where an alpha is 0, a weight is not changed at all.
        text_strength: in the text encoders.
    Raises: UnsupportedModelError for a file of another kind, a LoRA of another family, or one that does not fit.
    """
    _require_plain(model)
    title = _require_family(model)
    info = described(lora)
    modules = modules_of(lora.path, lora.header)
    _require_products(lora, info, modules)
    check_family(info, model_of(model.header))
    places = places_in(model.header)
    found = {name: places[layer] for name in modules if (layer := layer_name(name)) in places}
    fitting = _require_match(lora, found, title)
    changes: dict[str, list[Change]] = {}
    for name, place in found.items():
        if name in (fitting.misfits or {}):
            continue
        scale = _scale(lora, modules[name]) * (text_strength if layer_name(name).startswith(TEXT) else strength)
        if scale:
            names = {part: tensor.name for part, tensor in modules[name].items()}
            changes.setdefault(place.key, []).append(Change(place, names["down"], names["up"], names.get("mid", ""), scale))
    return BakePlan(changes, fitting, _note(info))


def _require_family(model: TensorFile) -> str:
    """Returns the title of the model's family."""
    family = FAMILIES.get(model_of(model.header) or "")
    if family is None or family.is_flow:
        titles = " or ".join(family.title for family in FAMILIES.values() if not family.is_flow)
        raise UnsupportedModelError(
            f"{model.path.name} is {describe(model.header)}; a LoRA is baked into a checkpoint of {titles}, or a UNet of one."
        )
    return family.title


def _require_products(lora: TensorFile, info: LoraInfo, modules: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Refuses what is no product of matrices, and a product whose matrices do not go together."""
    name = lora.path.name
    if info.kind != "LoRA":
        raise UnsupportedModelError(f"{name} is of the kind {info.kind}, and only a plain LoRA can be baked; {REMEDY}")
    host_keys(lora.header)  # refuses several adapters in one file
    unread = [key for key in lora.header if split_key(key) is None and "lora" in key]
    unread += [tensor.name for parts in modules.values() for part, tensor in parts.items() if part not in PRODUCT]
    if unread:
        raise UnsupportedModelError(
            f"{name} has tensors beside those of a plain LoRA, such as {unread[0][:80]}, which cannot be baked; {REMEDY}"
        )
    if sum(map(len, modules.values())) < sum(bool(key) and key.module in modules for key in map(split_key, lora.header)):
        raise UnsupportedModelError(f"{name} has a part of one layer twice, in two namings; save it again.")
    for module, parts in modules.items():
        if problem := _problem(parts):
            raise UnsupportedModelError(f"{name} cannot be baked, {module[:80]} {problem}.")


def _problem(parts: Mapping[str, Tensor]) -> str:
    """Returns what is wrong with a module of a plain LoRA and what to do, "" where nothing is."""
    if not {"down", "up"} <= set(parts):
        return "has not both halves of its product: download or save it again"
    up, rank, mid = parts["up"].shape, parts["down"].shape[0], parts["mid"].shape if "mid" in parts else None
    if math.prod(up[2:]) != 1 or (mid is not None and (len(mid) != 4 or mid[:2] != (rank, rank))):
        shapes = " and ".join(str(list(tensor.shape)) for tensor in parts.values())
        return f"has weights that are no product, {shapes}: download or save it again"
    if "alpha" in parts and math.prod(parts["alpha"].shape) != 1:
        return "has an alpha that is no number: save it again"
    odd = [tensor.dtype for part, tensor in parts.items() if part != "alpha" and tensor.dtype not in DTYPES]
    return f"is stored as {odd[0]}: take the file in fp32, fp16 or bf16" if odd else ""


def _require_match(lora: TensorFile, found: Mapping[str, Place], title: str) -> Match:
    """Returns how much of the LoRA has a place, which must be the greater part."""
    name = lora.path.name
    twice = [key for key, count in Counter((place.key, place.first) for place in found.values()).items() if count > 1]
    if twice:
        pair = [module for module, place in found.items() if (place.key, place.first) == twice[0]]
        raise UnsupportedModelError(f"{name} changes one layer twice, as {' and as '.join(pair)[:160]}; save it again.")
    tensors = {key: Tensor(key, entry["dtype"], tuple(entry["shape"])) for key, entry in lora.header.items()}
    fitting = match(tensors, {module: place.shape for module, place in found.items()})
    require_fit(fitting, name, title)
    if fitting.matched * 2 < fitting.modules:
        raise UnsupportedModelError(f"Most of {name} has no place in this model: {fitting}. Choose a LoRA made for {title}.")
    return fitting


def _require_plain(model: TensorFile) -> None:
    """Refuses a checkpoint with weights that are stored quantised: in whole numbers, or in fp8 with a scale beside them."""
    kinds = {key: entry["dtype"] for key, entry in model.header.items() if key.endswith((".weight", *SCALES))}
    odd = [key for key, dtype in kinds.items() if key.endswith(SCALES) or dtype not in DTYPES]
    if odd:
        raise UnsupportedModelError(
            f"{model.path.name} is quantised ({odd[0][:80]}), and a LoRA cannot be added to such weights; take it in fp16, "
            "bf16 or fp32."
        )


def _scale(lora: TensorFile, parts: Mapping[str, Tensor]) -> float:
    """Returns lora_alpha / rank; without an alpha it is 1, as in every host."""
    if "alpha" not in parts:
        return 1.0
    return lora.tensor(parts["alpha"].name).double().item() / parts["down"].shape[0]


def _note(info: LoraInfo) -> str:
    if info.alpha is not None or info.described_scale is None:
        return ""
    return (
        f"The file has no alpha, its metadata says lora_alpha / r = {info.described_scale:g}. Hosts do not read that, nor does "
        "baking: give it as the strength to have the scale of the training."
    )
