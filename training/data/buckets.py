"""Aspect buckets: the few sizes that images of all shapes are brought to, so that those of one size share a batch."""

from collections.abc import Sequence
from functools import lru_cache

Size = tuple[int, int]  # width, height


@lru_cache(maxsize=32)
def aspect_buckets(resolution: int, step: int = 64, max_aspect: float = 2.0) -> tuple[Size, ...]:
    """Returns the sizes images are brought to, tall ones first: of no more than resolution^2 pixels, sides multiples of step.

    Every short side has one long side, the greatest that fits. At 1024, 64 and 4 these are the largest of SDXL's training sizes
    for each side (arXiv 2307.01952, appendix I).
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

    def ratio(bucket: Size) -> float:
        one, other = size[0] * bucket[1], size[1] * bucket[0]
        return max(one, other) / min(one, other)

    return min(buckets, key=ratio)
