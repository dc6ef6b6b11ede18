"""The demo model's three networks, described once in demo/model/config.json, built here from diffusers and transformers.

The same file tells the ComfyUI node how to build the host's own classes, so the two sides cannot drift apart.
"""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

MODEL_FOLDER = Path(__file__).resolve().parents[1] / "model"


def load_config() -> dict:
    """Returns demo/model/config.json: keys "unet", "vae", "text", "scaling_factor"."""
    return json.loads((MODEL_FOLDER / "config.json").read_text(encoding="utf-8"))


def build_vae(config: dict) -> AutoencoderKL:
    """Returns the untrained AutoencoderKL; 128 px RGB <-> 16x16x4 latents."""
    dd = config["vae"]
    widths = tuple(dd["ch"] * m for m in dd["ch_mult"])
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=dd["num_res_blocks"],
        latent_channels=dd["z_channels"],
        scaling_factor=config["scaling_factor"],
    )


def build_unet(config: dict) -> UNet2DConditionModel:
    """Returns the untrained epsilon-prediction UNet of SD1.5's topology."""
    u = config["unet"]
    levels = range(len(u["channel_mult"]))
    per_level = u["num_res_blocks"][0]
    attends = [u["transformer_depth"][level * per_level] > 0 for level in levels]
    return UNet2DConditionModel(
        in_channels=u["in_channels"],
        out_channels=u["out_channels"],
        block_out_channels=tuple(u["model_channels"] * m for m in u["channel_mult"]),
        layers_per_block=per_level,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        cross_attention_dim=u["context_dim"],
        attention_head_dim=u["num_heads"],  # diffusers' name for the number of heads
    )


def build_text_encoder(config: dict) -> CLIPTextModel:
    """Returns the untrained causal CLIP text transformer; [batch, 77] ids -> [batch, 77, hidden]."""
    t = config["text"]
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=t["vocab_size"],
            hidden_size=t["hidden_size"],
            intermediate_size=t["intermediate_size"],
            num_hidden_layers=t["num_hidden_layers"],
            num_attention_heads=t["num_attention_heads"],
            max_position_embeddings=t["max_position_embeddings"],
            hidden_act=t["hidden_act"],
            bos_token_id=t["bos_token_id"],
            eos_token_id=t["eos_token_id"],
            pad_token_id=t["eos_token_id"],
        )
    )


def noise_schedule() -> DDPMScheduler:
    """Returns SD1.5's scaled-linear schedule, 0.00085 to 0.012 over 1000 steps."""
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


class Ema:
    """An exponential moving average of a module's parameters, warmed up as (1 + step) / (10 + step)."""

    def __init__(self, module: torch.nn.Module, decay: float):
        self.decay = decay
        self.shadow = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        state = module.state_dict()
        floats = [k for k in self.shadow if self.shadow[k].is_floating_point()]
        torch._foreach_lerp_([self.shadow[k] for k in floats], [state[k] for k in floats], 1 - decay)
