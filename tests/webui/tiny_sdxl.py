"""A checkpoint with SDXL's topology and SDXL's text width, small in all else, for the hosts that read a shape from a yaml."""

import json
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from . import tiny_checkpoint as tiny

TEXT = 2048  # by this width and by its 70 cross-attentions a file tells that it is SDXL
SHAPE = tiny.Shape(unet=(32, 64, 64), vae=(32, 64, 128, 128), heads=0, layers=1, tokens=4096, text=TEXT)
HEAD, SIZES = 16, 32  # values of an attention head, and of the embedding of each of a picture's six sizes
DEPTHS = (1, 2, 10)  # transformer blocks in an attention of each level; the first has none


def make_unet() -> UNet2DConditionModel:
    """Returns the network, float32, the same at every call; its output has about unit size."""
    torch.manual_seed(14)
    unet = UNet2DConditionModel(
        block_out_channels=SHAPE.unet,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=tuple(width // HEAD for width in SHAPE.unet),  # diffusers' name for the number of heads
        transformer_layers_per_block=DEPTHS,
        layers_per_block=2,
        cross_attention_dim=TEXT,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=SIZES,
        projection_class_embeddings_input_dim=6 * SIZES,
    )
    with torch.no_grad():
        unet.conv_out.weight.mul_(3.0)
    return unet.half().float().eval()  # the values of the file


def sizes_of(side: int) -> dict[str, torch.Tensor]:
    """Returns what the network is told of a square picture beside the prompt; this checkpoint has no pooled text state."""
    return {"text_embeds": torch.zeros(1, 0), "time_ids": torch.tensor([[side, side, 0, 0, side, side]])}


def unet_key(key: str) -> str:
    """Returns the original SDXL name of a diffusers parameter."""
    if key.startswith("add_embedding.linear_"):
        number, kind = key.removeprefix("add_embedding.linear_").split(".")
        return f"label_emb.0.{2 * int(number) - 2}.{kind}"
    # SD1.5's lowest level has no attention before the upsampler, SDXL's has.
    return tiny.unet_key(key).replace("output_blocks.2.1.conv.", "output_blocks.2.2.conv.")


def write_checkpoint(path: Path) -> None:
    """Writes a full checkpoint, float16, about 130 MB."""
    network = {unet_key(key): value for key, value in make_unet().state_dict().items()}
    tiny.write_parts(path, SHAPE, network, "conditioner.embedders.0.transformer.")


def write_yaml(checkpoint: Path, tokenizer: Path, parameterization: str = "eps") -> None:
    """Writes the file beside a checkpoint in which the A1111 line reads its shape; "v" for v-prediction."""
    parts, kind = "sgm.modules.diffusionmodules.", {"eps": "Eps", "v": "V"}[parameterization]
    unet = {
        "adm_in_channels": 6 * SIZES, "num_classes": "sequential", "in_channels": 4, "out_channels": 4,
        "model_channels": SHAPE.unet[0], "attention_resolutions": [4, 2], "num_res_blocks": 2,
        "channel_mult": [width // SHAPE.unet[0] for width in SHAPE.unet], "num_head_channels": HEAD,
        "use_spatial_transformer": True, "use_linear_in_transformer": True, "transformer_depth": list(DEPTHS),
        "context_dim": TEXT, "spatial_transformer_attn_type": "softmax", "legacy": False, "use_checkpoint": False,
    }  # fmt: skip
    denoiser = {
        "num_idx": 1000,
        "weighting_config": {"target": f"{parts}denoiser_weighting.{kind}Weighting"},
        "scaling_config": {"target": f"{parts}denoiser_scaling.{kind}Scaling"},
        "discretization_config": {"target": f"{parts}discretizer.LegacyDDPMDiscretization"},
    }
    embedder, sizes = {"is_trainable": False}, ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
    encoders = "sgm.modules.encoders.modules."
    text = {"target": f"{encoders}FrozenCLIPEmbedder", "params": {"version": str(tokenizer), "layer": "last"}}
    size = {"target": f"{encoders}ConcatTimestepEmbedderND", "params": {"outdim": SIZES}}
    embedders = [embedder | {"input_key": "txt"} | text, *(embedder | {"input_key": name} | size for name in sizes)]
    vae = tiny.vae_parameters(SHAPE)
    vae["ddconfig"]["attn_type"] = "vanilla"
    params = {
        "scale_factor": 0.13025, "disable_first_stage_autocast": True,
        "denoiser_config": {"target": f"{parts}denoiser.DiscreteDenoiser", "params": denoiser},
        "network_config": {"target": f"{parts}openaimodel.UNetModel", "params": unet},
        "conditioner_config": {"target": "sgm.modules.GeneralConditioner", "params": {"emb_models": embedders}},
        "first_stage_config": {"target": "sgm.models.autoencoder.AutoencoderKLInferenceWrapper", "params": vae},
    }  # fmt: skip
    model = {"target": "sgm.models.diffusion.DiffusionEngine", "params": params}
    checkpoint.with_suffix(".yaml").write_text(json.dumps({"model": model}), encoding="utf-8")  # JSON is YAML
