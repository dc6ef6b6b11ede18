"""UNet files: what a file holds, told by its head, and an SDXL UNet's weights, read and cast one tensor at a time."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import UnsupportedModelError
from .casting import DTYPES, Stored, read_as
from .families import FAMILIES, NETWORK, TEXT_WIDTHS, model_of, title_of
from .sdxl_unet import SDXL, UnetShape
from .tensor_file import Stamp, open_tensors

PREFIX = NETWORK  # of the UNet inside a full checkpoint in the original layout
CLIP, VAE, AVERAGED = FAMILIES["sdxl"].text_encoders, "first_stage_model.", "model_ema."

_LORA = ("lora_down.weight", "lora_up.weight", "lora_A.weight", "lora_B.weight", "lora.down.weight", "lora.up.weight")
_KINDS = {  # a part of a name that only this kind of file has, in the order they are asked
    "a ControlNet": ("input_hint_block.", "controlnet_cond_embedding.", "zero_convs."),
    "a FLUX model": ("double_blocks.", "single_transformer_blocks."),
    "an SD3 model": ("joint_blocks.", "joint_transformer_blocks."),
    "a VAE": ("decoder.conv_in.", "decoder.mid"),
    "a text encoder": ("text_model.encoder.", "transformer.resblocks.", "encoder.block.0."),
}


@dataclass(frozen=True)
class UnetInfo:
    """An SDXL UNet in a file, as its head describes it.

    Args:
        path: of the file.
        format: the layout of the names, "diffusers" or "original".
        has_clip: whether the file holds text encoders as well.
        has_vae: whether the file holds a VAE as well.
        dtype: of most of the UNet's weights.
        parameters: number of the UNet's values.
        size: of the UNet in the file, in bytes.
        tensors: the UNet's, in the order they lie in the file.
        others: the head's entries of the file's other tensors, by name.
        first: where the data begin in the file.
        stamp: of the file that this describes; one that has changed since is not read.
    """

    path: Path
    format: str
    has_clip: bool
    has_vae: bool
    dtype: torch.dtype
    parameters: int
    size: int
    tensors: tuple[Stored, ...]
    others: Mapping[str, Mapping]
    first: int
    stamp: Stamp


def inspect_unet(path: Path, expected: UnetShape = SDXL) -> UnetInfo:
    """Returns what UNet a file holds, without loading a tensor.

    Args:
        path: of the file.
        expected: the sizes it must have.
    Raises: UnsupportedModelError for anything but that UNet, whole, saying what was found; OSError.
    """
    path = Path(path)
    with open_tensors(path) as file:
        header, first, stamp = file.header, file.first, file.stamp
    prefix = PREFIX if any(name.startswith(PREFIX) for name in header) else ""
    is_diffusers = not any(name.startswith(f"{prefix}input_blocks.") for name in header)
    wanted = {prefix + (t.diffusers if is_diffusers else t.original): t for t in expected.tensors()}
    _require_unet(path, header, wanted, prefix)
    tensors = tuple(
        sorted(
            (_stored(path, name, header[name], tensor.original, first) for name, tensor in wanted.items()),
            key=lambda tensor: tensor.start,
        )
    )
    counts: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        counts[tensor.dtype] += math.prod(tensor.shape)
    return UnetInfo(
        path=path,
        format="diffusers" if is_diffusers else "original",
        has_clip=any(name.startswith(CLIP) for name in header),
        has_vae=any(name.startswith(VAE) for name in header),
        dtype=counts.most_common(1)[0][0],
        parameters=counts.total(),
        size=sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors),
        tensors=tensors,
        others={n: entry for n, entry in header.items() if n not in wanted and not n.startswith(AVERAGED)},
        first=first,
        stamp=stamp,
    )


def _require_unet(path: Path, header: Mapping, wanted: Mapping, prefix: str) -> None:
    """Refuses a file whose UNet is not exactly `wanted`."""
    shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
    kind, remedy = describe(header), _remedy(header)
    missing = [name for name in wanted if name not in shapes]
    if missing and "SDXL" not in kind.replace("SDXL refiner", ""):
        raise UnsupportedModelError(f"{path.name} is {kind}, not an SDXL UNet; {remedy}")
    wrong = [name for name in wanted if name in shapes and shapes[name] != wanted[name].shape]
    if wrong:
        name = wrong[0]
        raise UnsupportedModelError(
            f"{path.name} is {kind} of other sizes: {name} is {list(shapes[name])}, in an SDXL UNet "
            f"{list(wanted[name].shape)}; {remedy}"
        )
    if missing:
        raise UnsupportedModelError(
            f"{path.name} lacks {len(missing)} of the {len(wanted)} tensors of an SDXL UNet, among them {missing[0]}: it is "
            f"not whole, or a smaller relative; {remedy}"
        )
    roots = {name[len(prefix) :].partition(".")[0] for name in wanted}
    extra = [n for n in shapes if n not in wanted and n.startswith(prefix) and n[len(prefix) :].partition(".")[0] in roots]
    if extra:
        raise UnsupportedModelError(
            f"{path.name} has {len(extra)} tensors that an SDXL UNet has not, among them {extra[0]}: it is quantised, or was "
            f"changed; {remedy}"
        )


def describe(header: Mapping) -> str:
    """Returns what kind of file a header belongs to, as words: "a LoRA", "an SD1.5 UNet".

    Args:
        header: as read_header gives it, without metadata.
    """
    if any(name.endswith(_LORA) for name in header):
        return "a LoRA"
    kind = next((kind for kind, parts in _KINDS.items() if any(part in name for name in header for part in parts)), None)
    model = None if kind == "a ControlNet" else model_of(header)
    if model in TEXT_WIDTHS.values():
        is_full = any(name.startswith((CLIP, VAE, "cond_stage_model.")) for name in header)
        return f"an {title_of(model).removeprefix('the ')} {'checkpoint' if is_full else 'UNet'}"
    return title_of(model) if model else kind or f"an unknown kind of file (with tensors such as {min(header)[:80]})"


def _remedy(header: Mapping) -> str:
    if any(name.endswith(_LORA) for name in header):
        return "add it to a model with the Hyper-SD node."
    return "choose Hyper-SDXL-1step-Unet, or another whole SDXL UNet or checkpoint."


def _stored(path: Path, name: str, entry: Mapping, key: str, first: int) -> Stored:
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
        raise UnsupportedModelError(
            f"{path.name} stores {name} as {entry['dtype']}; a UNet in fp32, fp16, bf16 or fp8 is needed."
        )
    return Stored(key, tuple(entry["shape"]), dtype, first + entry["data_offsets"][0])


def stream_tensors(info: UnetInfo, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the UNet's tensors under their original names, cast to `dtype`, in the order of the file.

    Each is read and cast by itself, so that of the file never more than one tensor is in memory.

    Args:
        info: of the file.
        dtype: any floating point dtype. To fp8 it is a plain cast, as in ComfyUI's loader, with no scale.
    Raises: UnsupportedModelError for NaN, infinity, a value that `dtype` cannot hold, or a file that has changed since it was
        looked at; OSError.
    """
    with open_tensors(info.path, info.stamp) as file:
        for stored in info.tensors:
            yield stored.key, read_as(file, stored, dtype)
