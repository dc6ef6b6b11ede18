"""How much of a LoRA a model takes: which of its layers the model has, and which of those have the LoRA's sizes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UnsupportedModelError
from .lora_keys import split_key

Shape = Sequence[int]


@dataclass(frozen=True)
class Match:
    """How much of a LoRA a model takes.

    Args:
        matched: number of the LoRA's layers that the model has in the LoRA's sizes.
        modules: number of all of its layers.
        dropped: the tensors that have no place in the model.
        misfits: the layers that the model has in other sizes -> the two sizes, in words. They are left out, as hosts do.
    """

    matched: int
    modules: int
    dropped: tuple[str, ...] = ()
    misfits: Mapping[str, str] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the LoRA is left out."""
        return not self.dropped and not self.misfits

    @property
    def left_out(self) -> list[str]:
        """What is left out: the layers of other sizes with the two sizes, and those without a place."""
        layers = dict.fromkeys(split.module if (split := split_key(key)) else key for key in self.dropped)
        return [*(f"{module} ({sizes})" for module, sizes in (self.misfits or {}).items()), *layers]

    def __str__(self) -> str:
        text = f"{self.matched} of {self.modules} modules matched"
        if self.dropped:
            text += f"; {len(self.dropped)} tensors have no place in this model, such as {self.dropped[0]}"
        if self.misfits:
            module, sizes = next(iter(self.misfits.items()))
            text += f"; {len(self.misfits)} modules of other sizes are left out, such as {module} ({sizes})"
        return text


def match(tensors: Mapping[str, Any], offered: Mapping[str, Shape | None]) -> Match:
    """Returns how much of a LoRA has a place in a model, by name and by size.

    Args:
        tensors: the LoRA's, under names after host_keys.
        offered: the host's names of the model's layers, and of its text encoders -> the shape of the weight, or of the part of
            it that the name means; None where it is not known, which fits everything.
    """
    modules: dict[str, dict[str, Any]] = {}
    dropped = []
    for key, tensor in tensors.items():
        split = split_key(key)
        if split:
            modules.setdefault(split.module, {})[split.part] = tensor
        if split is None or split.module not in offered:
            dropped.append(key)
    placed = [name for name in modules if name in offered]
    misfits = {name: sizes for name in placed if (sizes := _misfit(modules[name], offered[name]))}
    return Match(len(placed) - len(misfits), len(modules), tuple(dropped), misfits)


def require_fit(found: Match, name: str, model: str) -> None:
    """Refuses a LoRA of which nothing has a place in a model, or most of what has a name in it has other sizes.

    Args:
        found: how much of it has one.
        name: of the LoRA's file.
        model: which model it is, for people.
    Raises: UnsupportedModelError naming both.
    """
    misfits = found.misfits or {}
    if len(misfits) > found.matched:
        raise UnsupportedModelError(
            f"{name} was made for a model of other sizes: {len(misfits)} of its {found.modules} modules do not fit this one, "
            f"{model} ({next(iter(misfits.values()))}); choose a LoRA made for it."
        )
    if not found.matched:
        raise UnsupportedModelError(f"No module of {name} has a place in this model; choose a LoRA made for {model}.")


def without(tensors: Mapping[str, Any], modules: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the tensors of a LoRA but those of some modules."""
    left_out = modules or {}
    return {key: t for key, t in tensors.items() if (split := split_key(key)) is None or split.module not in left_out}


def _misfit(parts: Mapping[str, Any], weight: Shape | None) -> str:
    """Returns the sizes of a module's change and of the layer in words, "" where they fit or cannot be told."""
    if weight is None or not weight:
        return ""
    if "reshape_weight" in parts:  # the host first pads the weight with zeros to this shape
        padded = [int(size) for size in parts["reshape_weight"].flatten().tolist()]
        if len(padded) != len(weight) or any(size < own for size, own in zip(padded, weight, strict=True)):
            return f"it is padded to {_worded(padded)}, the model's layer has {_worded(weight)}"
        weight = padded
    change = change_of({part: tuple(tensor.shape) for part, tensor in parts.items()})
    if change is None or change == (weight[0], math.prod(weight[1:])):
        return ""
    return f"its sizes are {_worded(change)}, the model's layer has {_worded((weight[0], math.prod(weight[1:])))}"


def _worded(sizes: Shape) -> str:
    return " x ".join(map(str, sizes))


def change_of(parts: Mapping[str, Shape]) -> tuple[int, int] | None:
    """Returns the size of the change that a module's tensors make to a weight, None for a kind that does not tell.

    Source: ComfyUI comfy/weight_adapter, LyCORIS. Convolutions count as matrices, with the kernel among the inputs: files
    hold them in either shape.

    Args:
        parts: shapes by part, as lora_keys.split_key names it.
    Returns: (outputs, inputs).
    """
    if "down" in parts and "up" in parts:
        down, up = parts["down"], parts["up"]
        return up[0], math.prod(down[1:]) * math.prod(parts.get("mid", ())[2:])
    if "hada_w1_a" in parts and "hada_w1_b" in parts:
        return _product(parts, "hada_w1_a", "hada_w1_b", "hada_t1")
    if any(part.startswith("lokr_w") for part in parts):
        first, second = (
            _matrix(parts[name]) if name in parts else _product(parts, f"{name}_a", f"{name}_b", kernel)
            for name, kernel in (("lokr_w1", ""), ("lokr_w2", "lokr_t2"))
        )
        return first and second and (first[0] * second[0], first[1] * second[1])
    whole = next((parts[part] for part in ("diff", "set_weight", "w_norm") if part in parts), None)
    return _matrix(whole) if whole else None


def _matrix(shape: Shape) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])


def _product(parts: Mapping[str, Shape], left: str, right: str, kernel: str) -> tuple[int, int] | None:
    """Returns the size of a product of two factors, [out, rank] and [rank, in], or with a kernel between both from the rank."""
    if left not in parts or right not in parts:
        return None
    first, second = parts[left], parts[right]
    if kernel in parts:
        return first[1], second[1] * math.prod(parts[kernel][2:])
    return first[0], math.prod(second[1:])
