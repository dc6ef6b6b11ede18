"""Looks at a checkpoint's head before anything is started: is it usable, and which model is it."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import UnsupportedModelError
from ..models.families import FAMILIES, NETWORK, model_of, title_of
from ..models.header import read_header

PICKLED = {".ckpt", ".pt", ".pth", ".bin"}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can be run.

    Args:
        path: its file.
        family: "sd15" or "sdxl".
        size: side in pixels of the squares that the family was trained on.
    """

    path: Path
    family: str
    size: int


def read_checkpoint(path: Path) -> Checkpoint:
    """Returns what a checkpoint file is.

    Raises: UnsupportedModelError when it is missing, pickled, damaged, no full checkpoint, or neither Stable Diffusion 1.5 nor
        XL; then it says which model it is.
    """
    path = path.expanduser()
    if not path.is_file():
        raise UnsupportedModelError(f"--checkpoint {path} does not exist; give the path of an SD1.5 or SDXL .safetensors file.")
    if path.suffix.lower() in PICKLED:
        raise UnsupportedModelError(
            f"--checkpoint {path} is a pickled format; loading one can run code hidden in it. "
            "Give the .safetensors version instead."
        )
    header = read_header(path)
    if not any(name.startswith(NETWORK) for name in header):
        raise UnsupportedModelError(
            f"--checkpoint {path} holds no {NETWORK}* tensors: it is a LoRA, a VAE or a bare UNet. "
            "Give a full SD1.5 or SDXL checkpoint."
        )
    model = model_of(header)
    family = FAMILIES.get(model)
    if family is None or family.is_flow:
        raise UnsupportedModelError(
            f"--checkpoint {path} is {title_of(model) if model else 'a model of an unknown kind'}, which is neither "
            "Stable Diffusion 1.5 nor XL; the demo's workflow runs those two."
        )
    if not any(name.startswith(family.text_encoders) for name in header):
        raise UnsupportedModelError(
            f"--checkpoint {path} is only a UNet, without text encoders. Give a full {family.title} checkpoint."
        )
    return Checkpoint(path, family.key, family.size)
