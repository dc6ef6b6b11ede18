"""What a LoRA file is, read from its head alone: naming, family, rank, alpha; and whether it fits a model."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..errors import UnsupportedModelError
from .casting import require_finite
from .families import FAMILIES, title_of
from .lora_family import family_of
from .lora_keys import DOWN, host_keys, is_text_encoder, layer_path, naming, split_key
from .lora_plan import LoraPlan, plan
from .tensor_file import DTYPES, TensorFile, open_tensors

__all__ = [
    "LoraInfo", "LoraPlan",
    "check_family", "effective_strength", "host_keys", "load_lora_file", "plan", "read_lora", "scale_note",
]  # fmt: skip

KINDS = {"hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT", "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA"}
HADA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}


class Tensor(NamedTuple):
    """One tensor of a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LoraInfo:
    """A LoRA file's description.

    Args:
        path: of the file.
        format: whose names it has: "kohya", "diffusers", "peft" or "comfyui".
        kind: "LoRA", or a relative of it: "DoRA", "LoHa", "LoKr", "OFT".
        family: a key of FAMILIES, another family's plain name, or None where it cannot be told.
        rank: (lowest, highest) where modules differ, None for a kind without one.
        alpha: of the network's modules, (lowest, highest) where they differ, None where there is none: hosts scale by 1 then.
        modules: number of layers that it changes.
        text_encoder_modules: how many of them are in text encoders.
        dtype: of most tensors.
        described_scale: lora_alpha / r of diffusers' metadata, written in place of alpha and not read by the hosts, or None.
    """

    path: Path
    format: str
    kind: str
    family: str | None
    rank: int | tuple[int, int] | None
    alpha: float | tuple[float, float] | None
    modules: int
    text_encoder_modules: int
    dtype: str
    described_scale: float | None = None

    @property
    def family_name(self) -> str:
        """The family as people call it."""
        return title_of(self.family) if self.family else "an unknown family"

    def __str__(self) -> str:
        text = f" ({self.text_encoder_modules} in text encoders)" if self.text_encoder_modules else ""
        return (
            f"{self.kind} for {self.family_name}, {self.format} names, {_worded('rank', self.rank)}, "
            f"{_worded('alpha', self.alpha)}, {self.modules} modules{text}, {self.dtype}"
        )


def read_lora(path: Path) -> LoraInfo:
    """Returns what a LoRA file holds; of its data only the alphas, a number each, are read.

    Raises: UnsupportedModelError for a file that cannot be read, is no safetensors file, is cut off, holds no LoRA, or holds
        one that a host would break on: half a pair, ranks that differ within a pair, alpha for some modules only.
    """
    return _reading(path, described)


def load_lora_file(path: Path, report: Callable[[int, int], None] | None = None) -> tuple[LoraInfo, dict[str, torch.Tensor]]:
    """Returns what a LoRA file holds, and its tensors, in memory of their own: those that were checked, and no others.

    Args:
        path: of the file.
        report: called with (tensors done, tensors). What it raises ends the reading.
    Raises: UnsupportedModelError as read_lora(), and for a file that changes while it is read, one with a NaN or an infinity,
        and one that this pack has written with a hash of its data, which is another now.
    """

    def load(file: TensorFile) -> tuple[LoraInfo, dict[str, torch.Tensor]]:
        done = 0

        def check(name: str, tensor: torch.Tensor) -> None:
            nonlocal done
            require_finite(file.path, name, tensor)
            done += 1
            if report:
                report(done, len(file.header))

        return described(file), file.tensors(check)

    return _reading(path, load)


def _reading(path: Path, read: Callable[[TensorFile], Any]) -> Any:
    try:
        with open_tensors(path) as file:
            return read(file)
    except OSError as error:
        raise UnsupportedModelError(f"{path} cannot be read ({error.strerror}); choose a .safetensors LoRA file.") from error


def described(file: TensorFile) -> LoraInfo:
    """Returns what an open file holds, as read_lora()."""
    path, header = file.path, file.header
    modules = modules_of(path, header)
    ranks = [rank for name, parts in modules.items() if (rank := _rank(path, name, parts)) is not None]
    names = [tensor.name for parts in modules.values() for tensor in parts.values()]
    return LoraInfo(
        path=path,
        format=_most(map(naming, names)),
        kind=next((kind for part, kind in KINDS.items() if any(part in key for key in header)), "LoRA"),
        family=family_of({layer_path(n): _down(p) for n, p in modules.items() if not is_text_encoder(n)}),
        rank=_span(ranks),
        alpha=_span(_alphas(file, modules)),
        modules=len(modules),
        text_encoder_modules=sum(map(is_text_encoder, modules)),
        dtype=_most(_dtype(t.dtype) for parts in modules.values() for p, t in parts.items() if p != "alpha"),
        described_scale=_described_scale(file.metadata),
    )


