"""What every scorer of pictures shares: its one interface, what it is given, and how pictures are brought to its size."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import RewardError

SMALLEST = 8  # pixels of a side; less is no picture
Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]
# Mean and deviation of red, green and blue; source: OpenAI's CLIP, which OpenCLIP and BLIP follow.
CLIP_STATISTICS: Statistics = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Scorer(nn.Module, ABC):
    """A frozen network that says how good pictures are; a higher score is a better picture.

    Attributes:
        reads_prompt: whether the score also depends on what was asked for.
        unfit: why nothing may be learnt from its scores, as sentences; "" where it may.
        notice: what a person has to know of its scores, as sentences; "" where that is nothing.
        version: what tells it from others of its id, "" where there is only one.
    """

    reads_prompt = True
    unfit = ""
    notice = ""
    version = ""

    def freeze(self) -> "Scorer":
        """Returns the scorer in eval mode, with no weight that learns; gradients reach the pictures all the same."""
        return self.eval().requires_grad_(False)

    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Returns the score of every picture, [batch], differentiable to the pictures.

        It is in float32, or in float64 where the weights are.

        Args:
            images: [batch, 3, height, width], from 0 to 1, of any size from 8 pixels on, on the scorer's device.
            prompts: what was asked for, a text for each picture; a scorer that does not read prompts takes any.
        Raises: RewardError for pictures or prompts that it cannot take, and for a score that is not finite.
        """
        require_pictures(images, prompts)
        weights = next(self.parameters(), images)
        dtype = torch.promote_types(weights.dtype, torch.float32)
        scores = self.rate(images.to(dtype), list(prompts)).to(dtype)
        if not bool(scores.detach().isfinite().all()):
            raise RewardError(
                f"{type(self).__name__} gave a score that is not a number ({scores.tolist()}). Its file may be damaged, "
                "or the pictures are: draw them with a VAE in bf16 or fp32, or fetch the file again."
            )
        return scores

    @abstractmethod
    def rate(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """Returns the scores [batch] of checked pictures, float32 or the weights' float64 [batch, 3, height, width], 0 to 1."""


def require_pictures(images: torch.Tensor, prompts: Sequence[str]) -> None:
    """Refuses what no scorer can take.

    Raises: RewardError for another shape, a side below 8 pixels, values that are not finite, and another number of prompts.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not len(images) or not images.is_floating_point():
        raise RewardError(
            f"A scorer takes pictures [batch, 3, height, width] with values from 0 to 1, got {list(images.shape)} of "
            f"{images.dtype}; give at least one picture in red, green and blue."
        )
    if min(images.shape[2:]) < SMALLEST:
        height, width = images.shape[2:]
        raise RewardError(
            f"A scorer takes pictures of {SMALLEST} pixels or more a side, got {width}x{height}; draw larger ones."
        )
    if isinstance(prompts, str) or len(prompts) != len(images):
        given = 1 if isinstance(prompts, str) else len(prompts)
        raise RewardError(f"A scorer takes one prompt for each picture, got {given} for {len(images)} pictures.")
    if not bool(images.detach().isfinite().all()):
        raise RewardError("A picture has values that are not numbers; draw it again with a VAE in bf16 or fp32.")


def resized(images: torch.Tensor, size: int) -> torch.Tensor:
    """Returns the middle square of pictures at size x size, in the range from 0 to 1, differentiable to the pictures.

    The shorter side is brought to `size` with a bicubic filter, smoothed where that makes it smaller, as CLIP's own
    preparation does.

    Args:
        images: float [batch, 3, height, width], from 0 to 1.
        size: pixels of a side.
    """
    height, width = images.shape[2:]
    if (height, width) != (size, size):
        short = min(height, width)
        scaled = [max(size, round(size * side / short)) for side in (height, width)]
        images = F.interpolate(images, scaled, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = ((side - size) // 2 for side in scaled)
        images = images[..., top : top + size, left : left + size]
    return images


def normalised(images: torch.Tensor, statistics: Statistics = CLIP_STATISTICS) -> torch.Tensor:
    """Returns pictures [batch, 3, height, width] with mean 0 and deviation 1 by the statistics of a training set."""
    mean, deviation = (torch.tensor(values, dtype=images.dtype, device=images.device).view(3, 1, 1) for values in statistics)
    return (images - mean) / deviation


@torch.no_grad()
def score_all(scorer: Scorer, images: torch.Tensor, prompts: Sequence[str], batch: int = 8) -> torch.Tensor:
    """Returns the scores of any number of pictures without a gradient, float32 [count] on the processor.

    Args:
        scorer: on the device that does the work.
        images: [count, 3, height, width] from 0 to 1, on any device.
        prompts: a text for each picture.
        batch: pictures that are looked at together.
    Raises: RewardError as Scorer.score().
    """
    require_pictures(images, prompts)
    device = next(scorer.parameters()).device
    parts = range(0, len(images), batch)
    return torch.cat([scorer.score(images[i : i + batch].to(device), prompts[i : i + batch]).cpu() for i in parts])
