"""Which family of models a LoRA was made for, told by the names and widths of the layers it changes."""

import re
from collections.abc import Mapping

from .families import FAMILIES, STREAM_WIDTHS, TEXT_WIDTHS

_UNET = re.compile(
    r"(?:down_blocks|mid_block|up_blocks|input_blocks|middle_block|output_blocks|add_embedding|label_emb|time_embed(?:ding)?)_|"
    r"conv_(?:in|out)$"
)
_CROSS_ATTENTION = re.compile(r"attn2_to_[kv]$")
# SDXL has three levels, of which the lower two attend, by up to ten blocks each; SD1.5 has four, and the upper three attend.
_SD_ONLY = re.compile(
    r"(?:down|up)_blocks_3_|down_blocks_0_att|up_blocks_2_att|input_blocks_(?:1_1|2_1|9|1\d)_|output_blocks_(?:9|1\d)_"
)
_SDXL_ONLY = re.compile(r"up_blocks_0_att|_transformer_blocks_[1-9]|^add_embedding|^label_emb")
_TRANSFORMER = re.compile(r"(?:(?P<single>single_)(?:transformer_)?|double_|joint_|transformer_)blocks_(?P<index>\d+)_")

Shape = tuple[int, int] | None


def family_of(layers: Mapping[str, Shape]) -> str | None:
    """Returns a key of FAMILIES, another model's plain name, or None where it cannot be told.

    Args:
        layers: path as lora_keys.layer_path gives it -> (input width, dimensions) of its `down` weight, None where the file has
            none; without text encoders.
    """
    unet = {path: shape for path, shape in layers.items() if _UNET.match(path)}
    if unet:
        return _unet_family(unet)
    blocks = {path: shape for path, shape in layers.items() if _TRANSFORMER.match(path)}
    if blocks and not any(path.startswith("joint_transformer_") for path in layers):
        return _transformer_family(blocks)
    return f"an unknown kind of model (with layers such as {min(layers)[:80]})" if layers else None


def _unet_family(layers: Mapping[str, Shape]) -> str | None:
    width = next((shape[0] for path, shape in layers.items() if shape and _CROSS_ATTENTION.search(path)), None)
    if width is not None:
        return TEXT_WIDTHS.get(width, f"a UNet of cross-attention width {width}")
    if any(map(_SDXL_ONLY.search, layers)):
        return "sdxl"
    if any(map(_SD_ONLY.search, layers)):  # SD2.x projects into its attention by a linear layer, SD1.5 by a convolution
        linear = any(shape and shape[1] == 2 for path, shape in layers.items() if path.endswith("_proj_in"))
        return "SD2.x" if linear else "sd15"
    return None


def _transformer_family(layers: Mapping[str, Shape]) -> str | None:
    width = min((shape[0] for shape in layers.values() if shape), default=None)
    if width is None:
        return None
    family = STREAM_WIDTHS.get(width, f"a transformer of width {width}")
    if family == "sd3" and any("_attn2_" in path for path in layers):
        return "SD3.5 Medium"
    blocks = [(bool(block["single"]), int(block["index"])) for block in map(_TRANSFORMER.match, layers)]
    # Qwen-Image and HunyuanVideo share FLUX's width, not its depth.
    if family == "flux" and any(index >= FAMILIES[family].blocks[single] for single, index in blocks):
        return "a transformer of FLUX's width, but deeper"
    return family
