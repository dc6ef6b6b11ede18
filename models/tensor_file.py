"""A safetensors file read through one opening: what is loaded is what was checked, also where others write to the file."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch

from ..errors import UnsupportedModelError
from .header import METADATA, header_of, open_safetensors

HASH = "modelspec.hash_sha256"  # in the metadata: "0x" and the SHA-256 of all that follows the header
OWN = "hyper_sd_"  # how this pack's entries of the metadata begin
# Source: the safetensors library, `_TYPES`. This torch may lack some of them.
_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
DTYPES = {key: getattr(torch, name) for key, name in _NAMES.items() if hasattr(torch, name)}
Stamp = tuple[int, int, int]  # of a file: which one it is, its size and when it was changed


class TensorFile:
    """An open safetensors file whose header was checked.

    Args:
        file: at its beginning.
        path: what messages call it.
    Raises: UnsupportedModelError as read_header().
    """

    def __init__(self, file: BinaryIO, path: Path):
        self._file, self.path, self.stamp = file, path, stamp_of(file)
        self.header = header_of(file, path)
        self.metadata: dict[str, str] = self.header.pop(METADATA, {})
        self.first = self.stamp[1] - max(entry["data_offsets"][1] for entry in self.header.values())

    def read(self, start: int, size: int) -> torch.Tensor:
        """Returns bytes as a tensor of its own, counted from the start of the file.

        Raises: UnsupportedModelError where the file ends before.
        """
        values = torch.empty(size, dtype=torch.uint8)
        self._file.seek(start)
        if self._file.readinto(values.numpy()) != size:
            raise UnsupportedModelError(changed(self.path))
        return values

    def tensor(self, name: str) -> torch.Tensor:
        """Returns a tensor in memory of its own.

        Raises: UnsupportedModelError where the file has changed, or this torch does not know the dtype.
        """
        entry = self.header[name]
        begin, end = entry["data_offsets"]
        return self._shaped(name, self.read(self.first + begin, end - begin))

    def tensors(self, check: Callable[[str, torch.Tensor], None] = lambda name, tensor: None) -> dict[str, torch.Tensor]:
        """Returns all tensors by name. A file that this pack has written with a hash of its data has to have that hash.

        Args:
            check: called with each.
        Raises: UnsupportedModelError as tensor(), for another hash, and as `check` does.
        """
        promised = self.metadata.get(HASH) if any(key.startswith(OWN) for key in self.metadata) else None
        digest, held = hashlib.sha256(), {}
        for name in sorted(self.header, key=lambda name: self.header[name]["data_offsets"]):
            begin, end = self.header[name]["data_offsets"]
            values = self.read(self.first + begin, end - begin)
            if promised is not None:
                digest.update(values.numpy())
            held[name] = self._shaped(name, values)
            check(name, held[name])
        self.require_unchanged()
        if promised not in (None, f"0x{digest.hexdigest()}"):
            raise UnsupportedModelError(
                f"{self.path} is damaged, or another program has changed it: its data do not have the hash that it names "
                f"({HASH}). Take another copy of it, or save it again."
            )
        return {name: held[name] for name in self.header}

    def _shaped(self, name: str, values: torch.Tensor) -> torch.Tensor:
        entry = self.header[name]
        if entry["dtype"] not in DTYPES:
            raise UnsupportedModelError(f"{self.path} stores {name[:80]} as {entry['dtype']}, which is not read here.")
        return values.view(DTYPES[entry["dtype"]]).reshape(entry["shape"])

    def require_unchanged(self) -> None:
        """Refuses a file that another program has written to since it was opened.

        Raises: UnsupportedModelError saying so.
        """
        if stamp_of(self._file) != self.stamp:
            raise UnsupportedModelError(changed(self.path))


def stamp_of(file: BinaryIO) -> Stamp:
    """Returns by what an open file is known again."""
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns


def changed(path: Path) -> str:
    """Returns the sentence on a file that others write to."""
    return f"{path} changed while it was read; wait until it is written, and try again."


@contextmanager
def open_tensors(path: Path, stamp: Stamp | None = None) -> Iterator[TensorFile]:
    """Opens a safetensors file, and makes sure at the end that nobody has written to it meanwhile.

    Args:
        path: of the file.
        stamp: that it had when it was looked at before; None where it was not.
    Raises: UnsupportedModelError as read_header(), and for a file that has changed; OSError of the system.
    """
    path = Path(path)
    with open_safetensors(path) as file:
        held = TensorFile(file, path)
        if stamp not in (None, held.stamp):
            raise UnsupportedModelError(changed(path))
        yield held
        held.require_unchanged()


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Returns a file's tensors by name, in memory of their own, and its metadata.

    Raises: UnsupportedModelError as TensorFile.tensors(); OSError of the system.
    """
    with open_tensors(path) as file:
        return file.tensors(), file.metadata
