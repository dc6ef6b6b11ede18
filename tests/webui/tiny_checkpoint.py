"""Checkpoints and LoRAs with SD1.5's topology and seeded random weights, in the files a WebUI loads."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

TOKENIZER = Path(__file__).resolve().parents[2] / "demo" / "model" / "tokenizer"
CONTEXT = 768  # by its text width a LoRA file tells its family
IN_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
IN_VAE = (
    (r"(en|de)coder\.mid_block\.attentions\.0\.", r"\1coder.mid.attn_1."),
    (r"(attn_1\.)group_norm", r"\1norm"),
    (r"(attn_1\.)to_([qkv])\.", r"\1\2."),
    (r"(attn_1\.)to_out\.0", r"\1proj_out"),
    (r"(up|down)_blocks\.(\d)\.resnets\.", r"\1.\2.block."),
    (r"(up|down)_blocks\.(\d)\.(up|down)samplers\.0", r"\1.\2.\3sample"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
)


@dataclass(frozen=True)
class Shape:
    """How wide a checkpoint is; heads: of an attention; tokens: of the text encoder's vocabulary; text: its states' width."""

    unet: tuple[int, ...]
    vae: tuple[int, ...]
    heads: int
    layers: int
    tokens: int
    text: int = CONTEXT


# A1111 reads the shape from a yaml; the Forge family and ComfyUI know SD1.5 by its first width and bring VAE and text encoder.
SMALL = Shape(unet=(32, 64, 128, 128), vae=(32, 64, 128, 128), heads=4, layers=2, tokens=4096)
WIDE = Shape(unet=(320, 320, 320, 320), vae=(128, 256, 512, 512), heads=8, layers=12, tokens=49408)


def _unet(shape: Shape) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=shape.unet, cross_attention_dim=CONTEXT, attention_head_dim=shape.heads, layers_per_block=2
    )


def make_unet(shape: Shape) -> UNet2DConditionModel:
    """Returns the network, float32, the same at every call; its output has about unit size."""
    torch.manual_seed(11)
    unet = _unet(shape)
    with torch.no_grad():
        unet.conv_out.weight.mul_(3.0)
    return unet.half().float().eval()  # the values of the file


def make_vae(shape: Shape) -> AutoencoderKL:
    """Returns an autoencoder whose pictures have contrast."""
    torch.manual_seed(12)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(block_out_channels=shape.vae, latent_channels=4, layers_per_block=2, **kinds)
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(2.0)
    return vae


def text_config(shape: Shape) -> CLIPTextConfig:
    """Returns the text encoder's configuration."""
    return CLIPTextConfig(
        vocab_size=shape.tokens,
        hidden_size=shape.text,
        intermediate_size=3072,
        projection_dim=shape.text,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.text // 64,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        bos_token_id=shape.tokens - 2,
        eos_token_id=shape.tokens - 1,
    )


def unet_key(key: str) -> str:
    """Returns the original SD name of a diffusers parameter, "down_blocks.1.resnets.0.conv1.weight" for example."""
    module, _, kind = key.rpartition(".")
    if module in OUTSIDE:
        return f"{OUTSIDE[module]}.{kind}"
    found = re.match(r"(down|mid|up)_block(?:s\.(\d))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", key)
    part, block, role, index, rest = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
    if role == "resnets":
        inner, _, kind = rest.rpartition(".")
        rest = f"{IN_RESNET[inner]}.{kind}"
    if part == "mid":
        return f"middle_block.{1 if role == 'attentions' else 2 * index}.{rest}"
    if role == "downsamplers":
        return f"input_blocks.{3 * block + 3}.0.op.{kind}"
    if role == "upsamplers":
        return f"output_blocks.{3 * block + 2}.{2 if block else 1}.conv.{kind}"
    place = "input_blocks" if part == "down" else "output_blocks"
    number = 3 * block + index + (part == "down")
    return f"{place}.{number}.{int(role == 'attentions')}.{rest}"


def vae_key(key: str) -> str:
    """Returns the original SD name of a diffusers autoencoder's parameter."""
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", key)
    for pattern, name in IN_VAE:
        key = re.sub(pattern, name, key)
    return re.sub(r"decoder\.up\.(\d)", lambda found: f"decoder.up.{3 - int(found[1])}", key)


def vae_weights(vae: AutoencoderKL) -> dict[str, torch.Tensor]:
    named = {vae_key(key): value for key, value in vae.state_dict().items()}
    attention = re.compile(r"attn_1\.(q|k|v|proj_out)\.weight")
    return {key: value[:, :, None, None] if attention.search(key) else value for key, value in named.items()}


