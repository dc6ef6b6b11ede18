"""Checks of settings that come from a file."""

import dataclasses
from numbers import Integral, Real
from typing import Any

from ..errors import TrainingError

_KINDS = {
    int: (Integral, "a whole number"), float: (Real, "a number"), float | None: (Real | None, "a number"),
    bool: (bool, "true or false"), str: (str, "text in quotes"),
}  # fmt: skip


def require_types(*tables: Any) -> None:
    """Refuses numbers, text and switches of another type than a dataclass declares.

    Args:
        tables: instances of dataclasses; a whole number is a number, and true is none.
    Raises: TrainingError naming the first value that is wrong, and what it must be.
    """
    for table in tables:
        for field in dataclasses.fields(table):
            kind, words = _KINDS.get(field.type, (object, ""))
            value = getattr(table, field.name)
            if not isinstance(value, kind) or (words and isinstance(value, bool) != (field.type is bool)):
                raise TrainingError(f"{field.name} must be {words}, got {value!r}.")


def two_numbers(name: str, value: Any, example: str) -> tuple[float, float]:
    """Returns a list of two numbers as a pair.

    Args:
        name: of the setting.
        value: of the setting.
        example: of a right one.
    Raises: TrainingError for anything else.
    """
    is_list = isinstance(value, list | tuple) and len(value) == 2
    if not is_list or not all(isinstance(part, Real) and not isinstance(part, bool) for part in value):
        raise TrainingError(f"{name} must be a list of two numbers, got {value!r}; use for example {example}.")
    return float(value[0]), float(value[1])
