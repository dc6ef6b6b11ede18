"""What a number of the sampler's settings must be: a count is a whole number, a share lies between 0 and 1."""

import numbers
import operator
from typing import Any

import numpy as np
import torch

from ..errors import ScheduleError


def whole(name: str, value: Any, least: int) -> int:
    """Returns a whole number, which may be Python's, numpy's or a tensor of one.

    Args:
        name: what the error calls it.
        value: the number. A bool or a float is none, 4.0 neither: it is a sign that something was mixed up.
        least: the smallest that is allowed.
    Raises: ScheduleError for anything else.
    """
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None or number < least:
        raise ScheduleError(f"{name} must be a whole number of at least {least}, got {_shown(value)}.")
    return number


def share(name: str, value: Any, remedy: str, includes_zero: bool = True) -> float:
    """Returns a number from 0 to 1, which may be Python's, numpy's or a tensor of one.

    Args:
        name: what the error calls it.
        value: the number.
        remedy: what to use instead, for the error.
        includes_zero: whether 0 itself is allowed.
    Raises: ScheduleError for anything else.
    """
    single = isinstance(value, torch.Tensor) and not value.ndim and not value.is_complex()
    is_number = single or (isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_))
    if not is_number or not (0 <= value <= 1 if includes_zero else 0 < value <= 1):
        raise ScheduleError(f"{name} must lie in {'[' if includes_zero else '('}0, 1], got {_shown(value)}; {remedy}.")
    return float(value)


def _shown(value: Any) -> str:
    """Returns a value as an error shows it, cut where it would fill the page."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
