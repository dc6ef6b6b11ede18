"""Which few-step LoRAs a MODEL has already: their files' tensors are compared with its patches, whatever loaded them."""

import functools
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import comfy.lora
import torch
from safetensors import SafetensorError, safe_open

from ..errors import UnsupportedModelError
from ..models.header import METADATA, glance, open_safetensors, read_header
from ..models.lora_keys import host_keys, is_text_encoder, split_key
from .lora_files import known_lora, lora_options, lora_path

FEW = 16  # names of a file that are looked at
# What a file can begin to be compared by, without loading it; of other dtypes whole tensors are compared at once.
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
VALUES = 64
LARGEST = 2**62  # bytes into a file, beyond which no system can go


class Up(NamedTuple):
    """The `up` of a layer as a LoRA file's header seems to have it.

    Args:
        name: the tensor's.
        module: the layer, by the host's name.
        shape: its sides.
        dtype: by safetensors' name.
        place: where its values begin in the file, in bytes.
    """

    name: str
    module: str
    shape: tuple[int, ...]
    dtype: str
    place: int


def few_step_in(model: Any) -> str:
    """Returns the name of a few-step LoRA that is in a MODEL's patches, empty where there is none of the LoRA folder's."""
    if not model.patches:
        return ""
    listed = comfy.lora.model_lora_keys_unet(model.model, {})
    names = {name: target if isinstance(target, str) else target[0] for name, target in listed.items()}
    for option in lora_options():
        try:
            if _is_in(lora_path(option), model.patches, names) and known_lora(option).variant:
                return option
        except (OSError, UnsupportedModelError, SafetensorError):
            continue  # a file that cannot be read was not loaded; what reads it for its own sake says what is wrong
    return ""


def few_step_beside(model: Any, before: list[str]) -> str:
    """Returns the name of a few-step LoRA that works beside a MODEL's weights (the host's bypass), empty where there is none.

    Such a LoRA hides its tensors from everybody, so the workflow tells.

    Args:
        model: MODEL.
        before: names in the loaders that it went through.
    """
    if not getattr(model, "injections", None):
        return ""
    return next((name for name in before if name in lora_options() and known_lora(name).variant), "")


def _is_in(path: Path, patches: dict[str, list], names: dict[str, str]) -> bool:
    """Whether one tensor of a file, the `up` of a layer that is patched, is among the patches of that layer.

    A folder has hundreds of LoRAs and the MODEL one or two of them, so what costs most comes last: the sides of the tensor, its
    first values, and only where these are alike the whole header and the whole tensor.
    """
    for up in _ups(path, path.stat().st_mtime_ns):
        target = names.get(up.module)
        if target not in patches:
            continue
        alike = [weight for weight in _tensors(patches[target]) if tuple(weight.shape) == up.shape]
        if not any(_begins_as(path, up, weight) for weight in alike):
            return False
        host_keys(read_header(path).keys() - {METADATA})  # refuses what the host would not have loaded
        with safe_open(path, "pt") as file:
            wanted = file.get_tensor(up.name)
        return any(_same(wanted, weight) for weight in alike)
    return False


@functools.lru_cache(maxsize=4096)  # a folder of hundreds of LoRAs is read once, not at every run
def _ups(path: Path, changed: int) -> tuple[Up, ...]:
    """Returns a LoRA file's first `up` tensors of a UNet.

    Args:
        path: of the file.
        changed: its time, by which it is read again.
    """
    return tuple(islice(_seen(path), FEW))


def _seen(path: Path) -> Iterator[Up]:
    for name, entry, start in glance(path, lambda name: not is_text_encoder(name)):
        key = split_key(host_keys([name])[name])
        match entry:
            case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), _]} if 0 <= begin <= LARGEST:
                if key and key.part == "up":
                    yield Up(name, key.module, tuple(shape), dtype, start + begin)


def _tensors(patches: list[tuple]) -> Iterator[torch.Tensor]:
    """Yields the tensors of a layer's patches: the host keeps them in an adapter's weights, or in a tuple of older releases."""
    for _, value, *_ in patches:
        weights = getattr(value, "weights", value[1] if isinstance(value, tuple) and len(value) > 1 else ())
        yield from (weight for weight in weights if isinstance(weight, torch.Tensor))


def _begins_as(path: Path, up: Up, weight: torch.Tensor) -> bool:
    """Whether the first values of a file's tensor are those of a patch; True where that cannot be told."""
    dtype, count = DTYPES.get(up.dtype), min(VALUES, weight.numel())
    if dtype is None or not count:
        return True
    with open_safetensors(path) as file:
        file.seek(up.place)
        values = file.read(count * dtype.itemsize)
    if len(values) < count * dtype.itemsize:
        return False
    return _same(torch.frombuffer(bytearray(values), dtype=dtype), weight.flatten()[:count])


def _same(wanted: torch.Tensor, weight: torch.Tensor) -> bool:
    return wanted.shape == weight.shape and torch.equal(wanted.float(), weight.float().cpu())
