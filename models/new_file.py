"""A new safetensors file out of the tensors of others: written one by one, read back and found equal, or not there at all."""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import torch

from .. import disk
from ..errors import HyperSDError
from .casting import NAMES, Stored, read_as, stored_in
from .files import BLOCK, FLUSH
from .header import DTYPE_BITS, METADATA
from .progress import format_duration
from .tensor_file import TensorFile, open_tensors

READING, WRITING, CHECKING = "reading the sources", "writing", "reading back"  # what goes on, in words
COMPUTED_AGAIN = 8  # of the tensors whose values were computed; all the others are compared by their bytes
Report = Callable[[str, int, int], None]  # takes what goes on, the bytes done and all of them


class BuildError(HyperSDError):
    """A checkpoint that could not be built; nothing stands under its name."""


@dataclass(frozen=True)
class Piece:
    """One tensor of the new file.

    Args:
        key: its name.
        dtype: as a head names it, such as "F16".
        shape: its sizes, empty for a single value.
        content: yields its bytes, a block at a time, anew at every call.
        is_computed: whether its values are new, so that some of them are computed again for the check.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    content: Callable[[], Iterator[memoryview]]
    is_computed: bool = False

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8


def copied(file: TensorFile, key: str) -> Piece:
    """Returns a tensor of a file as it is, byte by byte.

    Args:
        file: open as long as the piece is used.
        key: the tensor's name.
    """
    entry = file.header[key]
    (begin, end), start = entry["data_offsets"], file.first

    def content() -> Iterator[memoryview]:
        for at in range(begin, end, BLOCK):
            yield bytes_of(file.read(start + at, min(BLOCK, end - at)))

    return Piece(key, entry["dtype"], tuple(entry["shape"]), content)


def cast(file: TensorFile, stored: Stored, dtype: torch.dtype, key: str) -> Piece:
    """Returns a tensor of a file in another dtype, under a name of its own.

    Args:
        file: open as long as the piece is used.
        stored: where the tensor lies in it.
        dtype: of floating point; see casting.read_as for what it must hold.
        key: its name in the new file.
    """

    def content() -> Iterator[memoryview]:
        yield bytes_of(read_as(file, stored, dtype))

    return Piece(key, NAMES[dtype], stored.shape, content)


def as_dtype(file: TensorFile, key: str, dtype: torch.dtype | None) -> Piece:
    """Returns a tensor of a file in another dtype where it is of floating point; others, such as position ids, as they are.

    Args:
        file: open as long as the piece is used.
        key: the tensor's name.
        dtype: of floating point; None leaves every tensor as it is.
    """
    stored = stored_in(file, key)
    return copied(file, key) if stored is None or dtype in (None, stored.dtype) else cast(file, stored, dtype, key)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Returns a tensor's bytes as a file has them, without a copy."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


@contextmanager
def new_file(target: Path, needed: int) -> Iterator[Path]:
    """Gives a name to write the new file to; what stands there takes the target's name when all went well.

    After an error, or a stop, nothing is left. A killed program leaves what it had under the other name, where the next build
    writes over it.

    Args:
        target: ends in .safetensors, and is not there yet; it never takes another file's place.
        needed: bytes of the new file.
    Raises: BuildError for a name that is taken, or is being built, too full a disk, or a folder that cannot be written; OSError
        of the system otherwise.
    """
    _require_free_name(target)
    part = target.with_name(target.name + disk.PART)  # always the same, so that what an ended program left is written over
    with _explained(target, needed), _locked(target), disk.whole_file(target, part):
        disk.claim(part)  # a link that somebody has put there is not written through
        yield part
        _require_free_name(target)


def write_pieces(part: Path, pieces: Sequence[Piece], metadata: Mapping[str, str], progress: Report | None = None) -> None:
    """Writes a safetensors file, never more than one tensor in memory, and reads it back.

    The head must be valid and say what was planned, every tensor must have the bytes that were written, and a few of those that
    were computed are computed again.

    Args:
        part: the file.
        pieces: its tensors; the widest dtype goes first, which keeps all of them aligned.
        metadata: texts by name.
        progress: called with WRITING or CHECKING, the bytes done and all of them. What it raises is passed on.
    Raises: BuildError for a file that is not what was written; what the pieces raise; OSError of the system.
    """
    pieces = sorted(pieces, key=lambda piece: -DTYPE_BITS[piece.dtype])
    report, total = progress or (lambda *_: None), sum(piece.size for piece in pieces)
    entries = _entries(pieces)
    digests = _write(part, _head(entries, metadata), pieces, lambda done: report(WRITING, done, total))
    with open_tensors(part) as file:
        if file.header != entries or file.metadata != metadata:
            raise _unlike(part, "the head")
        _compare(file, pieces, digests, lambda done: report(CHECKING, done, total))


def _entries(pieces: Sequence[Piece]) -> dict[str, Any]:
    """Returns the new file's tensors as its head has them."""
    entries, end = {}, 0
    for piece in pieces:
        entries[piece.key] = {"dtype": piece.dtype, "shape": list(piece.shape), "data_offsets": [end, end + piece.size]}
        end += piece.size
    return entries


