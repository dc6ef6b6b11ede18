"""A full SDXL checkpoint out of a lone UNet and a base model: written tensor by tensor, whole or not at all."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import filelock
import torch

from .. import disk
from ..errors import HyperSDError, UnsupportedModelError
from .files import BLOCK, FLUSH
from .sdxl_unet import SDXL, UnetShape
from .tensor_file import open_tensors
from .unet_file import CLIP, DTYPES, PREFIX, VAE, Stored, UnetInfo, inspect_unet, stream_tensors

PARTS = {f"{CLIP}0.": "CLIP-L text encoder", f"{CLIP}1.": "OpenCLIP-bigG text encoder", VAE: "VAE"}  # of a full SDXL checkpoint
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class MergeError(HyperSDError):
    """A checkpoint that could not be built; nothing stands under its name."""


@dataclass(frozen=True)
class Raw:
    """A tensor that is not of floating point, such as position ids: its bytes are taken over as they are.

    Args:
        key: its name.
        shape: its sizes, empty for a single value.
        dtype: as the file's head names it, such as "I64".
        start: its first byte within its file.
        size: how many bytes it has.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    start: int
    size: int


@dataclass(frozen=True)
class Merge:
    """What goes into a new checkpoint, in the order it is written.

    Args:
        raw: tensors of the base that are copied byte by byte.
        unet: the lone UNet, its tensors under their names in a full checkpoint.
        rest: the base, with the tensors of its text encoders and its VAE alone.
        dtype: of every floating point tensor in the new file.
    """

    raw: tuple[Raw, ...]
    unet: UnetInfo
    rest: UnetInfo
    dtype: torch.dtype

    def header(self, metadata: Mapping[str, str]) -> tuple[bytes, int]:
        """Returns the new file's head, and the number of bytes that follow it.

        Args:
            metadata: texts by name, kept in the head.
        """
        entries, end = {"__metadata__": dict(metadata)}, 0
        listed = [(tensor.key, tensor.dtype, tensor.shape, tensor.size) for tensor in self.raw]
        for tensor in (*self.unet.tensors, *self.rest.tensors):
            size = math.prod(tensor.shape) * self.dtype.itemsize
            listed.append((tensor.key, _NAMES[self.dtype], tensor.shape, size))
        for key, dtype, shape, size in listed:
            entries[key] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)  # the format's alignment
        return len(text).to_bytes(8, "little") + text, end

    def content(self) -> Iterator[memoryview]:
        """Yields the bytes that follow the head, a tensor or a block at a time."""
        with open_tensors(self.rest.path, self.rest.stamp) as file:
            for tensor in self.raw:
                for done in range(0, tensor.size, BLOCK):
                    yield memoryview(file.read(tensor.start + done, min(BLOCK, tensor.size - done)).numpy())
        for source in (self.unet, self.rest):
            for _, tensor in stream_tensors(source, self.dtype):
                yield memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def merge(
    base: Path,
    unet: Path,
    target: Path,
    *,
    dtype: torch.dtype = torch.float16,
    notes: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    expected: UnetShape = SDXL,
) -> Path:
    """Returns `target`, a new checkpoint with the UNet of one file and the text encoders and VAE of another.

    Never more than one tensor is in memory. The file gets its name once it is whole, and never takes another's place.

    Args:
        base: a full SDXL checkpoint.
        unet: a file with only an SDXL UNet, under diffusers' names or the original ones.
        target: the new file, which ends in .safetensors.
        dtype: of every floating point tensor in it.
        notes: texts for its metadata, by name.
        progress: called with the bytes written and all of them. What it raises ends the merge, leaves nothing behind and is
            passed on.
        expected: the sizes both UNets must have.
    Raises: UnsupportedModelError for wrong or damaged files; MergeError for a name that is taken, too full a disk or a folder
        that cannot be written; OSError of the system otherwise.
    """
    base, unet, target = Path(base), Path(unet), Path(target)
    plan = plan_merge(base, unet, dtype, expected)
    head, size = plan.header({"format": "pt", "hyper_sd.unet": unet.name, "hyper_sd.base": base.name, **(notes or {})})
    _require_free_name(target)
    part = target.with_name(target.name + disk.PART)  # always the same, so that what an ended program left is written over
    with _explained(target, len(head) + size), _locked(target), disk.whole_file(target, part):
        _write(part, head, plan.content(), size, progress)
        _require_free_name(target)
    return target


