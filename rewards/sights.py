"""Frozen networks that make features of pictures, on which a person's taste is learnt."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import RewardError
from ..models.embedded import SCORERS as EMBEDDED_FILE
from ..models.files import sha256_of
from . import aesthetic
from .embedded import MATCH, SIZE, WIDTHS, Trunk, load_part
from .scorer import normalised, resized


class ClipSight(nn.Module):
    """Pictures [batch, 3, height, width] from 0 to 1 -> features of length 1 by OpenAI's CLIP ViT-L/14, [batch, 768]."""

    def __init__(self, sight: nn.Module, size: int):
        super().__init__()
        self.sight, self.size = sight, size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the features, differentiable to the pictures."""
        return F.normalize(self.sight(normalised(resized(images, self.size))), dim=-1)


class EmbeddedSight(nn.Module):
    """Pictures [batch, 3, height, width] from 0 to 1 -> mean and deviation of each channel of the embedded scorer's levels."""

    def __init__(self, trunk: nn.Module):
        super().__init__()
        self.trunk = trunk

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the features [batch, 640], differentiable to the pictures."""
        levels = self.trunk(resized(images, SIZE))
        # the small number keeps the root's slope finite where a channel is the same all over
        return torch.cat([part for x in levels for part in (x.mean((2, 3)), (x.var((2, 3)) + 1e-6).sqrt())], 1)


def _clip_sight(paths: Mapping[str, Path]) -> nn.Module:
    return ClipSight(aesthetic.load_sight(paths, "another CLIP sees other features"), aesthetic.VIT_L_14.size)


def _embedded_sight(paths: Mapping[str, Path]) -> nn.Module:
    return EmbeddedSight(load_part(Trunk(), EMBEDDED_FILE, f"{MATCH}trunk."))


@dataclass(frozen=True)
class Features:
    """What a taste can be learnt on.

    Args:
        title: for people.
        width: numbers that a picture becomes.
        build: paths of its files by the catalogue's ids -> the network.
        files: the catalogue's ids of these files.
        notice: what has to be known of scores on it, "" where that is nothing.
    """

    title: str
    width: int
    build: Callable[[Mapping[str, Path]], nn.Module]
    files: tuple[str, ...] = ()
    notice: str = ""


CLIP_L, EMBEDDED = "clip_l", "embedded"
FEATURES: dict[str, Features] = {
    CLIP_L: Features("CLIP ViT-L/14", aesthetic.WIDTH, _clip_sight, (aesthetic.CLIP,)),
    EMBEDDED: Features(
        "the demo model's own scorer", 2 * sum(WIDTHS), _embedded_sight,
        notice="This taste was learnt on features of the demo model's scorer, which knows small drawings alone. For pictures "
        f"of other models run `python install.py download {aesthetic.CLIP}` and learn it again.",
    ),
}  # fmt: skip


def features_of(name: str) -> Features:
    """Returns the features of a name.

    Raises: RewardError naming those that there are.
    """
    if name not in FEATURES:
        raise RewardError(f"There are no features {name!r} to learn a taste on; choose one of {', '.join(FEATURES)}.")
    return FEATURES[name]


def load_sight(name: str, paths: Mapping[str, Path], device: torch.device | str = "cpu") -> nn.Module:
    """Returns the frozen network that makes features of pictures, in float32.

    Args:
        name: a key of FEATURES.
        paths: of its files by the catalogue's ids.
        device: that does the work.
    Raises: RewardError for an unknown name, and for a file that is damaged or another model's.
    """
    return features_of(name).build(paths).eval().requires_grad_(False).to(device)


def network_of(name: str, paths: Mapping[str, Path]) -> str:
    """Returns the SHA-256 of the file that features are made by: a head fits no other.

    Args:
        name: a key of FEATURES.
        paths: of its files by the catalogue's ids.
    """
    files = features_of(name).files
    return sha256_of(paths[files[0]] if files else EMBEDDED_FILE)
