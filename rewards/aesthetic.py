"""LAION's aesthetic predictor v2: how beautiful people would find a picture, from 1 to 10, whatever it shows."""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .clip import VIT_L_14
from .scorer import Scorer, normalised, resized
from .weights import filled, read_tensors, require_released

CLIP, HEAD = "reward-clip-vit-l-14", "reward-aesthetic-v2"
WIDTH = 768
_PARTS = ("vision_model.", "visual_projection.")  # of a CLIP, those that look at a picture


class Head(nn.Module):
    """Five linear layers with nothing between them but the dropout of training: [batch, 768] -> [batch].

    Source: the class MLP of christophschuhmann/improved-aesthetic-predictor and of THUDM/ImageReward, whose names it keeps.
    """

    def __init__(self):
        super().__init__()
        first, second, third, fourth = nn.Linear(WIDTH, 1024), nn.Linear(1024, 128), nn.Linear(128, 64), nn.Linear(64, 16)
        self.layers = nn.Sequential(
            first, nn.Dropout(0.2), second, nn.Dropout(0.2), third, nn.Dropout(0.1), fourth, nn.Linear(16, 1)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns a number for each picture."""
        return self.layers(features)[:, 0]


class Sight(nn.Module):
    """The part of a CLIP that looks at pictures.

    Args:
        vision_model: the tower of transformers' CLIPModel.
        visual_projection: what follows it there.
    """

    def __init__(self, vision_model: nn.Module, visual_projection: nn.Module):
        super().__init__()
        self.vision_model, self.visual_projection = vision_model, visual_projection

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns the projected features [batch, width] of prepared pictures."""
        return self.visual_projection(self.vision_model(pixel_values=pixels).pooler_output)


class Aesthetic(Scorer):
    """The aesthetic score of OpenAI's CLIP ViT-L/14 and the head on it.

    Another CLIP of the same width would fit as well and give nonsense, which no number shows. So load() takes the released file
    of CLIP alone, known by its SHA-256; whoever gives the parts directly answers for them.

    Source: LAION, "LAION-Aesthetics", https://laion.ai/blog/laion-aesthetics.
    Args:
        sight: pixels [batch, 3, size, size] -> features [batch, 768].
        head: features of length 1 -> scores.
        size: pixels of a side that the network takes.
    """

    reads_prompt = False

    def __init__(self, sight: nn.Module, head: nn.Module, size: int = 224):
        super().__init__()
        self.sight, self.head, self.size = sight, head, size

    @classmethod
    def load(cls, paths: Mapping[str, Path], device: torch.device | str = "cpu") -> "Aesthetic":
        """Returns the frozen scorer of the released files, in float32.

        Args:
            paths: of its files by the catalogue's ids.
            device: that does the work.
        Raises: RewardError for a file that is missing, damaged or another model's, and for every other CLIP.
        """
        sight = load_sight(paths, "the aesthetic head fits other CLIPs too, and its scores are nonsense on them")
        head = filled(Head, read_tensors(paths[HEAD], HEAD), paths[HEAD], HEAD)
        return cls(sight, head, VIT_L_14.size).freeze().to(device)

    def rate(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """Returns the scores, [batch]."""
        return self.head(F.normalize(self.sight(normalised(resized(images, self.size))), dim=-1))


def load_sight(paths: Mapping[str, Path], why: str) -> Sight:
    """Returns the part of OpenAI's CLIP ViT-L/14 that looks at pictures, in float32.

    Args:
        paths: of its file by the catalogue's id.
        why: what another CLIP would do, as half a sentence.
    Raises: RewardError for a file that is missing, damaged or another model's, and for every other CLIP.
    """
    tensors = read_tensors(paths[CLIP], CLIP)
    require_released(paths[CLIP], CLIP, why)
    seeing = {name: value for name, value in tensors.items() if name.startswith(_PARTS)}
    return filled(_sight, seeing, paths[CLIP], CLIP)


def _sight() -> Sight:
    model = VIT_L_14.build()
    return Sight(model.vision_model, model.visual_projection)
