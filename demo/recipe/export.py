"""Stage 4: one fp16 checkpoint in the original Stable Diffusion layout, which the hosts' own classes read."""

import re
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from ...models.unet_names import original_names
from .networks import build_vae, load_config
from .train_denoiser import Denoiser

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_state(unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    """Returns the UNet's tensors under ldm names without prefix."""
    rename, state = original_names(unet), {}
    for key, tensor in unet.state_dict().items():
        module, kind = key.rsplit(".", 1)
        state[f"{rename(module)}.{kind}"] = tensor
    return state


def vae_state(vae: AutoencoderKL) -> dict[str, torch.Tensor]:
    """Returns the autoencoder's tensors under ldm names without prefix."""
    top = len(vae.config.block_out_channels) - 1
    rules = [
        (r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2"),
        (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{top - int(m[1])}.block.{m[2]}"),
        (r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{top - int(m[1])}.upsample"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0\.(\w+(?:\.0)?)\.(weight|bias)", lambda m: f"mid.attn_1.{ATTENTION[m[1]]}.{m[2]}"),
        (r"conv_shortcut", "nin_shortcut"),
        (r"conv_norm_out", "norm_out"),
    ]
    state = {}
    for key, tensor in vae.state_dict().items():
        name = key
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        attention = ".attn_1." in name and name.endswith("weight") and tensor.ndim == 2
        state[name] = tensor[:, :, None, None] if attention else tensor
    return state


def text_state(text: CLIPTextModel) -> dict[str, torch.Tensor]:
    """Returns the text encoder's tensors under the original names; transformers 5 dropped their `text_model.`"""
    state = {k.removeprefix("text_model."): v for k, v in text.state_dict().items() if not k.endswith("position_ids")}
    return {f"text_model.{k}": v for k, v in state.items()}


def _named(vae: AutoencoderKL, denoiser: Denoiser) -> dict[str, torch.Tensor]:
    parts = ((UNET, unet_state(denoiser.unet)), (VAE, vae_state(vae)), (TEXT, text_state(denoiser.text)))
    return {prefix + k: v for prefix, state in parts for k, v in state.items()}


def save_checkpoint(vae: AutoencoderKL, denoiser: Denoiser, path: Path) -> None:
    """Writes the three networks as one fp16 safetensors checkpoint, whole or not at all."""
    tensors = {k: v.half().contiguous() for k, v in _named(vae, denoiser).items()}
    partial = path.with_suffix(".part")
    save_file(tensors, partial, metadata={"format": "pt", "title": "Hyper-SD demo model", "prediction_type": "epsilon"})
    partial.replace(path)


@torch.no_grad()
def load_checkpoint(path: Path) -> tuple[AutoencoderKL, Denoiser]:
    """Returns the networks of a saved checkpoint in float32, frozen, in eval mode. Raises KeyError for a missing tensor."""
    config = load_config()
    vae, denoiser, tensors = build_vae(config), Denoiser(config), load_file(path)
    for name, parameter in _named(vae, denoiser).items():
        parameter.copy_(tensors[name])
    return vae.eval().requires_grad_(False), denoiser.eval().requires_grad_(False)
