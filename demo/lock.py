"""demo/lock.txt: the one version of every package that .venv gets, and the sha256 of each of its files."""

import re
from dataclasses import dataclass
from pathlib import Path

from .errors import InstallError
from .requirements import name_of

LISTS = "lists.txt"  # what demo/relock.py calls the lists of demo/requirements.py
LOCK = Path(__file__).with_name("lock.txt")
# What demo/torch_build.py chooses by the machine's card, and what only that choice brings.
CHOSEN_BY_CARD = re.compile(r"torch|torchvision|torchaudio|triton|(nvidia|cuda)-.+")
_ENTRY = re.compile(r"[a-z0-9-]+==[^\s;]+( ; [^\\]+?)?( --hash=sha256:[0-9a-f]{64})+")
_REMEDY = 'Get the file again ("git checkout demo/lock.txt"), or write it anew: "python -m hyper_sd.demo.relock".'


@dataclass(frozen=True)
class Locked:
    """A package of the lock file in one version; another version of it may stand there for other Pythons.

    Args:
        name: its normalised project name.
        line: the requirement with its marker and hashes in one line, as pip reads it.
        needed_by: the projects that ask for it, and "-r lists.txt" where the lists of demo/requirements.py do.
    """

    name: str
    line: str
    needed_by: frozenset[str]


def read_lock(text: str | None = None) -> tuple[Locked, ...]:
    """Returns the entries of the lock file.

    Args:
        text: its text, None to read the file.
    Raises: InstallError when it is missing, or an entry has no exact version or no hash.
    """
    if text is None:
        try:
            text = LOCK.read_text(encoding="utf-8")
        except OSError as error:
            raise InstallError(f"{LOCK} cannot be read ({error.strerror}). {_REMEDY}") from error
    entries = []
    for block in re.split(r"^(?=[^\s#])", text, flags=re.MULTILINE)[1:]:
        before, _, comment = block.partition("    # via ")
        line = " ".join(before.replace("\\\n", " ").split("\n#")[0].split())
        if not _ENTRY.fullmatch(line):
            raise InstallError(
                f"{LOCK.name} says {line[:80]!r}; every package there needs one version with == and its sha256. {_REMEDY}"
            )
        entries.append(Locked(name_of(line), line, frozenset(comment.split("\n")[0].split(", "))))
    return tuple(entries)


def lock(requirements: tuple[str, ...]) -> tuple[str, ...]:
    """Returns requirement lines with everything that they and torch need, each in the version and with the hashes of the lock.

    The projects that the machine's card decides about are passed on as they are.

    Raises: InstallError when the lock file is damaged or lacks a project.
    """
    entries = read_lock()
    free = tuple(line for line in requirements if CHOSEN_BY_CARD.fullmatch(name_of(line)))
    wanted = {name_of(line) for line in requirements if line not in free}
    if missing := wanted - {entry.name for entry in entries}:
        raise InstallError(f"{LOCK.name} does not name {', '.join(sorted(missing))}. {_REMEDY}")
    wanted |= {"torch", *map(name_of, free)}
    while more := {entry.name for entry in entries if entry.needed_by & wanted} - wanted:
        wanted |= more
    return (*(entry.line for entry in entries if entry.name in wanted), *free)


def is_locked(line: str) -> bool:
    """Tells whether a requirement line names the only files that pip may take for it."""
    return " --hash=" in line
