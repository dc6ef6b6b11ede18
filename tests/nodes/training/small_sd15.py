"""A checkpoint of SD1.5's kind that the host's own loaders know: its channels and text width, but one level."""

from pathlib import Path

import torch
from safetensors.torch import save_file

WIDTH = 768  # of the text
SIZES = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [1], "channel_mult": [1],
    "transformer_depth": [1], "transformer_depth_output": [1, 1], "transformer_depth_middle": 1, "context_dim": WIDTH,
    "num_heads": 8, "num_head_channels": -1, "use_spatial_transformer": True, "legacy": False,
    "use_linear_in_transformer": False, "adm_in_channels": None, "use_temporal_attention": False,
}  # fmt: skip


def write(host, path: Path) -> Path:
    """Writes its UNet, in fp16, and returns the path."""
    import comfy.model_base
    import comfy.supported_models

    network = comfy.model_base.BaseModel(comfy.supported_models.SD15(dict(SIZES))).diffusion_model
    weights = host.fill(network, seed=7).state_dict()
    save_file({f"model.diffusion_model.{name}": tensor.half().contiguous() for name, tensor in weights.items()}, path)
    return path


def conditioning(seed: int) -> list:
    """Returns a CONDITIONING of random text states of its width."""
    return [[torch.randn(1, 77, WIDTH, generator=torch.Generator().manual_seed(seed)), {}]]
