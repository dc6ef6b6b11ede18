"""Writes a trained LoRA as the file that every host reads, under a name of its own, whole or not at all."""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

import safetensors.torch
import torch

from .. import disk
from ..errors import TrainingError, UnsupportedModelError
from ..models.lora import load_lora_file
from ..models.lora_keys import split_key
from ..models.tensor_file import HASH
from .checkpoint import save_atomically
from .lora_layers import STUDENT, LoraLayers
from .lora_tensors import Rename, lora_state_dict, set_from_tensors, transformer_state_dict

SUFFIX = ".safetensors"
MAX_BYTES = 180  # of one part of a name; file systems take 255, the number and the suffix come on top
_FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f\x7f\ud800-\udfff]')  # by Windows, where a LoRA may end up, or by any encoding
_DEVICES = re.compile(r"(?i)(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?")  # names that Windows keeps for itself


def save_lora(
    path: Path,
    layers: LoraLayers,
    name: str = STUDENT,
    *,
    metadata: dict[str, str] | None = None,
    dtype: torch.dtype = torch.float16,
    rename: Rename | None = None,
    transformer: bool = False,
) -> None:
    """Writes a LoRA file whole or not at all.

    Args:
        path: of the file; one that is there is replaced.
        layers: with the adapter set.
        name: of the adapter set.
        metadata: further entries of the file's header.
        dtype: of the weights in the file.
        rename: as in lora_state_dict().
        transformer: whether the names are those of diffusers' transformers in place of kohya's.
    Raises: TrainingError when it cannot be written.
    """
    header = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(layers.rank),
        "ss_network_alpha": f"{layers.lora_alpha:g}",
    }
    if transformer:
        tensors = transformer_state_dict(layers, name, dtype)
        # The scale is folded in; diffusers builds the adapter from this, and others can tell that nothing is left to scale.
        config = {"r": layers.rank, "lora_alpha": layers.rank, "target_modules": list(layers.layers)}
        header = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in config.items()})}
    else:
        tensors = lora_state_dict(layers, name, dtype, rename)
    save_atomically(path, tensors, header | (metadata or {}))


def load_lora(path: Path, layers: LoraLayers, name: str = STUDENT, *, rename: Rename | None = None) -> None:
    """Adds an adapter set with the weights of a LoRA file in kohya's names; the arguments are those of set_from_tensors().

    Raises: TrainingError when the file cannot be read or does not fit.
    """
    set_from_tensors(read_tensors(path), layers, name, rename=rename, source=str(path))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a LoRA file, those that were checked and no others.

    Raises: TrainingError when the file cannot be read.
    """
    try:
        return load_lora_file(path)[1]
    except UnsupportedModelError as error:
        raise TrainingError(f"The LoRA {path} cannot be read ({error}); choose a .safetensors LoRA file.") from error


class TrainedLora(dict):
    """A LoRA as tensors by name, which is ComfyUI's LORA_MODEL, with what is known of its training.

    Args:
        tensors: as in a LoRA file, in names that the host reads.
        metadata: base model, objective, steps, settings and whatever else belongs into the file; strings only.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None):
        super().__init__(tensors)
        self.metadata: dict[str, str] = dict(metadata or {})


def clean_name(name: str) -> tuple[str, ...]:
    """Returns a name's sub-folders and its stem: what Windows forbids becomes "_", the ending .safetensors goes.

    Raises: TrainingError for a name that is empty, absolute, or leads to a parent folder.
    """
    parts = [part.strip() for part in name.strip().replace("\\", "/").split("/")]
    if "" in parts or "." in parts or ".." in parts or re.match(r"[A-Za-z]:", parts[0]):
        raise TrainingError(
            f"name must be a file's name, or folder/name below the loras folder, got {name!r}; use one such as my_style or "
            "people/my_style."
        )
    parts[-1] = parts[-1].removesuffix(SUFFIX)
    return tuple(map(_clean_part, parts))


def _clean_part(part: str) -> str:
    part = _FORBIDDEN.sub("_", part).encode()[:MAX_BYTES].decode(errors="ignore")
    part = part.strip(" ").rstrip(" .") or "_"
    return f"_{part}" if _DEVICES.fullmatch(part) or part.startswith(".") else part  # hosts do not list hidden folders


