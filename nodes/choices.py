"""Values of lists: the host (0.3.75) lets any text through when a program sends a workflow."""

from collections.abc import Iterable

from ..errors import HyperSDError


def require_choice(name: str, value: str, options: Iterable[str]) -> None:
    """Raises: HyperSDError naming the input and what is allowed, when `value` is not one of `options`."""
    allowed = list(options)
    if value not in allowed:
        raise HyperSDError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}.")
