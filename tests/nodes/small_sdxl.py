"""A small SDXL model of the host, loaded as Hyper-SD One-Step Loader loads a UNet file, and a prompt for it."""

from pathlib import Path

import torch
from hyper_sd.models.unet_file import PREFIX, inspect_unet
from hyper_sd.tests.models.synthetic_unets import SMALL


def small_config(info):
    """Returns the host's SDXL configuration with the sizes it finds in the file; by itself it knows SDXL's own sizes only."""
    import comfy.model_detection
    import comfy.supported_models
    from hyper_sd.nodes.one_step import host_state

    found = comfy.model_detection.detect_unet_config(host_state(info), PREFIX)
    return comfy.supported_models.SDXL(found)


def load_small(path: Path, dtype: torch.dtype = torch.float32):
    """Returns the MODEL of a UNet file of the size SMALL."""
    from hyper_sd.nodes.one_step import host_state, load_unet

    info = inspect_unet(path, SMALL)
    return load_unet(info, dtype, small_config(info), host_state(info))


def conditioning(width: int = SMALL.context, pooled: int = 16) -> list:
    """Returns a CONDITIONING of random text states, of the sizes of SMALL where no others are given."""
    generator = torch.Generator().manual_seed(2)
    states = torch.randn(1, 77, width, generator=generator)
    return [[states, {"pooled_output": torch.randn(1, pooled, generator=generator)}]]