def text_weights(shape: Shape) -> dict[str, torch.Tensor]:
    """Returns the text encoder's weights in the checkpoint's names."""
    torch.manual_seed(13)
    states = CLIPTextModel(text_config(shape)).state_dict()
    # As a trained encoder's, the mean of its states is not 0: the hosts' emphasis divides by it.
    next(value for key, value in states.items() if key.endswith("final_layer_norm.bias")).fill_(0.1)
    named = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in states.items()}
    return {key: value for key, value in named.items() if not key.endswith("position_ids")}


def write_checkpoint(path: Path, shape: Shape) -> None:
    """Writes a full checkpoint, float16."""
    network = {unet_key(key): value for key, value in make_unet(shape).state_dict().items()}
    write_parts(path, shape, network, "cond_stage_model.transformer.")


def write_parts(path: Path, shape: Shape, network: dict[str, torch.Tensor], text_prefix: str) -> None:
    """Writes a network in original SD names, an autoencoder and a text encoder as a full checkpoint, float16."""
    parts = {
        "model.diffusion_model.": network,
        "first_stage_model.": vae_weights(make_vae(shape)),
        text_prefix: text_weights(shape),
    }
    weights = {prefix + key: value.half().contiguous() for prefix, part in parts.items() for key, value in part.items()}
    save_file(weights, path)


def write_tokenizer(folder: Path, shape: Shape, source: Path = TOKENIZER) -> Path:
    """Makes the folder that a yaml names as its text encoder: a tokenizer's files and the configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)
    text = text_config(shape).to_dict()
    (folder / "config.json").write_text(json.dumps({**text, "model_type": "clip_text_model"}), encoding="utf-8")
    return folder


def vae_parameters(shape: Shape) -> dict:
    """Returns what a yaml says of the autoencoder."""
    widths = {"ch": shape.vae[0], "ch_mult": [width // shape.vae[0] for width in shape.vae]}
    sizes = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "num_res_blocks": 2}
    ddconfig = {**sizes, **widths, "attn_resolutions": [], "dropout": 0.0}
    return {"embed_dim": 4, "monitor": "val/loss", "ddconfig": ddconfig, "lossconfig": {"target": "torch.nn.Identity"}}


def write_yaml(checkpoint: Path, shape: Shape, tokenizer: Path, parameterization: str = "eps") -> None:
    """Writes the file beside a checkpoint in which the A1111 line reads its shape."""
    unet = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": shape.unet[0],
        "channel_mult": [width // shape.unet[0] for width in shape.unet], "attention_resolutions": [4, 2, 1],
        "num_res_blocks": 2, "num_heads": shape.heads, "use_spatial_transformer": True, "transformer_depth": 1,
        "context_dim": CONTEXT, "use_checkpoint": False, "legacy": False,
    }  # fmt: skip
    params = {
        "linear_start": 0.00085, "linear_end": 0.0120, "num_timesteps_cond": 1, "log_every_t": 200, "timesteps": 1000,
        "first_stage_key": "jpg", "cond_stage_key": "txt", "image_size": 64, "channels": 4, "cond_stage_trainable": False,
        "conditioning_key": "crossattn", "monitor": "val/loss", "scale_factor": 0.18215, "use_ema": False,
        "parameterization": parameterization,
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet},
        "first_stage_config": {"target": "ldm.models.autoencoder.AutoencoderKL", "params": vae_parameters(shape)},
        "cond_stage_config": {
            "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder", "params": {"version": str(tokenizer)},
        },
    }  # fmt: skip
    model = {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "base_learning_rate": 1e-4, "params": params}
    checkpoint.with_suffix(".yaml").write_text(json.dumps({"model": model}), encoding="utf-8")  # JSON is YAML


def write_lora(path: Path, shape: Shape, seed: int, rank: int = 4, size: float = 0.02) -> None:
    """Writes a kohya LoRA of every attention and resnet layer, as Hyper-SD's are made."""
    with torch.device("meta"):  # names and sizes are all that counts
        network = _unet(shape)
    torch.manual_seed(seed)
    weights = {}
    for name, module in network.named_modules():
        if not isinstance(module, torch.nn.Linear | torch.nn.Conv2d) or not name.startswith(("down_", "mid_", "up_")):
            continue
        key, full = f"lora_unet_{name.replace('.', '_')}", module.weight.shape
        down = torch.randn(rank, *full[1:])
        weights[f"{key}.lora_down.weight"] = down / down[0].numel() ** 0.5
        weights[f"{key}.lora_up.weight"] = size * torch.randn(full[0], rank, *[1] * (len(full) - 2))
        weights[f"{key}.alpha"] = torch.tensor(float(rank))
    save_file(weights, path)
