"""Which few-step LoRAs a MODEL has in its patches already, whatever loaded them: their files' tensors are compared."""

import functools
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import comfy.lora
import torch
from safetensors import SafetensorError, safe_open

from ..errors import UnsupportedModelError
from ..models.header import read_header
from ..models.lora_keys import host_keys, is_text_encoder, split_key
from .lora_files import known_lora, lora_options, lora_path


def few_step_in(model: Any) -> str:
    """Returns the name of a few-step LoRA that is in a MODEL's patches, empty where there is none of the LoRA folder's."""
    if not model.patches:
        return ""
    listed = comfy.lora.model_lora_keys_unet(model.model, {})
    names = {name: target if isinstance(target, str) else target[0] for name, target in listed.items()}
    for option in lora_options():
        try:
            is_there = _is_in(lora_path(option), model.patches, names)
            if is_there and known_lora(option).variant:
                return option
        except (OSError, UnsupportedModelError, SafetensorError):
            continue  # a file that cannot be read was not loaded; what reads it for its own sake says what is wrong
    return ""


def _is_in(path: Path, patches: dict[str, list], names: dict[str, str]) -> bool:
    """Whether one tensor of a file, the `up` of a layer that is patched, is among the patches of that layer."""
    for name, module in _ups(path, path.stat().st_mtime_ns):
        target = names.get(module)
        if target in patches:
            with safe_open(path, "pt") as file:
                wanted = file.get_tensor(name)
            return any(_same(wanted, weight) for weight in _tensors(patches[target]))
    return False


@functools.lru_cache(maxsize=4096)  # a folder of hundreds of LoRAs is read once, not at every run
def _ups(path: Path, changed: int) -> tuple[tuple[str, str], ...]:
    """Returns the names and the host's modules of a LoRA file's first `up` tensors of a UNet.

    Args:
        path: of the file.
        changed: its time, by which it is read again.
    """
    header = read_header(path)
    header.pop("__metadata__", None)
    split = ((name, split_key(renamed)) for name, renamed in host_keys(header).items())
    ups = ((name, key.module) for name, key in split if key and key.part == "up" and not is_text_encoder(key.module))
    return tuple(islice(ups, 16))


def _tensors(patches: list[tuple]) -> Iterator[torch.Tensor]:
    """Yields the tensors of a layer's patches: the host keeps them in an adapter's weights, or in a tuple of older releases."""
    for _, value, *_ in patches:
        weights = getattr(value, "weights", value[1] if isinstance(value, tuple) and len(value) > 1 else ())
        yield from (weight for weight in weights if isinstance(weight, torch.Tensor))


def _same(wanted: torch.Tensor, weight: torch.Tensor) -> bool:
    return wanted.shape == weight.shape and torch.equal(wanted.float(), weight.float().cpu())
