"""Fields of a JSON object that a person may have written, each checked as it is read."""

import re
from collections.abc import Mapping
from typing import Any

from ..errors import CatalogError


def number(raw: Mapping[str, Any], name: str, kind: type | tuple[type, ...], low: float, high: float, default: Any) -> Any:
    """Returns a number from `low` to `high`; a default of None allows that there is none. Raises: CatalogError."""
    value = raw.get(name, default)
    if value is None and default is None:
        return None
    if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
        raise CatalogError(f"{name} must be a number from {low} to {high}, got {value!r}")
    return value


def text(raw: Mapping[str, Any], name: str, pattern: re.Pattern, example: str, optional: bool = False) -> str | None:
    """Returns a text that a pattern matches whole, None where an optional one is missing. Raises: CatalogError."""
    value = raw.get(name)
    if value is None and optional:
        return None
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise CatalogError(f"{name} must look like {example}, got {value!r}")
    return value


def choice(raw: Mapping[str, Any], name: str, allowed: tuple[str, ...], default: str | None = None) -> str:
    """Returns one of the allowed texts. Raises: CatalogError."""
    value = raw.get(name, default)
    if value not in allowed:
        raise CatalogError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    return value