def _head(entries: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    text = json.dumps({METADATA: metadata, **entries}).encode()
    text += b" " * (-len(text) % 8)  # the format's alignment
    return len(text).to_bytes(8, "little") + text


def _write(part: Path, head: bytes, pieces: Sequence[Piece], report: Callable[[int], None]) -> list[bytes]:
    """Writes the file and returns the hash of each tensor's bytes."""
    done, flushed, digests = 0, 0, []
    with open(part, "wb", opener=disk.no_follow) as file:
        file.write(head)
        for piece in pieces:
            digest = hashlib.sha256()
            for block in piece.content():
                digest.update(block)
                done += file.write(block)
                if done - flushed >= FLUSH:  # so that no long wait is left for the end
                    os.fsync(file.fileno())
                    flushed = done
                report(done)
                del block  # before the next tensor is read
            digests.append(digest.digest())
        file.flush()
        os.fsync(file.fileno())
        with suppress(AttributeError, OSError):  # what is read back comes from the disk, where the system can be asked for that
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return digests


def _compare(file: TensorFile, pieces: Sequence[Piece], digests: Sequence[bytes], report: Callable[[int], None]) -> None:
    computed = [piece for piece in pieces if piece.is_computed]
    again = {piece.key for piece in computed[:: max(len(computed) // COMPUTED_AGAIN, 1)][:COMPUTED_AGAIN]}
    done = 0
    for piece, digest in zip(pieces, digests, strict=True):
        same = [_digest(copied(file, piece.key)), *([_digest(piece)] if piece.key in again else [])]
        if any(other != digest for other in same):
            raise _unlike(file.path, piece.key)
        done += piece.size
        report(done)


def _digest(piece: Piece) -> bytes:
    digest = hashlib.sha256()
    for block in piece.content():
        digest.update(block)
        del block
    return digest.digest()


def _unlike(part: Path, what: str) -> BuildError:
    return BuildError(
        f"{part.name.removesuffix(disk.PART)} was not built: {what} reads back differently from what was written. Try again; "
        "if it happens again, the disk or the memory of this machine is at fault."
    )


def _require_free_name(target: Path) -> None:
    if target.suffix.lower() != ".safetensors":
        raise BuildError(f"The new checkpoint's name must end in .safetensors, got {target.name}.")
    if target.exists():
        raise BuildError(f"{target.name} is there already, and is not overwritten; choose another name.")


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Keeps others from building the same file. A host that died leaves no lock."""
    name = target.with_name(f"{target.name}.lock")
    disk.claim(name)
    lock = filelock.FileLock(name)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise BuildError(f"{target.name} is being built already; wait for it, or choose another name.") from error
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
        raise BuildError(f"{target.name} was not built: {disk.explain(error, target.parent, needed)}.") from error


class BuildClock:
    """Says how far a build is and how long it still takes."""

    def __init__(self) -> None:
        self._stage, self._since = "", 0.0

    def text(self, stage: str, done: int, total: int) -> str:
        """Returns "writing, 45 %, 3.10 GB of 6.94 GB, 20 s left".

        Args:
            stage: what goes on.
            done: bytes of it that are done.
            total: all of its bytes.
        """
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._since = stage, now
        words = [stage, f"{100 * done // max(total, 1)} %", f"{disk.format_bytes(done)} of {disk.format_bytes(total)}"]
        if 0 < done < total and now > self._since:
            words.append(f"{format_duration((now - self._since) / done * (total - done))} left")
        return ", ".join(words)
