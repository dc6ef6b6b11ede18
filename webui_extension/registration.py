"""What the A1111 family gets, as one list; Reload UI goes through it again, unless the extension has been switched off."""

from modules import script_callbacks

from . import downloads_tab, kept_image, one_step, options, sampler, schedule, sorting, xyz
from .script import HyperSDScript

__all__ = ["HyperSDScript", "register"]

LISTED = (schedule, sampler, options, xyz)  # in lists that the host keeps at Reload UI; it makes what the others add anew
PARTS = (*LISTED, downloads_tab, one_step, sorting, kept_image)


def register() -> None:
    """Adds or replaces everything by name; the host finds the script by itself."""
    for part in PARTS:
        part.register()
    script_callbacks.on_script_unloaded(unregister)


def unregister() -> None:
    """Takes everything out of the host's lists. Reload UI does so before it loads the extensions that are switched on."""
    for part in LISTED:
        part.unregister()
