"""A file somewhere else, and the sink its sender writes into."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from ..errors import ChecksumMismatch, DownloadError
from .entry import Entry
from .files import may_have
from .model_check import can_be_told


class Cancelled(DownloadError):
    """The person stopped the download. What came so far is kept."""


class Busy(DownloadError):
    """The server or the line failed in a way that passes.

    Args:
        message: what happened, as a sentence.
        seconds: how long to wait before the next try, 0 when the server did not say.
        cost: how many tries it counts for, more where it has taken long already.
    """

    def __init__(self, message: str, seconds: float = 0.0, cost: int = 1):
        super().__init__(message)
        self.seconds, self.cost = seconds, cost


class StartAnew(Exception):
    """The remote sent the file from its beginning although the rest was asked for."""


@dataclass(frozen=True)
class Remote:
    """A file somewhere else.

    Args:
        size: bytes, None where the server does not say.
        sha256: 64 hex digits, None where the server does not say.
        send: writes the file from an offset on into a sink, and raises Busy, StartAnew or DownloadError.
        is_hub: whether it is the hub itself that says so, and not a mirror, whose sha256 tells only what it means to send.
    """

    size: int | None
    sha256: str | None
    send: Callable[["Sink", int], None]
    is_hub: bool = False


def expected_of(entry: Entry, remote: Remote) -> tuple[int, str]:
    """Returns the size and the sha256 that an entry's file shall have: the catalogue's, else the server's.

    Raises: ChecksumMismatch where the two differ, and for a size far from the catalogue's; DownloadError where neither knows,
        and where nothing could tell a mirror's file from another one.
    """
    for name, ours, theirs in (("size", entry.size, remote.size), ("sha256", entry.sha256, remote.sha256)):
        if ours is not None and theirs is not None and ours != theirs:
            raise ChecksumMismatch(
                f"The server offers another {entry.name} than the released one ({name} {theirs}, expected {ours}); nothing "
                "was downloaded. If you use a mirror (HF_ENDPOINT), try without it; else look for an update of this pack."
            )
    size, sha256 = entry.size or remote.size, entry.sha256 or remote.sha256
    if size is None or sha256 is None:
        raise DownloadError(
            f"Neither the server nor the catalogue knows the {'size' if size is None else 'sha256'} of {entry.name}, so it "
            "could not be verified; nothing was downloaded. Try without a mirror (HF_ENDPOINT)."
        )
    if not entry.sha256 and not remote.is_hub and not (entry.approximate_size or can_be_told(entry)):
        raise DownloadError(
            f"The catalogue knows neither the sha256 nor the size of {entry.name}, and no header tells what it is, so what a "
            "mirror sends could not be told from another file; nothing was downloaded. Try without the mirror (HF_ENDPOINT)."
        )
    if not may_have(entry, size):
        raise ChecksumMismatch(
            f"The server's {entry.name} has {size} bytes, the catalogue expects about {entry.approximate_size}; nothing was "
            "downloaded. Mend approximate_size if the entry is your own."
        )
    return size, sha256


class Sink:
    """The file that is being written, as the sender sees it: counts, refuses too much, and stops when cancelled.

    A sender that can be stopped while it is silent sets stop_sender to the function that does it.

    Args:
        file: opened unbuffered.
        size: bytes it shall have in the end.
        cancelled: set once the person has stopped the download.
        wrote: called with the file's length at every piece.
    """

    def __init__(self, file: BinaryIO, size: int, cancelled: threading.Event, wrote: Callable[[int], None]):
        self._file, self._size, self._cancelled, self._wrote = file, size, cancelled, wrote
        self._position = file.seek(0, os.SEEK_END)
        self.stop_sender: Callable[[], object] = lambda: None

    def write(self, data: bytes) -> int:
        """Writes a piece. What is counted survives an end of this program.

        Raises: Cancelled when the person has stopped the download; ChecksumMismatch when the file would become longer than it
            should be.
        """
        self.raise_if_cancelled()
        if self._position + len(data) > self._size:
            raise ChecksumMismatch(f"The server sends more than the {self._size} bytes it announced. Try again later.")
        rest = memoryview(data)
        while rest:  # an unbuffered file may take a part of it only
            rest = rest[self._file.write(rest) :]
        self._position += len(data)
        self._wrote(self._position)
        return len(data)

    def raise_if_cancelled(self) -> None:
        """Ends the sender's work when the person has stopped the download.

        Raises: Cancelled then.
        """
        if self._cancelled.is_set():
            raise Cancelled("The download was stopped; start it again and it goes on where it stopped.")

    def tell(self) -> int:
        """Returns how many bytes the file holds."""
        return self._position

    def start_anew(self) -> None:
        """Empties the file."""
        self._file.truncate(0)
        self._position = self._file.seek(0)
        self._wrote(0)