def plan_merge(base: Path, unet: Path, dtype: torch.dtype = torch.float16, expected: UnetShape = SDXL) -> Merge:
    """Returns what the merge would write, from the files' heads alone.

    Args:
        base: a full SDXL checkpoint.
        unet: a file with only an SDXL UNet.
        dtype: of every floating point tensor in the new file.
        expected: the sizes both UNets must have.
    Raises: UnsupportedModelError for wrong or damaged files; OSError of the system.
    """
    lone = inspect_unet(unet, expected)
    if lone.has_clip:
        raise UnsupportedModelError(f"{unet.name} is a full checkpoint already; choose it as your checkpoint as it is.")
    whole = inspect_unet(base, expected)
    missing = [part for prefix, part in PARTS.items() if not any(name.startswith(prefix) for name in whole.others)]
    if missing:
        raise UnsupportedModelError(
            f"{base.name} has no {' and no '.join(missing)}; as the base choose a full SDXL checkpoint, such as "
            "sd_xl_base_1.0.safetensors."
        )
    raw, floats = _rest(whole)
    tensors = tuple(tensor._replace(key=PREFIX + tensor.key) for tensor in lone.tensors)
    return Merge(raw, replace(lone, tensors=tensors), replace(whole, tensors=floats), dtype)


def _rest(base: UnetInfo) -> tuple[tuple[Raw, ...], tuple[Stored, ...]]:
    """Returns the tensors of text encoders and VAE. Others, such as "v_pred", belong to the base's UNet and are left out."""
    raw, floats = [], []
    for name, entry in base.others.items():
        if not name.startswith((CLIP, VAE)):
            continue
        (start, end), shape, dtype = entry["data_offsets"], tuple(entry["shape"]), DTYPES.get(entry["dtype"])
        if dtype is None:
            raw.append(Raw(name, shape, entry["dtype"], base.first + start, end - start))
            continue
        floats.append(Stored(name, shape, dtype, base.first + start))
    raw.sort(key=lambda tensor: -tensor.size // max(math.prod(tensor.shape), 1))  # the widest first keeps all aligned
    return tuple(raw), tuple(sorted(floats, key=lambda tensor: tensor.start))


def _write(
    part: Path, head: bytes, content: Iterator[memoryview], size: int, progress: Callable[[int, int], None] | None
) -> None:
    done = flushed = 0
    disk.claim(part)  # a link that somebody has put there is not written through
    with open(part, "wb", opener=disk.no_follow) as file:
        file.write(head)
        for piece in content:
            done += file.write(piece)
            if done - flushed >= FLUSH:  # so that no long wait is left for the end
                os.fsync(file.fileno())
                flushed = done
            if progress:
                progress(done, size)
        file.flush()
        os.fsync(file.fileno())


def _require_free_name(target: Path) -> None:
    if target.suffix.lower() != ".safetensors":
        raise MergeError(f"The new checkpoint's name must end in .safetensors, got {target.name}.")
    if target.exists():
        raise MergeError(f"{target.name} is there already, and is not overwritten; choose another name.")


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Keeps others from building the same file. A host that died leaves no lock."""
    name = target.with_name(f"{target.name}.lock")
    disk.claim(name)
    lock = filelock.FileLock(name)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise MergeError(f"{target.name} is being built already; wait for it, or choose another name.") from error
    try:
        yield
    finally:
        with suppress(OSError):  # still locked, so nobody can be in the middle; Windows removes it itself
            os.unlink(lock.lock_file)
        lock.release()


@contextmanager
def _explained(target: Path, needed: int) -> Iterator[None]:
    """Checks the room on the disk first, and turns the disk's errors into ours, which say what to do."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        disk.require_room(target.parent, needed)
        yield
    except OSError as error:
        if not disk.is_full(error) and not isinstance(error, PermissionError):
            raise
        raise MergeError(f"{target.name} was not built: {disk.explain(error, target.parent, needed)}.") from error
