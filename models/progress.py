"""How far a download is: its states, the row that people see of it, and a duration in words."""

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from ..disk import format_bytes
from .entry import Entry


class State(Enum):
    """What an entry's file is on this machine; the values are the words in JSON."""

    MISSING = "missing"
    PARTIAL = "partial"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    READY = "ready"
    CORRUPT = "corrupt"


@dataclass(frozen=True)
class Progress:
    """How far a download is.

    Args:
        state: what the file is at the moment.
        bytes_done: bytes of the file that are here, or that are checked while the state is VERIFYING.
        bytes_total: bytes of the whole file, 0 where that is not known.
        rate: bytes a second, None until known.
        eta_seconds: seconds that are left, None until known.
        note: a sentence for the person, often empty.
    """

    state: State
    bytes_done: int = 0
    bytes_total: int = 0
    rate: float | None = None
    eta_seconds: float | None = None
    note: str = ""

    @property
    def percent(self) -> int:
        """How much of the file is here, 0 to 100."""
        return min(100, 100 * self.bytes_done // self.bytes_total) if self.bytes_total else 0

    def amounts(self) -> list[str]:
        """Returns what is known in words: "120 MB of 269 MB", then "11 MB/s" and "14 s left" where they are known."""
        whole = f" of {format_bytes(self.bytes_total)}" if self.bytes_total else ""
        words = [f"{format_bytes(self.bytes_done)}{whole}"] if self.bytes_total or self.bytes_done else []
        if self.rate:
            words.append(f"{format_bytes(self.rate)}/s")
        if self.eta_seconds is not None and self.bytes_done < self.bytes_total:
            words.append(f"{format_duration(self.eta_seconds)} left")
        return words


@dataclass(frozen=True)
class Row:
    """One entry of the catalogue, and how its file stands.

    Args:
        entry: of the catalogue.
        progress: how much of its file is here.
        file: the file's name as the host's loaders list it, empty unless it is ready.
        problem: what is wrong, as a sentence for the person, often empty.
    """

    entry: Entry
    progress: Progress
    file: str = ""
    problem: str = ""

    @property
    def id(self) -> str:
        """The entry's id."""
        return self.entry.id

    @property
    def state(self) -> State:
        """What the file is at the moment."""
        return self.progress.state

    @property
    def is_busy(self) -> bool:
        """Whether the file is being downloaded or checked."""
        return self.state in (State.DOWNLOADING, State.VERIFYING)

    def to_json(self) -> dict[str, Any]:
        """Returns the row as pages and programs read it."""
        entry, licence = self.entry, self.entry.licence
        return {
            "id": entry.id,
            "title": entry.title,
            "family": entry.family,
            "kind": entry.kind,
            "method": entry.method,
            "steps": list(entry.step_range),
            "size": entry.approximate_size,
            "licence": {"title": licence.title, "url": licence.url, "acknowledge": licence.acknowledge},
            "page": entry.page,
            "models": entry.workflow_metadata(),
            **asdict(self.progress),
            "state": self.state.value,
            "file": self.file,
            "problem": self.problem,
        }


def format_duration(seconds: float) -> str:
    """Returns a duration as people say it: "14 s", "3 min 20 s", "1 h 5 min".

    Args:
        seconds: 0 or more; from an hour on it is rounded to minutes.
    """
    whole = max(round(seconds), int(seconds > 0))  # "0 s left" would say that it has ended
    large, small = ("h", "min") if whole >= 3600 else ("min", "s")
    counts = divmod(round(whole / 60) if whole >= 3600 else whole, 60)
    parts = [f"{count} {unit}" for count, unit in zip(counts, (large, small), strict=True) if count]
    return " ".join(parts) or "0 s"
