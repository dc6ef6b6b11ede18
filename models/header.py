"""The head of a safetensors file: what it holds, read without loading a tensor or running a line of it."""

import json
import math
import os
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..disk import NotAFile, open_file
from ..errors import UnsupportedModelError

MAX_HEADER = 8 * 2**20  # bytes; the format allows 100 MB, and the largest whole checkpoints need less than 1
MOST_SIDES = 8  # of a tensor; a convolution over space and time has 5
METADATA = "__metadata__"
# Bits of a value; source: the safetensors library, `Dtype`.
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U16": 16,
    "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
_ENTRY = re.compile(rb'"([^"\\]+)"\s*:\s*(\{[^{}]*\})')  # a tensor's name and entry, as they stand in the header's text
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read_header(path: Path) -> dict:
    """Returns the JSON header of a safetensors file, after all that the format promises was checked.

    Its tensors fill the file from the header to the end in turn, without a gap and without overlap, each as large as its shape
    and dtype say.

    Source: the safetensors format: u64 little-endian length, JSON, then the data.
    Returns: tensor names to {"dtype", "shape", "data_offsets"}, and "__metadata__" where there is one.
    Raises: UnsupportedModelError for a pickle, another kind of file, a damaged or a truncated one; OSError of the system.
    """
    with open_safetensors(path) as file:
        return header_of(file, path)


def glance(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Any, int]]:
    """Yields tensors that a header seems to name, in its order and each once it is asked for, with nothing checked.

    It is many times as fast as read_header() where the first few tensors tell that a file need not be looked at any further.
    What they say besides that has to be read again with read_header().

    Args:
        path: of the file.
        wanted: tells of a tensor's name whether its entry is read.
    Returns: a tensor's name, its entry, and where the data of all tensors begin in the file, in bytes.
    Raises: UnsupportedModelError for what is no safetensors file at all; OSError of the system.
    """
    with open_safetensors(path) as file:
        text = file.read(_length_of(file, path))
    for found in _ENTRY.finditer(text):
        name = found[1].decode(errors="replace")
        if name != METADATA and wanted(name):
            try:
                entry = json.loads(found[2])
            except (ValueError, RecursionError):
                continue
            yield name, entry, 8 + len(text)


def open_safetensors(path: Path) -> BinaryIO:
    """Opens a file whose header is to be read.

    Raises: UnsupportedModelError for a folder, a pipe or a device; OSError of the system.
    """
    try:
        return open_file(path)
    except NotAFile as error:
        raise UnsupportedModelError(f"{path} is not a file; give a .safetensors file.") from error


def header_of(file: BinaryIO, path: Path) -> dict:
    """Returns the header of an open file, as read_header().

    Args:
        file: at its beginning.
        path: what messages call it.
    """
    length = _length_of(file, path)
    text, size = file.read(length), os.fstat(file.fileno()).st_size
    try:
        header = json.loads(text.decode())  # of bytes it would guess the encoding
        end = _end_of(header)
    except (ValueError, RecursionError) as error:
        raise UnsupportedModelError(
            f"{path} is no readable safetensors file ({str(error)[:200]}); download it again."
        ) from error
    if not header.keys() - {METADATA}:
        raise UnsupportedModelError(f"{path} holds no tensors; download it again.")
    if size != 8 + length + end:
        raise UnsupportedModelError(
            f"{path} has {size} bytes, its header says {8 + length + end}: the download is cut off; download it again."
        )
    return header


def _length_of(file: BinaryIO, path: Path) -> int:
    """Returns how many bytes a file's header has. Raises: UnsupportedModelError for a pickle and other kinds of files."""
    start = file.read(8)
    if start.startswith(_PICKLE_STARTS):
        raise UnsupportedModelError(
            f"{path} is a pickled checkpoint; loading one can run code hidden in it. Give the .safetensors version instead."
        )
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= MAX_HEADER:
        raise UnsupportedModelError(f"{path} is no safetensors file; give a .safetensors file.")
    return length


def _end_of(header: Any) -> int:
    """Returns how many bytes of data a header describes.

    Raises: ValueError saying which entry breaks which promise of the format.
    """
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    metadata = header.get(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("its metadata is no list of texts by name")
    "".join((*header, *metadata, *metadata.values())).encode()  # half a sign, such as \ud800, is no text
    spans = [(*_span(name, entry), name) for name, entry in header.items() if name != METADATA]
    end = 0
    for begin, following, name in sorted(spans):
        if begin != end:
            raise ValueError(f"the data of {name[:80]!r} begins at {begin}, where {end} is next")
        end = following
    return end


def _span(name: str, entry: Any) -> tuple[int, int]:
    """Returns where a tensor's data begin and end.

    Raises: ValueError for an entry that the format does not allow.
    """
    shown = repr(name[:80])
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of {shown} has not exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise ValueError(f"the dtype of {shown} is unknown")
    if not _counts(shape) or len(shape) > MOST_SIDES:
        raise ValueError(f"the shape of {shown} is no list of up to {MOST_SIDES} whole numbers")
    if not _counts(offsets) or len(offsets) != 2:
        raise ValueError(f"the data_offsets of {shown} are no two whole numbers")
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits % 8 or offsets[1] - offsets[0] != bits // 8:
        raise ValueError(f"the data of {shown} are not as long as its shape and dtype say")
    return offsets[0], offsets[1]


def _counts(value: Any) -> bool:
    """Whether a value is a list of whole numbers from 0 on, none so large that no file can hold it."""
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 2**63 for number in value)
