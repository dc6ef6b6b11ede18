"""Stage 4: one fp16 checkpoint in the original Stable Diffusion layout, which the hosts' own classes read."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from ...disk import whole_file
from ...training.launch.embedded_model import load_config, load_networks, original_state
from .train_denoiser import Denoiser


def save_checkpoint(vae: AutoencoderKL, denoiser: Denoiser, path: Path) -> None:
    """Writes the three networks as one fp16 safetensors checkpoint, whole or not at all."""
    state = original_state(vae, denoiser.text, denoiser.unet)
    tensors = {name: tensor.half().contiguous() for name, tensor in state.items()}
    with whole_file(path) as partial:
        save_file(tensors, partial, metadata={"format": "pt", "title": "Hyper-SD demo model", "prediction_type": "epsilon"})


@torch.no_grad()
def load_checkpoint(path: Path) -> tuple[AutoencoderKL, Denoiser]:
    """Returns the networks of a saved checkpoint in float32, frozen, in eval mode. Raises: KeyError for a missing tensor."""
    vae, text, unet = load_networks(path)
    denoiser = Denoiser(load_config())
    denoiser.text, denoiser.unet = text, unet
    return vae, denoiser.eval().requires_grad_(False)
