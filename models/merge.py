"""A full SDXL checkpoint out of a lone UNet and a base model."""

from pathlib import Path

import torch

from ..errors import UnsupportedModelError
from .inside import FEW_STEP, FROM_UNET
from .new_file import Report, as_dtype, cast, new_file, write_pieces
from .one_step import start_note
from .sdxl_unet import SDXL, UnetShape
from .tensor_file import open_tensors
from .unet_file import CLIP, PREFIX, VAE, UnetInfo, inspect_unet

PARTS = {f"{CLIP}0.": "CLIP-L text encoder", f"{CLIP}1.": "OpenCLIP-bigG text encoder", VAE: "VAE"}  # of a full SDXL checkpoint


def merge(
    base: Path,
    unet: Path,
    target: Path,
    *,
    dtype: torch.dtype = torch.float16,
    progress: Report | None = None,
    expected: UnetShape = SDXL,
) -> Path:
    """Returns `target`, a new checkpoint with the UNet of one file and the text encoders and VAE of another.

    Never more than one tensor is in memory. The file gets its name once it is whole, and never takes another's place.

    Args:
        base: a full SDXL checkpoint.
        unet: a file with only an SDXL UNet, under diffusers' names or the original ones.
        target: the new file, which ends in .safetensors.
        dtype: of every floating point tensor in it.
        progress: called with what goes on, the bytes done and all of them. What it raises ends the merge, leaves nothing
            behind and is passed on.
        expected: the sizes both UNets must have.
    Raises: UnsupportedModelError for wrong or damaged files; BuildError for a name that is taken, too full a disk or a folder
        that cannot be written; OSError of the system otherwise.
    """
    base, unet, target = Path(base), Path(unet), Path(target)
    lone, whole = _inspected(base, unet, expected)
    with open_tensors(unet, lone.stamp) as network, open_tensors(base, whole.stamp) as donor:
        pieces = [cast(network, tensor, dtype, PREFIX + tensor.key) for tensor in lone.tensors]
        # Other tensors, such as "v_pred", belong to the base's UNet and are left out.
        pieces += [as_dtype(donor, name, dtype) for name in whole.others if name.startswith((CLIP, VAE))]
        with new_file(target, sum(piece.size for piece in pieces)) as part:
            notes = {"format": "pt", FROM_UNET: unet.name, "hyper_sd.base": base.name}
            inside = {key: text for key, text in network.metadata.items() if key == FEW_STEP}
            write_pieces(part, pieces, notes | inside | start_note(unet.name, network.metadata), progress)
            network.require_unchanged()
            donor.require_unchanged()
    return target


def _inspected(base: Path, unet: Path, expected: UnetShape) -> tuple[UnetInfo, UnetInfo]:
    """Returns what is in the lone UNet's file and in the base.

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
    return lone, whole
