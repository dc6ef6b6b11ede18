"""A run's whole state in one safetensors file, which is replaced whole or not at all: weights, averages, optimizer, step."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .. import disk
from ..errors import TrainingError
from .digest import digest_of

# 1 kept every pair of an adapter set as a tensor of its own, 2 had no digest.
NAME, VERSION, UNSEALED = "hyper_sd training checkpoint", "3", "2"
logger = logging.getLogger("hyper_sd")
DIGEST = "digest"  # in the metadata, of everything else


class DamagedCheckpoint(TrainingError):
    """A checkpoint that does not hold what was written into it."""


class CheckpointError(TrainingError):
    """A checkpoint that could not be written; what was trained is still in memory, in the adapter sets."""


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Returns the optimizer's moments and counters as "position.name" tensors."""
    tensors = {}
    for position, entry in optimizer.state_dict()["state"].items():
        # bitsandbytes keeps what is in 8 bits in a mapping of its own, and reads it without that, too
        inner = [part for part in entry.values() if isinstance(part, dict)]
        for name, value in {name: value for part in (entry, *inner) for name, value in part.items()}.items():
            if not isinstance(value, dict):
                tensors[f"{position}.{name}"] = torch.as_tensor(value)
    return tensors


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Puts flattened moments and counters back; the groups and their rates stay the optimizer's own."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        position, name = key.split(".", 1)
        is_counter = not (tensor.ndim or tensor.is_floating_point())  # bitsandbytes counts its steps in a plain number
        state.setdefault(int(position), {})[name] = tensor.item() if is_counter else tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_atomically(
    path: Path,
    tensors: dict[str, torch.Tensor],
    metadata: dict[str, str],
    sealed: str | None = None,
    older: Path | None = None,
) -> None:
    """Writes a safetensors file under its final name only when it is whole.

    Args:
        path: of the file; its folder is created where it is missing.
        tensors: by name, on any device; they may share memory.
        metadata: of the file's header.
        sealed: a text that is sealed with the tensors by a digest, None for no digest.
        older: a second name that the file before gets once the new one is whole, None where it may go.
    Raises: TrainingError where the disk is full or the folder cannot be written; an older file of that name stays as it was.
    """
    ready: dict[str, torch.Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        memory = whole.untyped_storage()
        # safetensors refuses tensors that share memory; only these are copied
        is_shared = memory.nbytes() != whole.nbytes or memory.data_ptr() in taken
        ready[name] = whole.clone() if is_shared else whole
        taken.add(memory.data_ptr())
    if sealed is not None:
        metadata = metadata | {DIGEST: digest_of(ready, sealed)}
    try:
        with disk.whole_file(path) as partial:
            save_file(ready, partial, metadata)
            if older is not None:
                _keep(path, older)
    except (OSError, SafetensorError) as error:
        needed = sum(tensor.nbytes for tensor in ready.values())
        raise TrainingError(
            f"{path} could not be written: {disk.explain(error, path.parent, needed)}. Nothing older is lost."
        ) from error


def _keep(path: Path, older: Path) -> None:
    """Gives a file a second name, in place of what had that; where the disk knows no second names, there is no older file."""
    if not path.is_file() or (older.is_file() and older.samefile(path)):
        return
    link = disk.part_beside(path)
    try:
        with disk.held(path):  # under its other name, too
            os.link(path, link)
            link.replace(older)
    except OSError as error:
        logger.warning("%s is not kept beside the new one: %s.", path.name, error)


def previous_of(path: Path) -> Path:
    """Returns where the checkpoint before the last one lies."""
    return path.with_name(f"previous_{path.name}")


def save_checkpoint(path: Path, parts: dict[str, dict[str, torch.Tensor]], values: dict[str, Any], keep: bool = False) -> None:
    """Writes the state of a run.

    Args:
        path: of the file.
        parts: tensors by name, in groups such as an adapter set or the optimizer.
        values: of JSON.
        keep: whether the checkpoint before stays, as previous_of(path).
    Raises: CheckpointError where save_atomically() cannot write.
    """
    tensors = {f"{part}/{name}": tensor for part, group in parts.items() for name, tensor in group.items()}
    try:
        metadata = {"format": f"{NAME} {VERSION}", "values": json.dumps(values)}
        save_atomically(path, tensors, metadata, sealed=metadata["values"], older=previous_of(path) if keep else None)
    except TrainingError as error:
        raise CheckpointError(str(error)) from error


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """Returns the parts and the plain values of a saved run.

    Raises: TrainingError for a file that is no checkpoint, or of another version of the pack; DamagedCheckpoint.
    """
    try:
        with disk.open_file(path), safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise DamagedCheckpoint(f"The checkpoint {path} cannot be read ({error}); move it away to start anew.") from error
    _require_version(path, metadata.get("format", ""))
    if metadata["format"] != f"{NAME} {UNSEALED}":
        _require_whole(path, tensors, metadata)
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        part, name = key.split("/", 1)
        parts.setdefault(part, {})[name] = tensor
    return parts, json.loads(metadata["values"])


def load_newest(path: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any], bool]:
    """Returns the parts and the values of a run's last checkpoint, and where that is damaged of the one before, which is told.

    Returns: parts, values, and whether the last one is damaged: it must not take the place of the whole one.
    Raises: TrainingError as load_checkpoint(), where there is no whole one.
    """
    try:
        return (*load_checkpoint(path), False)
    except DamagedCheckpoint as error:
        older = previous_of(path)
        if not older.is_file():
            raise
        parts, values = load_checkpoint(older)
        logger.warning("%s The one before, %s of step %d, is used instead.", error, older.name, values["step"])
    return parts, values, True


def _require_whole(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    if "values" not in metadata or metadata.get(DIGEST) != digest_of(tensors, metadata["values"]):
        raise DamagedCheckpoint(
            f"The checkpoint {path} is damaged: it does not hold what was written into it. Move it away to start anew, and "
            "look whether the disk is failing."
        )


def _require_version(path: Path, format_: str) -> None:
    if not format_.startswith(NAME):
        raise TrainingError(f"{path} is not a checkpoint of this training; move it away, or choose another folder.")
    if format_ not in (f"{NAME} {VERSION}", f"{NAME} {UNSEALED}"):
        raise TrainingError(
            f"{path} was written by another version of Hyper-SD (format {format_.removeprefix(NAME).strip()}, this one reads "
            f"{VERSION}); finish the training with that version, or move the file away to start anew."
        )
