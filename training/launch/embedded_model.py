"""The model that ships with the pack as diffusers' and transformers' classes, described once in demo/model/config.json.

The same file tells the ComfyUI node how to build the host's own classes, so the two sides cannot drift apart.
"""

import json
import re
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ...models.embedded import CHECKPOINT, CONFIG, TOKENIZER
from ...models.unet_names import original_names
from ...samplers.schedule import NoiseSchedule
from ..diffusion import Diffusion
from .diffusers_models import DTYPES, DiffusersModel

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
    """Returns the text encoder's tensors under the original names; those of transformers 5 begin without `text_model.`"""
    state = {k.removeprefix("text_model."): v for k, v in text.state_dict().items() if not k.endswith("position_ids")}
    return {f"text_model.{k}": v for k, v in state.items()}


def original_state(vae: AutoencoderKL, text: CLIPTextModel, unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    """Returns the tensors of the three networks under their names in a checkpoint of the original layout."""
    parts = ((UNET, unet_state(unet)), (VAE, vae_state(vae)), (TEXT, text_state(text)))
    return {prefix + key: tensor for prefix, state in parts for key, tensor in state.items()}


@torch.no_grad()
def load_networks(path: Path) -> tuple[AutoencoderKL, CLIPTextModel, UNet2DConditionModel]:
    """Returns autoencoder, text encoder and UNet of a checkpoint in float32, frozen and in eval mode.

    Raises: KeyError for a missing tensor.
    """
    config, tensors = load_config(), load_file(path)
    networks = build_vae(config), build_text_encoder(config), build_unet(config)
    for name, parameter in original_state(*networks).items():
        parameter.copy_(tensors[name])
    return tuple(network.eval().requires_grad_(False) for network in networks)


def load_embedded_model(dtype: str) -> DiffusersModel:
    """Returns the embedded model for training.

    Args:
        dtype: of UNet and text encoder, one of diffusers_models.DTYPES; the autoencoder is kept in float32.
    """
    vae, text, unet = load_networks(CHECKPOINT)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text.to(DTYPES[dtype]),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        unet=nn.Module.to(unet, DTYPES[dtype]),  # diffusers' own warns of layers in float32, of which it has none
        scheduler=noise_schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    # The hosts keep noise levels in float32; with the same ones, a training here equals ComfyUI's to the bit.
    levels = torch.tensor(NoiseSchedule.from_betas().table, dtype=torch.float32)
    return DiffusersModel(pipeline, is_embedded=True, diffusion=Diffusion.from_schedule(NoiseSchedule.from_sigmas(levels)))


def load_config() -> dict:
    """Returns demo/model/config.json: keys "unet", "vae", "text", "scaling_factor"."""
    return json.loads(CONFIG.read_text(encoding="utf-8"))


def build_vae(config: dict) -> AutoencoderKL:
    """Returns the untrained autoencoder between RGB images [3, 128, 128] and latents [4, 16, 16]."""
    vae = config["vae"]
    widths = tuple(vae["ch"] * factor for factor in vae["ch_mult"])
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=vae["num_res_blocks"],
        latent_channels=vae["z_channels"],
        scaling_factor=config["scaling_factor"],
    )


def build_unet(config: dict) -> UNet2DConditionModel:
    """Returns the untrained epsilon-prediction UNet of SD1.5's topology."""
    unet = config["unet"]
    layers = unet["num_res_blocks"][0]  # of every level
    attends = [depth > 0 for depth in unet["transformer_depth"][::layers]]
    return UNet2DConditionModel(
        in_channels=unet["in_channels"],
        out_channels=unet["out_channels"],
        block_out_channels=tuple(unet["model_channels"] * factor for factor in unet["channel_mult"]),
        layers_per_block=layers,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        cross_attention_dim=unet["context_dim"],
        sample_size=config["image_size"] // 2 ** (len(config["vae"]["ch_mult"]) - 1),
        attention_head_dim=unet["num_heads"],  # diffusers' name for the number of heads
    )


def build_text_encoder(config: dict) -> CLIPTextModel:
    """Returns the untrained CLIP text transformer: token ids [batch, 77] -> states [batch, 77, hidden_size]."""
    return CLIPTextModel(CLIPTextConfig(**config["text"], pad_token_id=config["text"]["eos_token_id"]))


def noise_schedule() -> DDPMScheduler:
    """Returns SD1.5's scaled-linear schedule, 0.00085 to 0.012 over 1000 steps."""
    unclipped = {"clip_sample": False, "steps_offset": 1}  # as diffusers wants SD1.5's to be described
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **unclipped)
