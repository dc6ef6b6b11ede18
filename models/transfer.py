"""One file's way from a remote to its final name: lock, resume, follow the hash, verify, move. Knows no network."""

import errno
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from .. import disk
from ..errors import ChecksumMismatch, DownloadError
from .entry import Entry
from .files import Index, TailHash, index_folders, look, name_aside, part_path, problem_of, remember_sha256, sha256_of, size_of
from .host_folders import SAFETENSORS
from .progress import Progress, State
from .remote import Busy, Cancelled, Remote, Sink, StartAnew, expected_of
from .verification import verify

RATE_WINDOW = 5.0  # seconds over which the rate is taken
ATTEMPTS = 6  # in a row without a byte
LONGEST_WAIT = 60.0  # seconds
_log = logging.getLogger("hyper_sd")


class Transfer:
    """One entry's download, run by one thread and watched by another.

    Args:
        entry: what is downloaded.
        root: the folder it goes to.
        open_remote: finds the file elsewhere.
        also: further folders in which it may lie already.
        set_aside: whether a corrupt file under its name may be renamed, once the good one is there.
        endings: of file names that the host reads as safetensors files.
        verified: called with (size, sha256) once a file is there whose hash the hub itself has said, and the catalogue has not.
    """

    def __init__(
        self,
        entry: Entry,
        root: Path,
        open_remote: Callable[[Entry], Remote],
        also: Iterable[Path] = (),
        set_aside: bool = False,
        endings: Sequence[str] = SAFETENSORS,
        verified: Callable[[int, str], None] | None = None,
    ):
        self.entry, self.root, self.folders = entry, root, [root, *also]
        self.cancelled = threading.Event()
        self._open_remote, self._set_aside, self._endings = open_remote, set_aside, endings
        self._verified = None if entry.sha256 else verified
        self._state, self._done, self._total, self._note = State.VERIFYING, 0, entry.approximate_size, ""
        self._trail: deque[tuple[float, int]] = deque()
        self._sink: Sink | None = None

    def progress(self) -> Progress:
        """Returns how far it is. May be called from any thread, about five times a second."""
        now, done, trail = time.monotonic(), self._done, self._trail
        trail.append((now, done))
        while now - trail[0][0] > RATE_WINDOW:
            trail.popleft()
        seconds, count = now - trail[0][0], done - trail[0][1]
        rate = count / seconds if seconds > 0 and count >= 0 else None
        eta = (self._total - done) / rate if rate else None
        return Progress(self._state, done, self._total, rate, eta, self._note)

    def stop(self) -> None:
        """Has the transfer end soon. What came so far is kept."""
        self.cancelled.set()
        if self._sink:
            self._sink.stop_sender()

    def say(self, note: str) -> None:
        """Shows a sentence beside the progress."""
        self._note = note

    def pause(self, seconds: float) -> None:
        """Waits for some seconds.

        Raises: Cancelled when the transfer is stopped before or meanwhile.
        """
        if self.cancelled.wait(seconds):
            raise Cancelled("The download was stopped; start it again and it goes on where it stopped.")

    def run(self) -> Path:
        """Returns the whole, verified file: one that was there already, or a new one.

        Raises: DownloadError, also when the disk is full or may not be written; ChecksumMismatch; other errors of the system.
        """
        try:
            present = self._present()
            if present:
                return present
            with self._locked():
                return self._present() or self._fetch()
        except OSError as error:
            known = isinstance(error, PermissionError | FileExistsError | NotADirectoryError) or error.errno == errno.EINVAL
            if not disk.is_full(error) and not known:
                raise
            why = disk.explain(error, self.root, max(self._total - self._done, 0))
            raise DownloadError(f"{self.entry.name} was not downloaded: {why}. It goes on where it stopped.") from error

    def _phase(self, state: State, done: int, total: int, note: str = "") -> None:
        self._state, self._done, self._total, self._note = state, done, total, note
        self._trail = deque()

    def _reached(self, done: int) -> None:
        self.pause(0)
        self._done = done

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps every other process out. The one that waits finds the file ready afterwards."""
        lock = filelock.FileLock(self._claimed(self.root / f"{self.entry.name}.lock"))
        while not lock.is_locked:
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                self.say("another download of this file is under way; waiting for it")
                self.pause(0.2)
        try:
            yield
        finally:
            with suppress(OSError):  # while it is locked; Windows does it itself
                os.unlink(lock.lock_file)
            lock.release()

    @staticmethod
    def _claimed(path: Path) -> Path:
        if disk.claim(path):
            _log.warning("%s was a link to another file, through which a download would have written; it was removed.", path)
        return path

    def _empty(self, part: Path) -> None:
        part.unlink()  # the name alone, whatever stands there now
        self._claimed(part)

    def _index(self) -> Index:
        def unread(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                _log.warning(
                    "%s cannot be looked into (%s); a copy of %s may lie there", error.filename, error, self.entry.name
                )

        return index_folders(self.folders, unread)

    def _present(self) -> Path | None:
        """Returns a file of that name in the folders if it is whole and of the right content.

        Raises: ChecksumMismatch when it is not, and may not be set aside.
        """
        index = self._index()
        found = look(self.entry, index)
        # Its size is only known roughly, so its content decides.
        doubtful = found.state is State.CORRUPT and self.entry.size is None and found.path.is_file()
        if self.entry.sha256 and (found.state is State.READY or doubtful):
            self._phase(State.VERIFYING, 0, size_of(found.path) or 0)
            with suppress(OSError):  # a second look tells why it cannot be read
                sha256_of(found.path, self._reached)
            found = look(self.entry, index)
        if found.state is State.READY:
            return found.path
        if found.state is State.CORRUPT:
            if not self._set_aside:
                raise ChecksumMismatch(
                    f"{found.path} is there, but is not whole or not the released file: {found.problem}. "
                    "Have it set aside (it is renamed, not deleted) and download it again, or move it away yourself."
                )
            self.root = found.path.parent  # workflows name the file with its folder
        return None

    def _fetch(self) -> Path:
        self._phase(State.DOWNLOADING, 0, self.entry.approximate_size, "asking the server for the file")
        remote = self._patiently(lambda: self._open_remote(self.entry))
        size, sha256 = expected_of(self.entry, remote)
        path = self._renamed_copy(size, sha256) or self._received(remote, size, sha256)
        if remote.is_hub and self._verified:
            self._verified(size, sha256)
        return path

    def _received(self, remote: Remote, size: int, sha256: str) -> Path:
        part = part_path(self.root, self.entry, sha256)
        resumed = self._claimed(part).stat().st_size
        if resumed > size:  # no rest of it could be asked for
            self._empty(part)
            resumed = 0
        self._phase(State.DOWNLOADING, resumed, size)
        disk.require_room(self.root, size - resumed)
        digest = self._receive(remote, part, size)
        if digest != sha256 and resumed:
            self.say("what an earlier download left was damaged; starting anew")
            self._empty(part)
            digest = self._receive(remote, part, size)
        verify(part, self.entry, digest, sha256, remote.is_hub)
        return self._move(part, sha256)

    def _renamed_copy(self, size: int, sha256: str) -> Path | None:
        """Returns a file of the same content under another name, since hashing is quicker than downloading."""
        for path in (path for paths in self._index().values() for path in paths):
            if path.suffix.lower() not in (*self._endings, self.entry.ending) or size_of(path) != size:
                continue
            self._phase(State.VERIFYING, 0, size, f"looking whether {path.name} is the same file")
            try:
                if sha256_of(path, self._reached) == sha256:
                    return path
            except OSError as error:
                _log.warning("%s cannot be read (%s); it may be a copy of %s", path, error, self.entry.name)
        return None

    def _receive(self, remote: Remote, part: Path, size: int) -> str:
        """Fills the partial file and returns its content's hash."""
        tail = TailHash(part)

        def wrote(position: int) -> None:
            self._done = position
            tail.advance(position)

        with open(part, "r+b", buffering=0, opener=disk.no_follow) as file:
            sink = self._sink = Sink(file, size, self.cancelled, wrote)
            self._phase(State.DOWNLOADING, sink.tell(), size)
            tail.start()
            try:
                wrote(sink.tell())
                self._send(remote, sink, size)
                if sink.tell() != size:
                    raise DownloadError(
                        f"The server ended {self.entry.name} after {sink.tell()} of {size} bytes. Start it again: it goes on."
                    )
                os.fsync(file.fileno())
                if disk.is_replaced(part, file):
                    raise DownloadError(f"Another program took {part} away while it was downloaded. Start it again.")
            except BaseException:
                tail.stop()
                raise
        tail.close()
        self._phase(State.VERIFYING, tail.done, size)
        while tail.is_alive():
            tail.join(0.2)
            self._reached(tail.done)
        return tail.digest() or sha256_of(part, self._reached)

    def _send(self, remote: Remote, sink: Sink, size: int) -> None:
        def rest() -> None:
            if sink.tell() < size:
                remote.send(sink, sink.tell())

        for _ in range(ATTEMPTS):
            try:
                self._patiently(rest)
                return
            except StartAnew:
                sink.start_anew()
        raise DownloadError(
            f"The line for {self.entry.name} keeps breaking, and the server cannot go on in the middle. Try again later."
        )

    def _patiently(self, call: Callable[[], Remote | None]) -> Remote | None:
        """Calls until it works, and waits as long as the server asks for. Every byte that came renews the patience."""
        left, done = ATTEMPTS, self._done
        while True:
            try:
                return call()
            except Busy as busy:
                left, done = (ATTEMPTS, self._done) if self._done > done else (left - busy.cost, done)
                if left <= 0:
                    raise Busy(f"{busy} It was tried again and again; try later, what came so far is kept.") from busy
                seconds = min(busy.seconds or 2.0 ** (ATTEMPTS - left - 1), LONGEST_WAIT)
                self.say(f"{busy} Trying again in {seconds:.0f} s.")
                self.pause(seconds)
                self.say("")

    def _move(self, part: Path, sha256: str) -> Path:
        self.pause(0)
        target = self.root / self.entry.name
        if target.exists() and problem_of(target, self.entry):
            os.replace(target, name_aside(target))
        os.replace(part, target)
        remember_sha256(target, sha256)
        return target