def modules_of(path: Path, header: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Returns module -> part -> tensor."""
    modules: dict[str, dict[str, Tensor]] = {}
    for name, entry in header.items():
        key = split_key(name)
        if key:
            tensor = Tensor(name, entry["dtype"], tuple(entry["shape"]))
            modules.setdefault(key.module, {})[key.part] = tensor
    changing = {name: parts for name, parts in modules.items() if set(parts) - {"alpha"}}
    if not changing:
        raise UnsupportedModelError(
            f"{path} holds no LoRA: none of its {len(header)} tensors is a lora_down or lora_A, the first is "
            f"{min(header)[:80]}. Give a LoRA file; whole models and VAEs have loaders of their own."
        )
    return changing


def _rank(path: Path, module: str, parts: Mapping[str, Tensor]) -> int | None:
    """Returns a module's rank, checked against both halves of the pair."""
    lacking = _lacking(parts)
    if lacking:
        raise UnsupportedModelError(f"{path} is incomplete: {module[:80]} has no {lacking}. Download or save it again.")
    if "hada_w1_b" in parts:
        return next(iter(parts["hada_w1_b"].shape), None)
    down, up = parts.get("down"), parts.get("up")
    if not down and not up:
        return None
    if not down or not up:
        raise UnsupportedModelError(
            f"{path} is incomplete: {module[:80]} has its {'lora_down' if down else 'lora_up'} weight but not its "
            f"{'lora_up' if down else 'lora_down'}. Download or save it again."
        )
    wide = len(down.shape) > 1 and len(up.shape) > 1
    if not wide or up.shape[1] != down.shape[0] or not all((*down.shape, *up.shape)):
        raise UnsupportedModelError(
            f"{path} has weights that are no pair: {down.name[:80]} {list(down.shape)} and {up.name[:80]} {list(up.shape)}; "
            "they must be [rank, in, ...] and [out, rank, ...]. Download or save it again."
        )
    return down.shape[0]


def _lacking(parts: Mapping[str, Tensor]) -> str:
    """Returns the factors that a LoHa's or a LoKr's module lacks, in words, "" for a whole one and for other kinds."""
    if HADA & set(parts):
        return " and no ".join(sorted(HADA - set(parts)))
    if any(part.startswith("lokr_w") for part in parts):
        factors = ("lokr_w1", "lokr_w2")
        return " and no ".join(f for f in factors if f not in parts and not {f"{f}_a", f"{f}_b"} <= set(parts))
    return ""


def _down(parts: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Returns (input width, dimensions) of a module's `down` weight."""
    shape = next((parts[part].shape for part in DOWN if part in parts), ())
    return (shape[1], len(shape)) if len(shape) > 1 else None


def _alphas(file: TensorFile, modules: Mapping[str, Mapping[str, Tensor]]) -> list[float]:
    """Returns the alphas of the network's modules, or of text encoders where there are no others."""
    network = {name: parts for name, parts in modules.items() if not is_text_encoder(name)} or modules
    tensors, values = [parts["alpha"] for parts in network.values() if "alpha" in parts], []
    paired = [name for name, parts in network.items() if "down" in parts]
    without = [name for name in paired if "alpha" not in network[name]]
    if tensors and without:
        raise UnsupportedModelError(
            f"{file.path} has no alpha for {len(without)} of {len(paired)} modules, such as {without[0][:80]}: they would be "
            "applied at another scale than the rest. Download or save it again."
        )
    for name, dtype, shape in tensors:
        if math.prod(shape) != 1 or dtype not in DTYPES:
            raise UnsupportedModelError(
                f"{file.path} has an alpha that is no number: {name[:80]} {list(shape)}; save it again."
            )
        values.append(file.tensor(name).float().item())
    return values


def _dtype(name: str) -> str:
    return str(DTYPES.get(name, name)).removeprefix("torch.")


def _described_scale(metadata: Any) -> float | None:
    """Source: diffusers loaders/lora_base.py, LORA_ADAPTER_METADATA_KEY."""
    try:
        config = json.loads(metadata["lora_adapter_metadata"])
        scales = {config[f"{key[:-2]}.lora_alpha"] / r for key, r in config.items() if key.endswith(".r")}
        patterned = any(value for key, value in config.items() if key.endswith(("alpha_pattern", "rank_pattern")))
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError, RecursionError):
        return None
    return float(scales.pop()) if len(scales) == 1 and not patterned else None


def _most(names: Iterator[str]) -> str:
    return Counter(names).most_common(1)[0][0]


def _worded(name: str, value: Any) -> str:
    if value is None:
        return f"no {name}"
    return f"{name} {value[0]:g} to {value[1]:g}" if isinstance(value, tuple) else f"{name} {value:g}"


def _span(values: list) -> Any:
    if not values:
        return None
    return values[0] if min(values) == max(values) else (min(values), max(values))


def check_family(info: LoraInfo, family: str) -> None:
    """Refuses a LoRA that was made for another family than the model's; one whose family cannot be told is let through.

    Args:
        info: of the LoRA's file.
        family: the model's, a key of FAMILIES or a plain name.
    Raises: UnsupportedModelError naming both.
    """
    if info.family not in (None, family):
        model = title_of(family)
        raise UnsupportedModelError(
            f"{info.path.name} is a LoRA for {info.family_name}, the model is {model}; choose a LoRA for {model}, "
            f"or load a model of the LoRA's family."
        )


def effective_strength(info: LoraInfo, plan: LoraPlan) -> float:
    """Returns the strength at which a host applies this file as strongly as the plan means it.

    0.125 only stands in for the alpha that a released file lacks. A file that carries its scale, as alpha or in its metadata,
    is not scaled twice. A person's own file without any is taken to have it in its weights, as most trainers save it.
    """
    as_meant = plan.strength / FAMILIES[plan.family].scale_without_alpha
    if info.alpha is not None:
        return as_meant
    if info.described_scale is not None:
        return as_meant * info.described_scale
    return plan.strength if plan.entry_id else as_meant


def scale_note(info: LoraInfo, plan: LoraPlan) -> str:
    """Returns a sentence on a file without alpha, "" for one that has it."""
    strength = effective_strength(info, plan)
    if info.alpha is not None:
        return ""
    if info.described_scale is not None:
        return f"The file has no alpha, its metadata says lora_alpha / r = {info.described_scale:g}: strength {strength:g}."
    if plan.entry_id and FAMILIES[plan.family].scale_without_alpha != 1:
        return f"The file has no alpha, as released: strength {strength:g} stands for it."
    unlike = ", unlike the released one" if plan.entry_id else ""
    return f"The file has no alpha{unlike}: if the picture is overdone, its scale was lost; try strength 0.125."
