"""What is to be said of files that are not used, or not as they stand: one text for a node and for the command line's log."""

from collections.abc import Iterable
from dataclasses import dataclass

NAMED = 3  # files that are named for one reason, before the number of the others
REASONS = 6  # the most reasons that are told


@dataclass(frozen=True)
class Remark:
    """A file by its name for messages, and what is to be said as the rest of a sentence about it."""

    name: str
    reason: str


def in_words(remarks: Iterable[Remark]) -> list[str]:
    """Returns a sentence for each reason, without full stops: "a.png has no caption", or "a.png and b.png: each has ..."."""
    names: dict[str, list[str]] = {}
    for remark in remarks:
        names.setdefault(remark.reason, []).append(remark.name)
    sentences = [f"{_listed(of_reason)} {reason}" for reason, of_reason in names.items()]
    left = sum(map(len, list(names.values())[REASONS:]))
    return sentences[:REASONS] + ([f"and {left} more"] if left else [])


def _listed(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    named, last = (names[:NAMED], f"{len(names) - NAMED} more") if len(names) > NAMED + 1 else (names[:-1], names[-1])
    return f"{', '.join(named)} and {last}: each"
