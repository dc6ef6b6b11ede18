"""How a benchmark gets a ComfyUI to import from, and what it takes of it: the pack's nodes, a model in full size."""

import argparse
import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from .measure import random_weights

# Of SDXL's UNet, as the host's detection finds them; narrow, the same blocks have a few channels.
SDXL = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "use_spatial_transformer": True, "legacy": False,
    "num_classes": "sequential", "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "use_linear_in_transformer": True,
    "use_temporal_attention": False, "use_temporal_resblock": False,
}  # fmt: skip
SDXL_FULL = {"model_channels": 320, "num_head_channels": 64, "context_dim": 2048, "adm_in_channels": 2816}
SDXL_NARROW = {"model_channels": 32, "num_head_channels": 32, "context_dim": 32, "adm_in_channels": 1552}
SDXL_WEIGHTS = 2_567_463_684  # of the full one


def add_comfyui_option(parser: argparse.ArgumentParser) -> None:
    """Adds --comfyui to a parser; COMFYUI_PATH is its default."""
    parser.add_argument("--comfyui", type=Path, default=os.environ.get("COMFYUI_PATH"), help="folder of a ComfyUI")


def enter_comfyui(parser: argparse.ArgumentParser, folder: Path | None) -> None:
    """Returns when the host can be imported, without a graphics card too.

    Where it cannot, the same command runs once more with the host on the path, and this one ends.

    Args:
        parser: reports what is wrong with the folder.
        folder: the ComfyUI.
    Raises: SystemExit with the second run's exit code.
    """
    if not folder or not (Path(folder) / "main.py").is_file():
        parser.error(f"--comfyui or COMFYUI_PATH must name a ComfyUI folder, got {folder}")
    comfyui = str(Path(folder).resolve())
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if comfyui not in paths:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([comfyui, *filter(None, paths)])}
        raise SystemExit(subprocess.run(sys.orig_argv, env=environment, check=False).returncode)
    import comfy.options  # noqa: F401 - keeps the host from reading this command's arguments
    import utils.extra_config  # noqa: F401 - before nodes.py hides it
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()


def pack_nodes() -> dict[str, Any]:
    """Returns the pack's nodes by id; the host must be on the path."""
    from ..nodes.extension import HyperSDExtension

    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(HyperSDExtension().get_node_list())}


def full_unet() -> Any:
    """Returns SD1.5's UNet in full size as a MODEL, with seeded random weights; the host must be on the path."""
    import comfy.model_base
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.SD15(
        {
            "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
            "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
            "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "context_dim": 768, "num_heads": 8,
            "num_head_channels": -1, "use_spatial_transformer": True, "legacy": False, "use_linear_in_transformer": False,
            "adm_in_channels": None, "dtype": torch.float32,
        }
    )  # fmt: skip
    config.unet_config.update(num_heads=8, num_head_channels=-1)
    model = comfy.model_base.BaseModel(config)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.diffusion_model.parameters():
        scale = (parameter.numel() / parameter.shape[0]) ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def sdxl_unet(narrow: bool) -> Any:
    """Returns SDXL's UNet as a MODEL with seeded random weights, made on the host's device; the host must be on the path.

    Its weights have the dtype that the host's loader would choose for a file of SDXL.

    Args:
        narrow: whether its layers have a few channels only.
    """
    import comfy.model_management as management
    import comfy.model_patcher
    import comfy.supported_models

    device = management.get_torch_device()
    config = comfy.supported_models.SDXL({**SDXL, **(SDXL_NARROW if narrow else SDXL_FULL)})
    allowed = config.supported_inference_dtypes
    dtype = management.unet_dtype(model_params=SDXL_WEIGHTS, supported_dtypes=allowed)
    config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, allowed))
    model = config.get_model({}, "", device=device)
    random_weights(model.diffusion_model, seed=1)
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))
