"""Aspect buckets: the few sizes that images of all shapes are brought to, so that those of one size share a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

Size = tuple[int, int]  # width and height in pixels


@dataclass(frozen=True)
class Item:
    """An image to train on, whether it lies on disk or the teacher has yet to draw it.

    Args:
        name: for messages.
        caption: the text that it is trained with.
        bucket: the size that it is brought to.
        digest: a hash of what decides its pixels.
    """

    name: str
    caption: str
    bucket: Size
    digest: str


@lru_cache(maxsize=32)
def aspect_buckets(resolution: int, step: int = 64, max_aspect: float = 2.0) -> tuple[Size, ...]:
    """Returns the sizes that images are brought to, tall ones first; every short side has the longest other side that fits.

    Source: at 1024, 64 and 4 these are the largest of SDXL's training sizes for each side, arXiv 2307.01952, appendix I.

    Args:
        resolution: no size has more than resolution^2 pixels.
        step: both sides are multiples of it, in pixels.
        max_aspect: the greatest ratio of the longer side to the shorter one.
    """
    square = resolution // step * step
    shapes = {(square, square)}
    for short in range(step, resolution + 1, step):
        long = resolution**2 // (short * step) * step
        if long <= max_aspect * short:
            shapes |= {(short, long), (long, short)}
    return tuple(sorted(shapes, key=lambda size: (size[0] / size[1], size)))


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> Size:
    """Returns the bucket whose aspect is the nearest by ratio, so that the centre crop cuts off least."""

    def distance(bucket: Size) -> float:
        one, other = size[0] * bucket[1], size[1] * bucket[0]
        return max(one, other) / min(one, other)

    return min(buckets, key=distance)
