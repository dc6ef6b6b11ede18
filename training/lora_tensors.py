"""Adapter sets as the tensors of LoRA files, and back: kohya's names, with alpha."""

import math
from collections.abc import Callable, Mapping

import torch

from ..errors import TrainingError
from ..models.unet_names import lora_names
from .lora_layers import STUDENT, AdapterSet, LoraLayers

PREFIX = "lora_unet_"
DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"
Pair = tuple[torch.Tensor, torch.Tensor]  # down [rank, inner, ..], up [outer, rank, ..] with the scale folded in
Rename = Callable[[str], str]


def kohya_name(module: str) -> str:
    """Returns "lora_unet_mid_block_attentions_0_proj_in" for the module "mid_block.attentions.0.proj_in"."""
    return PREFIX + module.replace(".", "_")


def rank_of(tensors: Mapping[str, torch.Tensor]) -> int:
    """Returns the highest rank of the modules of a LoRA in kohya's names, 0 for no LoRA."""
    return max((len(tensor) for key, tensor in tensors.items() if key.endswith(DOWN)), default=0)


def lora_state_dict(
    layers: LoraLayers, name: str, dtype: torch.dtype = torch.float16, rename: Rename | None = None
) -> dict[str, torch.Tensor]:
    """Returns lora_down.weight, lora_up.weight and alpha of every adapted layer.

    Args:
        layers: with the adapter set.
        name: of the adapter set.
        dtype: of the tensors.
        rename: a module's name in the network -> its name in the file; None takes unet_names.lora_names, for diffusers'
            networks. A host's network needs the host's own mapping to diffusers' names.
    """
    adapters, tensors = layers.sets[name], {}
    rename = rename or lora_names(layers.network)
    for module, down, up in zip(layers.layers, adapters.down, adapters.up, strict=True):
        key = kohya_name(rename(module))
        tensors[f"{key}.{DOWN}"] = down.detach().to("cpu", dtype)
        tensors[f"{key}.{UP}"] = up.detach().to("cpu", dtype)
        tensors[f"{key}.{ALPHA}"] = torch.tensor(adapters.lora_alpha, dtype=dtype)
    return tensors


