"""What the A1111 family gets, as one list; Reload UI goes through it again."""

from . import downloads_tab, one_step, options, sampler, schedule, xyz
from .script import HyperSDScript

__all__ = ["HyperSDScript", "register"]

PARTS = (schedule, sampler, options, xyz, downloads_tab, one_step)


def register() -> None:
    """Adds or replaces everything by name; the host finds the script by itself."""
    for part in PARTS:
        part.register()
