"""What the A1111 family gets, as one list; Reload UI goes through it again."""

import importlib
import importlib.util

from . import options, sampler, schedule, xyz
from .script import HyperSDScript

__all__ = ["HyperSDScript", "register"]

PARTS = (schedule, sampler, options, xyz)
TABS = ("downloads_tab", "one_step")


def register() -> None:
    """Adds or replaces everything by name; the host finds the script by itself."""
    for part in PARTS:
        part.register()
    for name in TABS:
        if importlib.util.find_spec(f"{__package__}.{name}"):
            importlib.import_module(f"{__package__}.{name}").register()
