"""Looks at a checkpoint's first bytes before anything is started: is it usable, and which model is it."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import UnsupportedModelError
from ..models.header import read_header
from .errors import CheckpointError

_UNET = "model.diffusion_model."


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can be run: its file, family "sd15" or "sdxl", and the image size that family was trained at."""

    path: Path
    family: str
    size: int


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
    try:
        keys = read_header(path).keys()
    except UnsupportedModelError as error:
        raise CheckpointError(str(error)) from error
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
