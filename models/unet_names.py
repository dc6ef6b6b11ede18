"""Module names of diffusers' UNets in the original Stable Diffusion layout, and which of the two a LoRA file should use."""

from collections.abc import Callable

from torch import nn

from .sdxl_unet import RESNET

TOP = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0", "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip


def _blocks(unet: nn.Module) -> dict[str, str]:
    """Returns diffusers module prefix -> ldm module prefix for the down and up blocks."""
    per_level, levels = unet.config.layers_per_block, len(unet.config.block_out_channels)
    names, position = {}, 1
    for level in range(levels):
        for layer in range(per_level):
            names[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{position}.0"
            names[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{position}.1"
            position += 1
        if level < levels - 1:
            names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{position}.0.op"
            position += 1
    for level in range(levels):
        attends = "CrossAttn" in unet.config.up_block_types[level]
        for layer in range(per_level + 1):
            position = level * (per_level + 1) + layer
            names[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{position}.0"
            names[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{position}.1"
        names[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{position}.{1 + attends}.conv"
    return names


def original_names(unet: nn.Module) -> Callable[[str], str]:
    """Returns the function from a diffusers module name to the original one, for UNets of SD1.5's and SDXL's kind.

    Args:
        unet: a UNet2DConditionModel, whose config tells how its blocks are numbered.
    """
    blocks = {**TOP, **_blocks(unet)}
    prefixes = sorted(blocks, key=len, reverse=True)

    def rename(module: str) -> str:
        prefix = next(p for p in prefixes if f"{module}.".startswith(f"{p}."))
        rest = module[len(prefix) + 1 :]
        if ".resnets." in f".{prefix}":
            rest = RESNET[rest]
        return f"{blocks[prefix]}.{rest}".removesuffix(".")

    return rename


# How the original layout's modules follow one another, where that is not the order of their numbers.
ORDER = (
    "time_embed", "label_emb", "input_blocks", "middle_block", "output_blocks", "out",
    "in_layers", "emb_layers", "out_layers", "skip_connection",
    "norm", "proj_in", "transformer_blocks", "attn1", "ff", "attn2", "to_q", "to_k", "to_v", "to_out", "net", "proj",
    "proj_out", "op", "conv",
)  # fmt: skip


def original_order(unet: nn.Module) -> Callable[[str], tuple[int, ...]]:
    """Returns the function from a diffusers module name to its place in the original layout, for sorting.

    Args:
        unet: a UNet2DConditionModel.
    """
    rename = original_names(unet)
    return lambda module: tuple(int(part) if part.isdecimal() else ORDER.index(part) for part in rename(module).split("."))


def lora_names(network: nn.Module) -> Callable[[str], str]:
    """Returns the renaming under which ComfyUI, the A1111 family and diffusers all match every module of a LoRA.

    That is diffusers' own names for SD1.5, and the original ones for SDXL: A1111 misses SDXL's up_blocks.0.upsamplers.0.conv
    under diffusers' name, and diffusers reads original names for SDXL only.
    """
    config = getattr(network, "config", None)
    is_sdxl = getattr(config, "addition_embed_type", None) == "text_time" and hasattr(network, "down_blocks")
    return original_names(network) if is_sdxl else lambda module: module
