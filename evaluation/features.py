"""The frozen networks whose features say how far pictures are from one another."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..models.embedded import SCORERS as EMBEDDED_FILE
from ..models.embedded import TOKENIZER
from ..rewards import embedded
from ..rewards.scorer import resized
from ..rewards.sights import CLIP_L, features_of, load_sight

See = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Features:
    """What makes unit vectors of pictures.

    Args:
        id: its name in files.
        title: its name for people.
        load: device -> a function of pictures [batch, 3, height, width] from 0 to 1 that returns unit vectors [batch, width].
    """

    id: str
    title: str
    load: Callable[[torch.device | str], See]


def embedded_features() -> Features:
    """Returns those of the scorer that comes with the pack, which knows the demo model's drawings."""

    def load(device: torch.device | str) -> See:
        match = embedded.load_match(EMBEDDED_FILE, TOKENIZER).to(device)
        return lambda images: match.pictures(resized(images, embedded.SIZE))

    return Features("embedded", "the demo model's scorer", load)


def clip_features(paths: Mapping[str, Path]) -> Features:
    """Returns those of OpenAI's CLIP ViT-L/14. Args: paths: of its file by the catalogue's id."""

    def load(device: torch.device | str) -> See:
        return load_sight(CLIP_L, paths, device)

    return Features("clip-l", features_of(CLIP_L).title, load)
