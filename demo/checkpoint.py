"""Looks at a checkpoint's first bytes before anything is started: is it usable, and which model is it."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from .errors import CheckpointError

MAX_HEADER = 100_000_000  # the safetensors format's own limit
_UNET = "model.diffusion_model."
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can be run: its file, family "sd15" or "sdxl", and the image size that family was trained at."""

    path: Path
    family: str
    size: int


def read_header(path: Path) -> dict:
    """Returns the JSON header of a safetensors file, whole and consistent with the file's size.

    Source: the safetensors format: u64 little-endian length, JSON, then the data.
    Raises: CheckpointError.
    """
    total = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start.startswith(_PICKLE_STARTS):
            raise CheckpointError(
                f"{path} is a pickled checkpoint; loading one can run code hidden in it. Give the .safetensors version instead."
            )
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= MAX_HEADER:
            raise CheckpointError(f"{path} is no safetensors file; give a .safetensors checkpoint.")
        text = file.read(length)
    try:
        header = json.loads(text)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{path} is no readable safetensors file ({error}); download it again.") from error
    if not ends or total != 8 + length + max(ends):
        wanted = 8 + length + max(ends, default=0)
        raise CheckpointError(
            f"{path} has {total} bytes, its header says {wanted}: the download is cut off; download it again."
        )
    return header


def read_checkpoint(path: Path) -> Checkpoint:
    """Returns what a checkpoint file is.

    Raises: CheckpointError when it is missing, pickled, damaged or neither Stable Diffusion 1.5 nor XL.
    """
    path = path.expanduser()
    if not path.is_file():
        raise CheckpointError(f"--checkpoint {path} does not exist; give the path of an SD1.5 or SDXL .safetensors file.")
    if path.suffix.lower() in {".ckpt", ".pt", ".pth", ".bin"}:
        raise CheckpointError(
            f"--checkpoint {path} is a pickled format; loading one can run code hidden in it. "
            "Give the .safetensors version instead."
        )
    keys = read_header(path).keys()
    if not any(key.startswith(_UNET) for key in keys):
        raise CheckpointError(
            f"--checkpoint {path} holds no {_UNET}* tensors: it is a LoRA, a VAE or a bare UNet. "
            "Give a full SD1.5 or SDXL checkpoint."
        )
    if any(key.startswith("conditioner.embedders.") for key in keys):
        return Checkpoint(path, "sdxl", 1024)
    if any(key.startswith("cond_stage_model.transformer.") for key in keys):
        return Checkpoint(path, "sd15", 512)
    raise CheckpointError(f"--checkpoint {path} is neither Stable Diffusion 1.5 nor XL; the demo's workflow runs those two.")
