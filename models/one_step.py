"""The one-step SDXL UNet: which file it is, and at which timestep its one step starts."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from ..samplers.timesteps import LAST_TIMESTEP, ONE_STEP_START
from .catalog import load_catalog

STARTS_AT = "hyper_sd.start_timestep"  # in the metadata of a checkpoint that was built here


def start_of(name: str, metadata: Mapping[str, str]) -> int | None:
    """Returns the timestep of a file's one step, None for a model of many steps.

    The tensors have the names and sizes of every SDXL model, so it is known by the note in a checkpoint that was built here, or
    by the released files' names.

    Args:
        name: of the file, which holds a whole SDXL UNet.
        metadata: of the file.
    """
    note = metadata.get(STARTS_AT, "")
    if note.isdecimal() and 0 < int(note) <= LAST_TIMESTEP:
        return int(note)
    return ONE_STEP_START if name.lower().startswith(_released_names()) else None


def start_note(name: str, metadata: Mapping[str, str]) -> dict[str, str]:
    """Returns the note for the metadata of a checkpoint that is built from such a file, {} for a model of many steps."""
    start = start_of(name, metadata)
    return {STARTS_AT: str(start)} if start else {}


@cache
def _released_names() -> tuple[str, ...]:
    """Returns how the released files' names begin; a second download of a browser's adds " (1)" to them."""
    entries = [entry for entry in load_catalog() if entry.settings.start_timestep == ONE_STEP_START]
    return tuple(Path(entry.name).stem.lower() for entry in entries)
