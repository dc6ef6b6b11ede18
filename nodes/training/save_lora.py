"""A trained LoRA and its way to disk: under a name of its own in the host's loras folder, whole or not at all."""

import errno
import hashlib
import itertools
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import folder_paths
import safetensors.torch
import torch
from comfy_api.latest import io, ui
from server import PromptServer

from ...disk import format_bytes
from ...errors import TrainingError
from ...models.lora_keys import split_key
from ...models.transfer import SPARE
from ..schema import TRAINING, found_as

SUFFIX = ".safetensors"
MAX_BYTES = 180  # of one part of a name; file systems take 255, the number and the suffix come on top
_FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f\x7f\ud800-\udfff]')  # by Windows, where a LoRA may end up, or by any encoding
_DEVICES = re.compile(r"(?i)(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?")  # names that Windows keeps for itself
_NO_SPACE = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
KEPT = "What was trained is kept while ComfyUI runs: queue again."


class TrainedLora(dict):
    """The host's LORA_MODEL, tensors by name, with what is known of their training.

    Args:
        tensors: a LoRA file's tensors, in names the host reads.
        metadata: base, objective, steps, settings and whatever else belongs into the file; strings only.
    """

    def __init__(self, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None):
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
        raise TrainingError("The LoRA holds no tensors; wire the lora output of a training node here.")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
            raise TrainingError(
                f"The LoRA was not saved: {name} has values that are not finite, so every picture would turn black. The "
                "training broke down; train again with a lower learning_rate."
            )
    return tensors


def described(lora: Mapping[str, torch.Tensor], title: str, licence_note: str) -> dict[str, str]:
    """Returns the file's metadata: what the training node knows, else what the tensors tell, and title, date and licence."""
    keys = [(key, tensor) for name, tensor in lora.items() if (key := split_key(name))]
    ranks = sorted({len(tensor) for key, tensor in keys if key.part == "down"})
    told = {
        "hyper_sd_origin": "trained by another node",
        "hyper_sd_modules": str(len({key.module for key, _ in keys if key.part != "alpha"})),
        "hyper_sd_rank": "-".join(map(str, dict.fromkeys((ranks[0], ranks[-1])))) if ranks else "none",
    }
    known = getattr(lora, "metadata", None)
    metadata = told if known is None else {key: told[key] for key in ("hyper_sd_modules", "hyper_sd_rank")} | known
    metadata |= {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title,
        "modelspec.date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    if licence_note.strip():
        metadata["modelspec.license"] = licence_note.strip()
    return {str(key): str(value).encode("utf-8", "replace").decode() for key, value in metadata.items()}


def file_bytes(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> tuple[bytes, memoryview]:
    """Returns a safetensors file's head and data; the metadata gains modelspec.hash_sha256, over the data."""
    plain = safetensors.torch.save(tensors)
    end = 8 + int.from_bytes(plain[:8], "little")
    data = memoryview(plain)[end:]
    metadata = metadata | {"modelspec.hash_sha256": f"0x{hashlib.sha256(data).hexdigest()}"}
    header = json.dumps({"__metadata__": metadata, **json.loads(plain[8:end])}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header, data


def write_new(folder: Path, stem: str, *blocks: bytes | memoryview) -> Path:
    """Writes folder/<stem>_00001_.safetensors, or the next number that is free, and returns its path.

    Raises: TrainingError when the disk is full or the folder cannot be written; then nothing new is there.
    """
    needed = sum(map(len, blocks))
    partial = folder / f".{secrets.token_hex(8)}.part"  # in the same folder, so that its name is all that changes
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < needed + SPARE:
            raise OSError(errno.ENOSPC, "too little room")
        with partial.open("xb") as file:
            file.writelines(blocks)
            file.flush()
            os.fsync(file.fileno())
        return _claim(partial, folder, stem)
    except OSError as error:
        if error.errno in _NO_SPACE:
            reason = f"the disk of {folder} is too full, {format_bytes(needed + SPARE)} are needed. Make room"
        else:
            reason = f"{folder} cannot be written ({error}). Check the folder, or choose another name"
        raise TrainingError(f"The LoRA {stem} was not saved: {reason}. {KEPT}") from error
    finally:
        with suppress(OSError):
            partial.unlink()


def _claim(partial: Path, folder: Path, stem: str) -> Path:
    """Gives the file the first number that is free; of two that want the same, one gets the next."""
    pattern = re.compile(rf"{re.escape(stem)}_(\d+)_{re.escape(SUFFIX)}", re.IGNORECASE)
    taken = [int(found[1]) for path in folder.iterdir() if (found := pattern.fullmatch(path.name))]
    for number in itertools.count(max(taken, default=0) + 1):
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


class HyperSDSaveLora(io.ComfyNode):
    """Writes a LORA_MODEL into the host's loras folder and says under which name the LoRA loaders list it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperSDSaveLora",
            display_name="Hyper-SD Save LoRA",
            category=TRAINING,
            **found_as("export LoRA", "write LoRA file", "keep training"),
            description="Saves a trained LoRA into models/loras under the next free number; nothing is ever overwritten.",
            inputs=[
                io.Custom("LORA_MODEL").Input("lora", tooltip="From Hyper-SD Train LoRA, or another node that trains a LoRA."),
                io.String.Input(
                    "name",
                    default="my_style",
                    tooltip="The file's name, or folder/name below models/loras; a number is added, my_style_00001_. "
                    "Characters that Windows forbids become _. Change it for every style.",
                ),
                io.String.Input(
                    "licence_note",
                    default="",
                    optional=True,
                    tooltip="Free text kept in the file: whose images it learnt from, and what others may do with it. Empty "
                    "leaves it out.",
                ),
            ],
            outputs=[
                io.String.Output("saved", "saved", tooltip="As the LoRA loaders list it; refresh the page (R) to choose it.")
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            is_experimental=True,
        )

    @classmethod
    def validate_inputs(cls, name=None) -> bool | str:
        """Refuses a name before the run, not after hours of training."""
        try:
            if name is not None:  # wired from another node, it is known only later
                clean_name(name)
        except TrainingError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, lora, name, licence_note="") -> io.NodeOutput:
        *parents, stem = clean_name(name)
        tensors = ready_tensors(lora)
        root = Path(folder_paths.get_folder_paths("loras")[0])
        blocks = file_bytes(tensors, described(lora, stem, licence_note))
        path = write_new(root.joinpath(*parents), stem, *blocks)
        text = f"Saved {path}, {format_bytes(path.stat().st_size)}"
        node_id = getattr(cls.hidden, "unique_id", None)  # a program that calls the node has no page to show it on
        if node_id:
            PromptServer.instance.send_progress_text(text, node_id)
        return io.NodeOutput(str(path.relative_to(root)), ui=ui.PreviewText(text))


NODES = [HyperSDSaveLora]
