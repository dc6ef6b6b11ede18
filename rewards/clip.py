"""CLIP score: how well a picture fits its text; and what every scorer with CLIP's two towers shares."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from .scorer import Scorer, normalised, resized
from .weights import filled, read_tensors, require_transformers
from .words import Words

TOKENIZER = "reward-clip-tokenizer"
Tokenize = Callable[[Sequence[str]], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Towers:
    """The size of a CLIP.

    Args:
        width: values that pictures and texts become.
        vision: width, layers and heads of the picture's tower.
        text: width, layers and heads of the text's tower.
        patch: pixels of the side of a patch.
        activation: by its name in transformers.
        size: pixels of the side of a picture.
        words: how many the tokenizer has; the last one ends a text.
        length: tokens of a text.
    """

    width: int
    vision: tuple[int, int, int]
    text: tuple[int, int, int]
    patch: int
    activation: str
    size: int = 224
    words: int = 49408
    length: int = 77

    def build(self) -> nn.Module:
        """Returns a CLIPModel of transformers of this size."""
        transformers = require_transformers()

        def tower(width: int, layers: int, heads: int) -> dict:
            shared = {"projection_dim": self.width, "hidden_act": self.activation, "layer_norm_eps": 1e-5}
            sizes = {"hidden_size": width, "intermediate_size": 4 * width}
            return {"num_hidden_layers": layers, "num_attention_heads": heads, **sizes, **shared}

        last = self.words - 1
        text = tower(*self.text) | {"vocab_size": self.words, "max_position_embeddings": self.length}
        text |= {"eos_token_id": last, "bos_token_id": last - 1, "pad_token_id": last}
        vision = tower(*self.vision) | {"image_size": self.size, "patch_size": self.patch}
        return transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=self.width)
        )


# Source: the configurations of openai/clip-vit-base-patch32, openai/clip-vit-large-patch14, and OpenCLIP's ViT-H-14.json.
VIT_B_32 = Towers(512, (768, 12, 12), (512, 12, 8), 32, "quick_gelu")
VIT_L_14 = Towers(768, (1024, 24, 16), (768, 12, 12), 14, "quick_gelu")
VIT_H_14 = Towers(1024, (1280, 32, 16), (1024, 24, 16), 14, "gelu")


class TwoTowers(Scorer):
    """A scorer that compares what one tower makes of a picture with what another makes of its text.

    Args:
        model: a CLIPModel of transformers, or one with the same parts.
        tokenize: texts -> token numbers and mask, int [batch, length]; the largest number ends a text.
    """

    towers: ClassVar[Towers]
    weights: ClassVar[str]  # the catalogue's id of its file

    def __init__(self, model: nn.Module, tokenize: Tokenize):
        super().__init__()
        self.model, self.tokenize = model, tokenize
        self.size = model.config.vision_config.image_size

    @classmethod
    def load(cls, paths: Mapping[str, Path], device: torch.device | str = "cpu") -> "TwoTowers":
        """Returns the frozen scorer of the released files, in float32.

        Args:
            paths: of its files by the catalogue's ids.
            device: that does the work.
        Raises: RewardError for a file that is missing, damaged or another model's.
        """
        path, towers = paths[cls.weights], cls.towers
        words = Words.load(paths[TOKENIZER], TOKENIZER, count=towers.words, length=towers.length, padding=towers.words - 1)
        tensors = cls.renamed(read_tensors(path, cls.weights))
        return cls(filled(towers.build, tensors, path, cls.weights), words).freeze().to(device)

    @staticmethod
    def renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns a file's tensors by the names of transformers' CLIPModel."""
        return tensors

    def prepared(self, images: torch.Tensor) -> torch.Tensor:
        """Returns pictures [batch, 3, height, width] from 0 to 1 as the tower takes them."""
        return normalised(resized(images, self.size))

    def pictures(self, images: torch.Tensor) -> torch.Tensor:
        """Returns unit vectors [batch, width] of pictures [batch, 3, height, width] from 0 to 1."""
        seen = self.model.vision_model(pixel_values=self.prepared(images)).pooler_output
        return F.normalize(self.model.visual_projection(seen), dim=-1)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Returns unit vectors [batch, width] of texts."""
        ids, mask = (part.to(self.model.logit_scale.device) for part in self.tokenize(prompts))
        read = self.model.text_model(input_ids=ids, attention_mask=mask).pooler_output
        return F.normalize(self.model.text_projection(read), dim=-1)

    def cosine(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Returns the plain cosine of pictures and texts, [batch], from -1 to 1, differentiable to the pictures.

        Args:
            images: as for score().
            prompts: a text for each picture.
        """
        return (self.pictures(images) * self.texts(prompts)).sum(-1)

    @abstractmethod
    def rate(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """As Scorer's."""


class ClipScore(TwoTowers):
    """CLIP score with ViT-B/32: 100 times the cosine of picture and text.

    The usual definition replaces a negative score by 0. This one does not: a picture that fits worse than nothing would then
    have no gradient, and no way to become better. A negative score is rare, so that means agree.

    Source: Hessel et al., "CLIPScore", arXiv 2104.08718; the factor 100 and the network as in the tables of Hyper-SD's paper.
    """

    towers, weights = VIT_B_32, "reward-clip-vit-b-32"

    def rate(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """Returns 100 times the cosine, [batch]."""
        return 100 * self.cosine(images, prompts)
