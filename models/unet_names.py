"""Module names of diffusers' UNets in the original Stable Diffusion layout, and which of the two a LoRA file should use."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import nn

from .sdxl_unet import BLOCKS, RESNET

_BLOCK = re.compile(r"(?P<kind>input|output|down|up)_blocks\.(?P<index>\d+)\.")

TOP = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0", "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip


def _blocks(levels: int, attends: Callable[[int], bool], per_level: int = BLOCKS) -> dict[str, str]:
    """Returns diffusers module prefix -> ldm module prefix for the down and up blocks.

    Args:
        levels: number of the UNet's levels.
        attends: tells whether a level of the way up has attention.
        per_level: residual blocks of a level on the way down; the way up has one more.
    """
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
        for layer in range(per_level + 1):
            position = level * (per_level + 1) + layer
            names[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{position}.0"
            names[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{position}.1"
        names[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{position}.{1 + attends(level)}.conv"
    return names


def original_names(unet: nn.Module) -> Callable[[str], str]:
    """Returns the function from a diffusers module name to the original one, for UNets of SD1.5's and SDXL's kind.

    Args:
        unet: a UNet2DConditionModel, whose config tells how its blocks are numbered.
    """
    config = unet.config
    levels = len(config.block_out_channels)
    blocks = {**TOP, **_blocks(levels, lambda level: "CrossAttn" in config.up_block_types[level], config.layers_per_block)}

    def rename(module: str) -> str:
        return next(_renamed(module, blocks, RESNET))

    return rename


def names_in_both(modules: Iterable[str]) -> dict[str, str]:
    """Returns a module's name -> its name in the other layout, for the modules of a UNet of SD1.5's or SDXL's kind.

    Args:
        modules: names in diffusers' layout or in the original one; what belongs to no such UNet is left out.
    """
    listed = list(modules)
    blocks = [match for match in map(_BLOCK.match, listed) if match]
    if not blocks:
        return {}
    is_original = blocks[0]["kind"] in ("input", "output")
    last = max(int(match["index"]) for match in blocks)
    start, per_block = ("output_blocks.{}.1.", BLOCKS + 1) if is_original else ("up_blocks.{}.attentions.", 1)

    def attends(level: int) -> bool:
        start_of_level = start.format(level * per_block)
        return any(name.startswith(start_of_level) and ".transformer_blocks." in name for name in listed)

    names, resnet = {**TOP, **_blocks(last // per_block + 1, attends)}, RESNET
    if is_original:
        names, resnet = ({new: old for old, new in table.items()} for table in (names, RESNET))
    return {module: other for module in listed for other in _renamed(module, names, resnet)}


def _renamed(module: str, names: Mapping[str, str], resnet: Mapping[str, str]) -> Iterator[str]:
    """Yields a module's new name, nothing where it has none.

    Args:
        module: its name.
        names: beginnings of names -> their new ones. The longest counts.
        resnet: names within a residual block -> their new ones.
    """
    parts = module.split(".")
    for count in range(len(parts), 0, -1):
        prefix, rest = ".".join(parts[:count]), ".".join(parts[count:])
        if prefix in names:
            new = names[prefix]
            if ".resnets." in prefix + new:
                rest = resnet.get(rest)
            if rest is not None:
                yield f"{new}.{rest}".removesuffix(".")
            return


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
