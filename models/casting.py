"""Tensors of a file as another dtype: read one at a time, and refused where the dtype cannot hold them."""

import math
from pathlib import Path
from typing import NamedTuple

import torch

from ..errors import UnsupportedModelError
from .tensor_file import TensorFile

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LAST_FP8 = {torch.float8_e4m3fn: 0x7E, torch.float8_e5m2: 0x7B}  # bits of the largest finite value


class Stored(NamedTuple):
    """One floating point tensor in a file: its name, shape, dtype, and first byte in the file."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int


def stored_in(file: TensorFile, key: str) -> Stored | None:
    """Returns where a tensor lies in a file, None for one that is not of floating point."""
    entry = file.header[key]
    dtype = DTYPES.get(entry["dtype"])
    return Stored(key, tuple(entry["shape"]), dtype, file.first + entry["data_offsets"][0]) if dtype else None


def read_as(file: TensorFile, stored: Stored, dtype: torch.dtype) -> torch.Tensor:
    """Returns a tensor's values in memory of their own, cast to a dtype.

    Args:
        file: that it lies in.
        stored: where.
        dtype: any floating point dtype. To fp8 it is a plain cast, with no scale.
    Raises: UnsupportedModelError for NaN, infinity, a value that `dtype` cannot hold, or a file that ends before.
    """
    size = math.prod(stored.shape) * stored.dtype.itemsize
    return _cast(file.read(stored.start, size).view(stored.dtype), dtype, stored, file.path)


def require_finite(path: Path, name: str, tensor: torch.Tensor) -> None:
    """Refuses a tensor of a file that has a NaN or an infinity.

    Args:
        path: of the file.
        name: of the tensor.
        tensor: its values.
    Raises: UnsupportedModelError naming it.
    """
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
        raise UnsupportedModelError(
            f"{path} has values that are not finite in {name}: every picture would turn black. "
            "Download it again; if you trained it, take an earlier save."
        )


def _cast(source: torch.Tensor, dtype: torch.dtype, stored: Stored, path: Path) -> torch.Tensor:
    """Returns the values in their shape and `dtype`."""
    # Exact, and from float32 torch casts to fp8 six times as fast as from 16 bits.
    detour = dtype.itemsize == 1 and stored.dtype.itemsize == 2
    tensor = (source.float() if detour else source).to(dtype).view(stored.shape)
    if _looks_wrong(tensor.view(-1)):
        _require_values(source, dtype, stored.key, path)
    return tensor


def _looks_wrong(values: torch.Tensor) -> bool:
    """Returns whether values may have met the end of their dtype's range, at a fraction of the cost of looking closely."""
    if values.dtype.itemsize == 1:  # an overflow became NaN or the largest value, whichever this torch does
        last = _LAST_FP8.get(values.dtype, 0)
        return values.view(torch.int8).max().item() >= last or values.view(torch.uint8).max().item() >= last + 128
    return not math.isfinite(values.sum())  # also where the sum alone is too large


def _require_values(values: torch.Tensor, dtype: torch.dtype, key: str, path: Path) -> None:
    if values.dtype.itemsize == 1:  # no fp8 has a value that float16 lacks, and torch compares none
        values = values.to(torch.float16)
    low, high = torch.aminmax(values)  # both are NaN where one value is
    largest = max(-float(low), float(high))
    if not math.isfinite(largest):
        raise UnsupportedModelError(
            f"{path.name} has values that are not finite in {key}: every picture would turn black. Download it again."
        )
    if largest > torch.finfo(dtype).max:
        raise UnsupportedModelError(
            f"{path.name} has a value of {largest:.4g} in {key}, more than {str(dtype).removeprefix('torch.')} holds; "
            "choose fp32 or bf16."
        )