def ready_tensors(lora: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns a LoRA's tensors as a file takes them: on the CPU, contiguous, none sharing memory with another.

    Raises: TrainingError when there are none, or one holds NaN or infinity.
    """
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in lora.items()}
    if not tensors:
        raise TrainingError("The LoRA holds no tensors; give one that a training has made.")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
            raise TrainingError(
                f"The LoRA was not saved: {name} has values that are not finite, so every picture would turn black. The "
                "training broke down; train again with a lower learning_rate."
            )
    return tensors


def described(lora: Mapping[str, torch.Tensor], title: str, licence_note: str) -> dict[str, str]:
    """Returns the file's metadata: what is known of the training, what the tensors show, title, date and licence.

    Args:
        lora: tensors by name; a TrainedLora knows of its training.
        title: of the file.
        licence_note: free text, may be empty.
    """
    keys = [(key, tensor) for name, tensor in lora.items() if (key := split_key(name))]
    ranks = sorted({len(tensor) for key, tensor in keys if key.part == "down"})
    metadata = {
        "hyper_sd_modules": str(len({key.module for key, _ in keys if key.part != "alpha"})),
        "hyper_sd_rank": "-".join(map(str, dict.fromkeys((ranks[0], ranks[-1])))) if ranks else "none",
        **getattr(lora, "metadata", {"hyper_sd_origin": "trained by another node"}),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title,
        "modelspec.date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    if licence_note.strip():
        metadata["modelspec.license"] = licence_note.strip()
    return {str(key): str(value).encode("utf-8", "replace").decode() for key, value in metadata.items()}


def file_bytes(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> tuple[bytes, memoryview]:
    """Returns a safetensors file's header and data; the metadata gains modelspec.hash_sha256, a hash of the data."""
    plain = safetensors.torch.save(tensors)
    end = 8 + int.from_bytes(plain[:8], "little")
    data = memoryview(plain)[end:]
    metadata = metadata | {HASH: f"0x{hashlib.sha256(data).hexdigest()}"}
    header = json.dumps({"__metadata__": metadata, **json.loads(plain[8:end])}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header, data


def write_new(folder: Path, stem: str, *blocks: bytes | memoryview, advice: str = "") -> Path:
    """Writes folder/<stem>_00001_.safetensors, or the next number that is free, and returns its path.

    Args:
        folder: created where it is missing.
        stem: the file's name without number and ending.
        blocks: the file's content, in order.
        advice: a sentence that the error ends with, on where the LoRA still is.
    Raises: TrainingError when the disk is full or the folder cannot be written; then no new file is there.
    """
    needed = sum(map(len, blocks))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        disk.clear_parts(folder)
        disk.require_room(folder, needed)
        with disk.own_part(folder / stem) as partial:  # in the same folder, so that its name is all that changes
            with partial.open("wb") as file:
                file.writelines(blocks)
            disk.flush(partial)
            return _claim(partial, folder, stem)
    except OSError as error:
        problem = f"The LoRA {stem} was not saved: {disk.explain(error, folder, needed)}."
        raise TrainingError(f"{problem} {advice}".strip()) from error


def save_trained(root: Path, name: str, lora: Mapping[str, torch.Tensor], licence_note: str = "", advice: str = "") -> Path:
    """Writes a trained LoRA below a folder of LoRAs, under the next free number of its name, and returns its path.

    Args:
        root: the folder of LoRAs.
        name: the file's name, or folder/name.
        lora: tensors by name; what a TrainedLora knows of its training goes into the file's header.
        licence_note: free text for the header, may be empty.
        advice: a sentence that the error ends with, on where the LoRA still is.
    Raises: TrainingError for a bad name, tensors that are not finite, a full disk, or a folder that cannot be written.
    """
    *parents, stem = clean_name(name)
    tensors = ready_tensors(lora)
    return write_new(root.joinpath(*parents), stem, *file_bytes(tensors, described(lora, stem, licence_note)), advice=advice)


def numbered(folder: Path, stem: str) -> dict[int, Path]:
    """Returns the files that write_new has named in a folder, by their numbers; none where there is no folder."""
    pattern = re.compile(rf"{re.escape(stem)}_(\d+)_{re.escape(SUFFIX)}", re.IGNORECASE)
    paths = folder.iterdir() if folder.is_dir() else ()
    return {int(match[1]): path for path in paths if (match := pattern.fullmatch(path.name))}


def _claim(partial: Path, folder: Path, stem: str) -> Path:
    """Gives the file the first free number, or the next one where another program takes that number at the same moment."""
    for number in itertools.count(max(numbered(folder, stem), default=0) + 1):
        path = folder / f"{stem}_{number:05}_{SUFFIX}"
        try:
            _name_exclusively(partial, path)
        except FileExistsError:
            continue
        return path


def _name_exclusively(partial: Path, path: Path) -> None:
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:  # FAT and some network disks know no links: an empty file holds the name for the moment
        path.open("xb").close()
        try:
            partial.replace(path)
        except OSError:
            path.unlink()
            raise
