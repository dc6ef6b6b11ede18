"""A LoRA's strength from step to step."""

import math
import re
from collections.abc import Callable, Sequence

from ..errors import ScheduleError

CURVES = ("constant", "linear", "cosine", "list")
LIMIT = 10.0  # of a strength, as ComfyUI's own loaders have it, tenfold what makes sense


def read_strengths(text: str) -> list[float]:
    """Returns the numbers of a text such as "1, 0.8, 0.5".

    Raises: ScheduleError for anything but numbers from -10 to 10 with commas or spaces between, and for a comma between two
        digits, which is a decimal comma to many people.
    """
    if unclear := re.search(r"\d+,\d+", text):
        raise ScheduleError(
            f"strengths has {unclear[0]!r}, which may mean one number or two. Write a point in a number and a blank after each "
            "comma, for example 1, 0.8, 0.5."
        )
    try:
        values = [float(part) for part in re.sub("[,\uff0c\u3001]", " ", text).split()]  # also the commas of a Chinese keyboard
    except ValueError:
        values = []
    if not values or not all(-LIMIT <= value <= LIMIT for value in values):
        raise ScheduleError(
            f"strengths must be numbers from {-LIMIT:g} to {LIMIT:g} with commas between, got {text[:80]!r}; "
            "for example 1, 0.8, 0.5."
        )
    return values


def strengths_of(curve: str, steps: int, start: float, end: float, values: Sequence[float] = ()) -> list[float]:
    """Returns one strength a step.

    "constant" stays at start, "linear" goes evenly from start to end, "cosine" slowly at both ends; "list" takes the values,
    the last of which holds for the steps that are left.

    Args:
        curve: one of CURVES.
        steps: at least 1.
        start: strength of the first step.
        end: strength of the last step.
    Raises: ScheduleError for an unknown curve, or more values than steps.
    """
    if curve == "list":
        if not 1 <= len(values) <= steps:
            raise ScheduleError(f"strengths has {len(values)} numbers for {steps} steps; give one a step, or fewer.")
        return [*values, *[values[-1]] * (steps - len(values))]
    shapes: dict[str, Callable[[float], float]] = {
        "constant": lambda share: 0.0,
        "linear": lambda share: share,
        "cosine": lambda share: (1 - math.cos(math.pi * share)) / 2,
    }
    if curve not in shapes:
        raise ScheduleError(f"curve must be one of {', '.join(CURVES)}, got {curve!r}.")
    return [start + (end - start) * shapes[curve](step / max(steps - 1, 1)) for step in range(steps)]


def percent_between(percent_to_sigma: Callable[[float], float], before: float, after: float) -> float:
    """Returns a share of the schedule, in the host's sense, whose noise level lies between two steps'.

    Hosts switch at the first step whose noise level is at or below that of a percentage, and each model has its own way from
    percentages to noise levels, so the way back is found by halving; the middle between two steps is safe from rounding.

    Args:
        percent_to_sigma: falls from 0 to 1.
        before: the noise level of a step.
        after: the noise level of the next one, lower than `before`.
    """
    wanted, low, high = (before + after) / 2, 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if percent_to_sigma(middle) > wanted:
            low = middle
        else:
            high = middle
    return (low + high) / 2
