"""Where a catalogue file lies on this machine, and whether it is whole."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..disk import open_file
from ..errors import UnsupportedModelError
from .content import require_content
from .entry import Entry
from .host_folders import SAFETENSORS
from .model_check import require_model
from .progress import State

PART = ".part"  # ends the name of a file that is incomplete, and with which the next download goes on
BLOCK = 4 * 2**20  # bytes read at a time; larger ones do not hash faster
NEAR = 0.05  # share by which a file may differ from a size that is only known roughly
UNVERIFIED = "Not verified: the catalogue has no SHA-256 to compare this file with."
FLUSH = 64 * 2**20  # bytes after which a growing file goes to the disk, so that no long wait is left for the end

_known: dict[Path, tuple[int, int, str]] = {}  # path -> size, mtime_ns, sha256: what was hashed in this process


@dataclass(frozen=True)
class Found:
    """What a look at the folders found.

    Args:
        state: READY, CORRUPT, PARTIAL or MISSING.
        path: the file, or the partial one, None where there is none.
        bytes_done: the size of a ready or a partial file.
        problem: why a file is corrupt, else empty.
        note: what has to be said of a ready file, often empty.
    """

    state: State
    path: Path | None = None
    bytes_done: int = 0
    problem: str = ""
    note: str = ""


Index = dict[str, list[Path]]


def index_folders(folders: Iterable[Path], unread: Callable[[OSError], None] | None = None) -> Index:
    """Returns every file below the folders by its lower-case name, first folder first. Links are followed, circles are not.

    A folder whose name has an ending is among them, as it takes the name of a file: see problem_of. So are a link that leads
    nowhere and a file that goes in the meantime: see size_of.

    Args:
        folders: which need not exist.
        unread: called with the reason for each folder that cannot be looked into.
    """
    index: Index = {}
    seen: set[str] = set()
    for folder in folders:
        for parent, below, names in os.walk(folder, onerror=unread, followlinks=True):
            real = os.path.realpath(parent)
            if real in seen:
                below.clear()
                continue
            seen.add(real)
            for name in (*names, *(name for name in below if "." in name[1:])):
                index.setdefault(name.lower(), []).append(Path(parent, name))
    return index


def part_path(folder: Path, entry: Entry, sha256: str) -> Path:
    """Returns where a file lies while it is incomplete. The content's hash in the name keeps different releases apart."""
    return folder / f"{entry.name}.{sha256[:12]}{PART}"


def problem_of(path: Path, entry: Entry) -> str:
    """Returns what a quick look at size and header finds wrong with a file, empty when that is nothing.

    The content decides where it has been hashed before and has not been changed since.
    """
    try:
        digest = known_sha256(path)
        if digest and entry.sha256:
            return _differs(digest, entry)
        if not path.is_file():
            return "it is not a file"  # reading from a pipe would wait for ever
        size = path.stat().st_size
        if not may_have(entry, size):
            expected = f"about {entry.approximate_size}" if entry.size is None else entry.size
            return f"it has {size} bytes, the released file has {expected}"
        if entry.sha256 or entry.ending not in SAFETENSORS:
            require_content(path, entry.ending)
        else:
            require_model(path, entry)
    except UnsupportedModelError as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read ({error})"
    return ""


def may_have(entry: Entry, size: int) -> bool:
    """Tells whether an entry's file may have a size, as far as the catalogue knows it."""
    if entry.size is not None:
        return size == entry.size
    return not entry.approximate_size or abs(size - entry.approximate_size) <= NEAR * entry.approximate_size


def _differs(digest: str, entry: Entry) -> str:
    if digest == entry.sha256:
        return ""
    return f"its content (sha256 {digest[:12]}...) is not the released one ({entry.sha256[:12]}...)"


def look(entry: Entry, index: Index) -> Found:
    """Returns the state of an entry's file from an index of its folders: ready, corrupt, partial or missing."""
    corrupt = None
    note = "" if entry.sha256 else UNVERIFIED
    for path in index.get(entry.name.lower(), []):
        size = size_of(path)
        if size is None:
            continue
        problem = problem_of(path, entry)
        if not problem:
            return Found(State.READY, path, size, note=note)
        corrupt = corrupt or Found(State.CORRUPT, path, problem=problem)
    if corrupt:
        return corrupt
    return next(_partials(entry, index), Found(State.MISSING))


