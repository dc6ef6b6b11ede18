"""The head of a safetensors file: what it holds, read without loading a tensor or running a line of it."""

import json
import struct
from pathlib import Path

from ..errors import UnsupportedModelError

MAX_HEADER = 100_000_000  # the safetensors format's own limit
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read_header(path: Path) -> dict:
    """Returns the JSON header of a safetensors file, checked against the file's size.

    Source: the safetensors format: u64 little-endian length, JSON, then the data.
    Returns: tensor names to {"dtype", "shape", "data_offsets"}, and "__metadata__" where there is one.
    Raises: UnsupportedModelError for a pickle, another kind of file, a damaged or a truncated one; OSError of the system.
    """
    total = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start.startswith(_PICKLE_STARTS):
            raise UnsupportedModelError(
                f"{path} is a pickled checkpoint; loading one can run code hidden in it. Give the .safetensors version instead."
            )
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= MAX_HEADER:
            raise UnsupportedModelError(f"{path} is no safetensors file; give a .safetensors file.")
        text = file.read(length)
    try:
        header = json.loads(text)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        wanted = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UnsupportedModelError(f"{path} is no readable safetensors file ({error}); download it again.") from error
    if not ends:
        raise UnsupportedModelError(f"{path} holds no tensors; download it again.")
    if total != wanted:
        raise UnsupportedModelError(
            f"{path} has {total} bytes, its header says {wanted}: the download is cut off; download it again."
        )
    return header
