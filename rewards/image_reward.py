"""ImageReward: how well people would find that a picture carries out its text."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .aesthetic import Head
from .clip import Tokenize
from .scorer import Scorer, normalised, resized
from .weights import filled, read_tensors, require_transformers
from .words import Words

WEIGHTS, TOKENIZER = "reward-image-reward", "reward-bert-tokenizer"
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072  # of the scores in training; source: THUDM/ImageReward
TOKENS, WORDS, PADDING = 35, 30522, 0
_NAMES = (  # BLIP's own names -> those of transformers, tried in this order
    (r"mlp\.(.+)", r"head.\1"),
    (r"blip\.text_encoder\.(.+)", r"text.\1"),
    (r"blip\.visual_encoder\.cls_token", r"vision.embeddings.class_embedding"),
    (r"blip\.visual_encoder\.pos_embed", r"vision.embeddings.position_embedding"),
    (r"blip\.visual_encoder\.patch_embed\.proj\.(.+)", r"vision.embeddings.patch_embedding.\1"),
    (r"blip\.visual_encoder\.norm\.(.+)", r"vision.post_layernorm.\1"),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.norm([12])\.(.+)", r"vision.encoder.layers.\1.layer_norm\2.\3"),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.qkv\.(.+)", r"vision.encoder.layers.\1.self_attn.qkv.\2"),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.(.+)", r"vision.encoder.layers.\1.self_attn.projection.\2"),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.mlp\.(.+)", r"vision.encoder.layers.\1.mlp.\2"),
)
_LEFT_OUT = ("blip.vision_proj.", "blip.text_proj.")  # of BLIP's training; no score reads them


@dataclass(frozen=True)
class Size:
    """The size of a BLIP; that of ImageReward is the default.

    Args:
        vision: width, layers and heads of the network for pictures.
        layers: of the network for texts, which has BERT's width and heads.
        size: pixels of the side of a picture.
        patch: pixels of the side of a patch.
    """

    vision: tuple[int, int, int] = (1024, 24, 16)
    layers: int = 12
    size: int = 224
    patch: int = 16


RELEASED = Size()


class Blip(nn.Module):
    """BLIP's network for pictures, BERT that looks at what it saw, and the head that makes a number of it.

    Args:
        size: of them.
    """

    def __init__(self, size: Size):
        super().__init__()
        transformers = require_transformers()
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        width, layers, heads = size.vision
        seeing = transformers.BlipVisionConfig(
            hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads,
            image_size=size.size, patch_size=size.patch, hidden_act="gelu", layer_norm_eps=1e-6,
        )  # fmt: skip
        reading = transformers.BlipTextConfig(
            vocab_size=WORDS + 2, hidden_size=768, encoder_hidden_size=width, intermediate_size=3072,
            num_hidden_layers=size.layers, num_attention_heads=12, max_position_embeddings=512, hidden_act="gelu",
            layer_norm_eps=1e-12, pad_token_id=PADDING, is_decoder=True,
        )  # fmt: skip
        self.vision = transformers.BlipVisionModel(seeing)
        self.text = BlipTextModel(reading, add_pooling_layer=False)
        self.head = Head()

    def forward(self, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns the head's numbers [batch].

        Args:
            pixels: prepared pictures [batch, 3, size, size].
            ids: token numbers, int [batch, 35].
            mask: 1 for tokens that are no filling, int [batch, 35].
        """
        seen = self.vision(pixel_values=pixels).last_hidden_state
        all_seen = torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device)
        read = self.text(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=seen, encoder_attention_mask=all_seen, use_cache=False
        )
        return self.head(read.last_hidden_state[:, 0])


def from_blip(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the tensors of ImageReward.pt by the names of Blip; a name of no such file is kept, and is found too much."""
    return {_renamed(name): value for name, value in tensors.items() if not name.startswith(_LEFT_OUT)}


def _renamed(name: str) -> str:
    for pattern, new in _NAMES:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, new, name)
    return name


class ImageReward(Scorer):
    """ImageReward 1.0: about -2 to 2; 0 is the mean of the pictures that it learnt from.

    Source: Xu et al., "ImageReward", arXiv 2304.05977, and its repository.
    Args:
        network: pixels, token numbers and mask -> numbers [batch].
        tokenize: texts -> token numbers and mask, int [batch, 35].
        size: pixels of a side that the network takes.
    """

    def __init__(self, network: nn.Module, tokenize: Tokenize, size: int = 224):
        super().__init__()
        self.network, self.tokenize, self.size = network, tokenize, size

    @classmethod
    def load(cls, paths: Mapping[str, Path], device: torch.device | str = "cpu") -> "ImageReward":
        """Returns the frozen scorer of the released files, in float32.

        Args:
            paths: of its files by the catalogue's ids.
            device: that does the work.
        Raises: RewardError for a file that is missing, damaged or another model's.
        """
        words = Words.load(paths[TOKENIZER], TOKENIZER, count=WORDS, length=TOKENS, padding=PADDING)
        tensors = from_blip(read_tensors(paths[WEIGHTS], WEIGHTS))
        network = filled(lambda: Blip(RELEASED), tensors, paths[WEIGHTS], WEIGHTS)
        return cls(network, words, RELEASED.size).freeze().to(device)

    def rate(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """Returns the scores, [batch]."""
        ids, mask = (part.to(images.device) for part in self.tokenize(prompts))
        return (self.network(normalised(resized(images, self.size)), ids, mask) - MEAN) / DEVIATION