def _partials(entry: Entry, index: Index) -> Iterator[Found]:
    start = f"{entry.name.lower()}."
    for name, paths in index.items():
        tag = name[len(start) : -len(PART)]
        if name.startswith(start) and name.endswith(PART) and (not entry.sha256 or entry.sha256.startswith(tag)):
            size = size_of(paths[0])
            if size is not None:
                yield Found(State.PARTIAL, paths[0], size)


def size_of(path: Path) -> int | None:
    """Returns a file's size, None for a link that leads nowhere or in a circle, and for a file that has gone.

    A download that ends renames its file while others look at an index of its folder.
    """
    try:
        return path.stat().st_size
    except OSError:
        return None


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def known_sha256(path: Path) -> str | None:
    """Returns a file's hash if this process has taken it and the file has not changed since."""
    size, changed, digest = _known.get(path, (0, 0, ""))
    return digest if digest and _stamp(path) == (size, changed) else None


def remember_sha256(path: Path, digest: str) -> None:
    """Keeps a hash that was taken of this file's content elsewhere."""
    _known[path] = (*_stamp(path), digest)


def sha256_of(path: Path, report: Callable[[int], None] | None = None) -> str:
    """Returns a file's SHA-256 in hex, remembered until the file changes.

    Args:
        path: the file.
        report: called with the bytes read so far. What it raises ends the reading.
    Raises: OSError of the system.
    """
    known = known_sha256(path)
    if known:
        return known
    digest, buffer, done = hashlib.sha256(), memoryview(bytearray(BLOCK)), 0
    with open_file(path) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            done += count
            if report:
                report(done)
    remember_sha256(path, digest.hexdigest())
    return digest.hexdigest()


class TailHash(threading.Thread):
    """Hashes a file while it is being written, so that checking it costs next to no time of its own.

    Args:
        path: the file, which exists already. What stands in it at the start is hashed as well.
    """

    def __init__(self, path: Path):
        super().__init__(name="hyper_sd hash", daemon=True)
        self.path, self.done = path, 0
        self._limit, self._ended, self._valid = 0, False, True
        self._news = threading.Condition()

    def advance(self, limit: int) -> None:
        """Tells that the file now holds `limit` bytes. Fewer than before mean a new beginning, which ends the hashing."""
        with self._news:
            self._valid = self._valid and limit >= self._limit
            self._limit = limit
            if not self._valid or limit - self.done >= BLOCK:  # small pieces are waited for
                self._news.notify()

    def stop(self) -> None:
        """Ends the hashing at what is read so far. close() need not be called after it."""
        with self._news:
            self._valid, self._ended = False, True
            self._news.notify()

    def close(self) -> None:
        """Tells that nothing more is coming. The thread ends once it has read everything."""
        with self._news:
            self._ended = True
            self._news.notify()

    def digest(self) -> str | None:
        """Returns the hash in hex once the thread has ended, None when it had to give up."""
        return self._digest.hexdigest() if self._valid and not self.is_alive() else None

    def run(self) -> None:
        """Follows the file. A file that cannot be read leaves no digest."""
        self._digest, buffer = hashlib.sha256(), memoryview(bytearray(BLOCK))
        try:
            with self.path.open("r+b", buffering=0) as file:  # Windows flushes only what could be written
                while (room := self._wait()) > 0:
                    count = file.readinto(buffer[: min(room, BLOCK)])
                    self._digest.update(buffer[:count])
                    self.done += count
                    if self.done % FLUSH < count:
                        os.fsync(file.fileno())
        except OSError:
            self._valid = False

    def _wait(self) -> int:
        """Returns how many bytes can be read now, 0 when there will be no more."""
        with self._news:
            while self._valid and not self._ended and self._limit - self.done < BLOCK:
                self._news.wait()
            return self._limit - self.done if self._valid else 0


def name_aside(path: Path) -> Path:
    """Returns a name for a corrupt file under which no host takes it for a model."""
    names = (path.with_name(f"{path.name}.corrupt{number or ''}") for number in range(10**6))
    return next(name for name in names if not name.exists())
