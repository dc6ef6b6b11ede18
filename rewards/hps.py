"""Human Preference Score v2.1: how people would rank a picture for a text."""

import re

import torch
import torch.nn.functional as F

from .clip import VIT_H_14, TwoTowers
from .scorer import normalised

_LAYER = re.compile(r"(visual\.|)transformer\.resblocks\.(\d+)\.(.+)")
_IN_LAYER = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
}  # fmt: skip
_OUTSIDE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
_TURNED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_LEFT_OUT = {"attn_mask"}  # a constant that old versions of OpenCLIP wrote


def from_open_clip(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the tensors of OpenCLIP's CLIP by the names of transformers' CLIPModel.

    OpenCLIP keeps queries, keys and values in one matrix, and its projections turned by a quarter. A name that belongs to no
    CLIP is kept as it is, so that it is found to be too much.

    Args:
        tensors: by OpenCLIP's names.
    """
    found = {}
    for name, value in tensors.items():
        layer = _LAYER.fullmatch(name)
        if layer:
            tower = "vision_model" if layer[1] else "text_model"
            found |= _layer(f"{tower}.encoder.layers.{layer[2]}", layer[3], value)
        elif name in _TURNED:
            found[_TURNED[name]] = value.t()
        elif name not in _LEFT_OUT:
            found[_OUTSIDE.get(name, name)] = value
    return found


def _layer(start: str, name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns what a tensor of a layer becomes: three where queries, keys and values are together."""
    if name.startswith("attn.in_proj_") and not len(value) % 3:
        kind = name.removeprefix("attn.in_proj_")
        return {f"{start}.self_attn.{part}_proj.{kind}": rows for part, rows in zip("qkv", value.chunk(3), strict=True)}
    module, _, kind = name.rpartition(".")
    return {f"{start}.{_IN_LAYER.get(module, module)}.{kind}": value}


def fitted(images: torch.Tensor, size: int) -> torch.Tensor:
    """Returns whole pictures within a square of size x size, black beside them, differentiable to the pictures.

    Args:
        images: float [batch, 3, height, width], from 0 to 1.
        size: pixels of a side.
    """
    height, width = images.shape[2:]
    scaled = [max(1, round(size * side / max(height, width))) for side in (height, width)]
    if scaled != [height, width]:
        images = F.interpolate(images, scaled, mode="bicubic", antialias=True)
    top, left = ((size - side) // 2 for side in scaled)
    return F.pad(images, (left, size - scaled[1] - left, top, size - scaled[0] - top))


class HumanPreference(TwoTowers):
    """Human Preference Score v2.1: the cosine of picture and text, about .2 to .35. Version 2.0 gives other values.

    Unlike the others it looks at the whole picture, with black bars beside one that is no square.

    Source: Wu et al., "Human Preference Score v2", arXiv 2306.09341, and its repository, whose preparation this follows; the
    picture is smoothed where it is made smaller, as torchvision does since its release 0.17.
    """

    towers, weights = VIT_H_14, "reward-hps-v2-1"

    @staticmethod
    def renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns a file's tensors by the names of transformers' CLIPModel."""
        return from_open_clip(tensors)

    def prepared(self, images: torch.Tensor) -> torch.Tensor:
        """Returns pictures [batch, 3, height, width] from 0 to 1 as the tower takes them."""
        return normalised(fitted(images, self.size))

    def rate(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """Returns the cosine, [batch]."""
        return self.cosine(images, prompts)
