"""Small latents on which memory is measured, and what follows from them for large ones."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

# Sides of latents: little memory beside a real size, and every UNet's divisions allow them.
PROBE_SIDES = ((8, 8), (8, 16), (16, 16))


@dataclass(frozen=True)
class Activations:
    """Bytes that a forward pass keeps for the backward pass.

    Args:
        fixed: whatever the number of examples, such as weights cast to bf16.
        each: for every example that is computed at once.
    """

    fixed: int
    each: int

    def of(self, examples: int) -> int:
        """Returns the bytes for so many examples at once."""
        return self.fixed + self.each * examples


NOTHING = Activations(0, 0)


def is_small(height: int, width: int) -> bool:
    """Returns whether latents are so small that they are measured as they are."""
    return min(height, width) < min(PROBE_SIDES[0]) or height * width < PROBE_SIDES[-1][0] * PROBE_SIDES[-1][1]


def at_area(measure: Callable[[int, int], torch.Tensor], height: int, width: int) -> torch.Tensor:
    """Returns what a measurement would give at a full size.

    What a pass keeps is a polynomial of the latents' area: a constant, layers proportional to it, and attention that keeps its
    matrix and grows with its square. Three areas find it.

    Args:
        measure: height and width of latents -> bytes, float64 [..].
        height: of the full latents.
        width: of the full latents.
    """
    if is_small(height, width):
        return measure(height, width)
    areas = torch.tensor([float(a * b) for a, b in PROBE_SIDES], dtype=torch.float64)
    measured = torch.stack([measure(*sides) for sides in PROBE_SIDES])
    powers = torch.linalg.solve(areas[:, None] ** torch.arange(3), measured)
    return (float(height * width) ** torch.arange(3, dtype=torch.float64)) @ powers