def transformer_state_dict(layers: LoraLayers, name: str, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """Returns lora_A.weight and lora_B.weight of every adapted layer of a diffusers transformer, the scale folded into B.

    ComfyUI and diffusers read these names for SD3; the released SD3 LoRAs have them too, and no alpha.
    """
    adapters, tensors = layers.sets[name], {}
    for module, down, up in zip(layers.layers, adapters.down, adapters.up, strict=True):
        tensors[f"transformer.{module}.lora_A.weight"] = down.detach().to("cpu", dtype)
        tensors[f"transformer.{module}.lora_B.weight"] = (up.detach() * adapters.scale).to("cpu", dtype)
    return tensors


@torch.no_grad()
def set_from_tensors(
    tensors: Mapping[str, torch.Tensor],
    layers: LoraLayers,
    name: str = STUDENT,
    *,
    rename: Rename | None = None,
    source: str = "the LoRA",
    partial: bool = False,
    rank: int | None = None,
) -> AdapterSet:
    """Adds an adapter set with the weights of a LoRA in kohya's names, to train on, to teach or to sample with.

    Where the LoRA has another scale than the set, `up` is multiplied by the ratio of the two. Rows that a smaller rank leaves
    free start as in a new set, where they change nothing yet.

    Args:
        tensors: of the LoRA, by name.
        layers: that get the set.
        name: of the set.
        rename: as in lora_state_dict(); None tries both namings of diffusers' networks.
        source: what messages call the LoRA.
        partial: whether modules may be missing in the LoRA, which then start as in a new set; one at least must be there.
        rank: of a set of its own size; None takes that of the layers.
    Raises: TrainingError when its modules are not the network's, or its rank is higher than the set's; no set is added then.
    """
    keys = _matching_keys(tensors, layers, rename, source, partial)
    _check_shapes(tensors, layers, keys, source, layers.rank if rank is None else rank)
    adapters = layers.add(name, rank=rank)
    for key, down, up in zip(keys, adapters.down, adapters.up, strict=True):
        if f"{key}.{DOWN}" not in tensors:
            continue
        low, high = tensors[f"{key}.{DOWN}"], tensors[f"{key}.{UP}"]
        own = len(low)
        scale = float(tensors.get(f"{key}.{ALPHA}", own)) / own / adapters.scale
        up.zero_()
        down[:own], up[:, :own] = low.to(down).view_as(down[:own]), high.to(up).view_as(up[:, :own]) * scale
    return adapters


def _matching_keys(
    tensors: Mapping[str, torch.Tensor], layers: LoraLayers, rename: Rename | None, source: str, partial: bool
) -> list[str]:
    """Returns the LoRA's name of every adapted layer, in the naming that all its tensors follow."""
    weights = {key for key in tensors if not key.endswith(f".{ALPHA}")}
    for names in [rename] if rename else [lora_names(layers.network), str]:
        keys = [kohya_name(names(module)) for module in layers.layers]
        pairs = [{f"{key}.{DOWN}", f"{key}.{UP}"} for key in keys]
        expected = set().union(*(pair for pair in pairs if pair & weights or not partial))
        different = weights ^ expected
        if expected and not different:
            return keys
    example = f", for example {min(different)}" if different else ""
    raise TrainingError(
        f"{source} does not fit this model: {len(different)} of {max(len(expected), len(weights))} tensors differ{example}; "
        "choose a LoRA made for this family of models."
    )


def _check_shapes(tensors: Mapping[str, torch.Tensor], layers: LoraLayers, keys: list[str], source: str, most: int) -> None:
    """Refuses tensors of another shape than the layers'; kernels may be flattened, as ComfyUI's own training writes them."""
    for key, layer in zip(keys, layers.layers.values(), strict=True):
        if f"{key}.{DOWN}" not in tensors:
            continue
        low, high = tensors[f"{key}.{DOWN}"], tensors[f"{key}.{UP}"]
        rank, (out_width, *inner) = len(low), layer.weight.shape
        flat = [math.prod(inner)]
        fits = list(low.shape[1:]) in (inner, flat) and list(high.flatten(1).shape) == [out_width, rank]
        if rank > most or not fits:
            raise TrainingError(
                f"{source} has {key} with rank {rank} and shape {tuple(low.shape[1:])}, here are rank {most} and "
                f"{tuple(inner)}; train with rank {rank} or more, or choose another LoRA."
            )


def concatenated(
    first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor], strength: float = 1.0
) -> dict[str, torch.Tensor]:
    """Returns the LoRA that changes a network by exactly as much as both together, the first one at strength 1.

    up1 down1 + up2 down2 = [up1 up2] [down1; down2]: the ranks add up, the `down`s stand above one another, the `up`s side by
    side. Every module gets the rank of the largest sum, filled up with zeros, and an alpha equal to it, which is scale 1.
    Kernels that are flattened in one of the two get the shape they have in the other.

    Args:
        first: tensors in kohya's names; without an alpha the scale is 1.
        second: the same of the other LoRA.
        strength: of the second one.
    Raises: TrainingError for tensors other than pairs of `down` and `up`, and for modules whose shapes differ.
    """
    parts = _pairs(first), {module: (down, strength * up) for module, (down, up) in _pairs(second).items()}
    modules = {module: [part[module] for part in parts if module in part] for part in parts for module in part}
    rank = max((sum(len(down) for down, _ in pairs) for pairs in modules.values()), default=0)
    tensors = {}
    for module, pairs in modules.items():
        down, up = _side_by_side(module, pairs)
        free = rank - len(down)
        tensors[f"{module}.{DOWN}"] = torch.cat([down, down.new_zeros(free, *down.shape[1:])])
        tensors[f"{module}.{UP}"] = torch.cat([up, up.new_zeros(len(up), free, *up.shape[2:])], 1)
        tensors[f"{module}.{ALPHA}"] = torch.tensor(float(rank))
    return tensors


def _pairs(tensors: Mapping[str, torch.Tensor]) -> dict[str, Pair]:
    """Returns the pair of every module."""
    parts_of: dict[str, set[str]] = {}
    for key in tensors:
        module, _, part = key.partition(".")
        if part not in (DOWN, UP, ALPHA):
            raise TrainingError(f"{key} is no part of a plain LoRA; choose one with {DOWN}, {UP} and alpha alone.")
        parts_of.setdefault(module, set()).add(part)
    for module, parts in parts_of.items():
        if not parts >= {DOWN, UP}:
            raise TrainingError(f"The LoRA has only {', '.join(sorted(parts))} of {module}; choose a file that is whole.")
    return {module: _pair(tensors, module) for module in parts_of}


def _pair(tensors: Mapping[str, torch.Tensor], module: str) -> Pair:
    down, up = tensors[f"{module}.{DOWN}"], tensors[f"{module}.{UP}"]
    return down, up * (float(tensors.get(f"{module}.{ALPHA}", len(down))) / len(down))


def _side_by_side(module: str, pairs: list[Pair]) -> Pair:
    like_down, like_up = max(pairs, key=lambda pair: pair[0].ndim)
    if len({(down[0].numel(), len(up)) for down, up in pairs}) > 1:
        shapes = " and ".join(f"{tuple(down.shape)} to {tuple(up.shape)}" for down, up in pairs)
        raise TrainingError(f"The two LoRAs differ in {module}: {shapes}; choose two of the same family of models.")
    dtype, device = torch.promote_types(pairs[0][0].dtype, pairs[-1][0].dtype), pairs[0][0].device
    downs = [down.to(device, dtype).reshape(-1, *like_down.shape[1:]) for down, _ in pairs]
    ups = [up.to(device, dtype).reshape(len(up), -1, *like_up.shape[2:]) for _, up in pairs]
    return torch.cat(downs), torch.cat(ups, 1)
