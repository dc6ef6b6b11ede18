"""A batch of pictures in the order of their scores: which prompt belongs to which picture, the order, and the text about it."""

import re
from collections.abc import Sequence

import torch

from ..errors import RewardError


def prompts_of(text: str, count: int) -> list[str]:
    """Returns a prompt for each picture of a batch.

    Args:
        text: one line for all pictures, or a line for each. Empty lines before and after do not count.
        count: of the pictures.
    Raises: RewardError for any other number of lines.
    """
    lines = text.strip().splitlines() or [""]
    if len(lines) not in (1, count):
        raise RewardError(
            f"The prompt has {len(lines)} lines for {count} pictures; write it in one line for all of them, or a line for each."
        )
    return [line.strip() for line in lines] * (count if len(lines) == 1 else 1)


def best_first(scores: torch.Tensor) -> list[int]:
    """Returns the positions of scores [count], the highest first; equal ones stay in their order."""
    return scores.argsort(descending=True, stable=True).tolist()


def kept(count: int, keep: int) -> int:
    """Returns how many pictures of a batch are kept.

    Args:
        count: of the pictures.
        keep: the most that shall be kept, 0 for all.
    Raises: RewardError for a number below 0 or with a fraction.
    """
    if not isinstance(keep, int | float) or isinstance(keep, bool) or keep < 0 or keep % 1:
        raise RewardError(f"keep must be a whole number from 0 on, got {keep!r}; 0 keeps all pictures.")
    return min(int(keep), count) or count


def ranking_text(scores: Sequence[float], order: Sequence[int], keep: int) -> str:
    """Returns a line for each picture, the best first, with a line between those that are kept and the rest.

    Args:
        scores: in the batch's order.
        order: positions in the batch, the best first.
        keep: how many of them are kept.
    """
    lines = [f"{place}. picture {position + 1}: {scores[position]:.3f}" for place, position in enumerate(order, 1)]
    if keep < len(lines):
        lines.insert(keep, "not kept:")
    return "\n".join(lines)


def score_note(score: float, title: str) -> str:
    """Returns what a picture's own text says of its score: "27.31 (CLIP score)".

    Args:
        score: of the picture.
        title: of the scorer.
    """
    return f"{score:.4g} ({title})"


def noted_title(note: str) -> str | None:
    """Returns the scorer's title in what score_note() made, None for any other text."""
    found = re.fullmatch(r"\S+ \((.+)\)", note.strip())
    return found[1] if found else None
