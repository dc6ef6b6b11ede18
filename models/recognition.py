"""Which LoRA a file is: told by its content or its metadata, or guessed from its name."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UnsupportedModelError
from .catalog import Catalog, load_catalog
from .embedded import LORAS
from .entry import Entry
from .files import may_have, sha256_of
from .header import read_header

# From certain to unknown. "catalogue": the name and the size of a catalogue file whose hash nobody has written down.
EVIDENCE = ("embedded", "content", "catalogue", "metadata", "name", "nothing")
_OBJECTIVE, _STAGES, _SEGMENTS = "hyper_sd_objective", "hyper_sd_stages", "num_segments"  # what this pack's training writes
_START = "hyper_sd_start_timestep"  # in a LoRA that was trained for one step: where that step starts, "1" to "999"
_NUMBER, _TIMESTEP = re.compile(r"[1-9]\d?"), re.compile(r"[1-9]\d{0,2}")


@dataclass(frozen=True)
class Recognition:
    """What is known of a LoRA file.

    Args:
        file: its name, without folders.
        evidence: one of EVIDENCE.
        variant: "unified", "n-step" or "cfg"; None where nothing is known, and for a style without few steps.
        steps: the number of steps that it was made for, 1 for a unified LoRA, 0 where variant is None.
        entry: the catalogue's; where evidence is "name", the one whose name it has.
        start_timestep: where its one step starts, 1 to 999, of a LoRA that was trained for exactly one step; None of others.
    """

    file: str
    evidence: str = "nothing"
    variant: str | None = None
    steps: int = 0
    entry: Entry | None = None
    start_timestep: int | None = None

    @property
    def is_certain(self) -> bool:
        """Whether the file itself tells, and not its name alone."""
        return EVIDENCE.index(self.evidence) < EVIDENCE.index("name")

    @property
    def is_style(self) -> bool:
        """Whether it was trained here, and not for few steps."""
        return self.is_certain and self.variant is None


def recognise(path: Path, catalog: Catalog | None = None) -> Recognition:
    """Returns what is known of a LoRA file, whatever its name and its folder.

    Its content is hashed only where a catalogue file can have its size, and only once until it changes. A file that cannot be
    read is told by its name alone: what reads it afterwards says what is wrong with it.

    Args:
        path: of the file.
        catalog: with further entries than the pack's own.
    """
    catalog = catalog or load_catalog()
    own = next((key for key, known in LORAS.items() if known == path), None)
    if own:
        return Recognition(path.name, "embedded", *own, start_timestep=(_by_metadata(path) or (None, 0, None))[2])
    named = catalog.lora_named(path.name)
    try:
        entry = _by_content(path, catalog, named)
    except OSError:
        entry = None
    if entry:
        return Recognition(path.name, "content" if entry.sha256 else "catalogue", entry.kind, entry.steps, entry)
    told = _by_metadata(path)
    if told:
        return Recognition(path.name, "metadata", told[0], told[1], start_timestep=told[2])
    return Recognition(path.name, "name", named.kind, named.steps, named) if named else Recognition(path.name)


def _by_content(path: Path, catalog: Catalog, named: Entry | None) -> Entry | None:
    candidates = list(_of_size(path.stat().st_size, catalog, named))
    digest = sha256_of(path) if any(entry.sha256 for entry in candidates) else None
    by_hash = next((entry for entry in candidates if digest and entry.sha256 == digest), None)
    exact = (entry for entry in candidates if not entry.sha256 and entry.name.lower() == path.name.lower())
    return by_hash or next(exact, None)


def _of_size(size: int, catalog: Catalog, named: Entry | None) -> Iterator[Entry]:
    """Yields the LoRAs that a file of so many bytes can be."""
    for entry in catalog:
        is_sized = entry.size or entry.approximate_size  # where no size is known, the name has to tell
        if entry.folder == "loras" and may_have(entry, size) and (is_sized or entry is named):
            yield entry


def _by_metadata(path: Path) -> tuple[str | None, int, int | None] | None:
    """Returns the variant, the steps and the start timestep that the training of this pack has written, (None, 0, None) for a
    style. A start that is no timestep counts as none, and then one segment is the unified LoRA's.
    """
    try:
        metadata: Any = read_header(path).get("__metadata__")
    except (OSError, UnsupportedModelError):
        return None
    if not isinstance(metadata, Mapping):
        return None
    last = str(metadata.get(_STAGES, metadata.get(_SEGMENTS, ""))).rpartition("-")[2]
    if not _NUMBER.fullmatch(last):
        return (None, 0, None) if _OBJECTIVE in metadata else None
    if last != "1":
        return "n-step", int(last), None
    start = str(metadata.get(_START, ""))
    return ("n-step", 1, int(start)) if _TIMESTEP.fullmatch(start) else ("unified", 1, None)
