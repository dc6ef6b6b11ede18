"""The downloads of one running host: what is there, what is under way; a page starts, watches and stops them."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from ..errors import CatalogError, HyperSDError
from .catalog import CATALOG, Catalog, load_catalog, require_acknowledged
from .download import download
from .entry import Entry
from .files import Found, Index, index_folders, known_sha256, look
from .host_folders import SAFETENSORS
from .progress import Progress, Row, State
from .remote import Cancelled, Remote
from .verified import NAME, remember, with_verified

AT_ONCE = 2  # files fetched side by side; the others wait for their turn
POLL = 0.2  # seconds between two rows of a download that is followed
_log = logging.getLogger("hyper_sd")


def listed_name(path: Path, folders: Sequence[Path]) -> str:
    """Returns a file's name as a host's loader lists it: relative to the folder that holds it, with the system's separator."""
    for folder in folders:
        if path.is_relative_to(folder):
            return str(path.relative_to(folder))
    return path.name


class Job:
    """One entry's download under way, and its newest progress.

    Args:
        entry: what is downloaded.
    """

    def __init__(self, entry: Entry):
        self.entry = entry
        self.progress = Progress(State.DOWNLOADING, 0, entry.approximate_size, note="waiting for its turn")
        self.cancelled = threading.Event()

    @property
    def row(self) -> Row:
        """How the download stands now."""
        return Row(self.entry, self.progress)

    def report(self, progress: Progress) -> None:
        """Takes the newest progress.

        Raises: Cancelled when the person stopped it.
        """
        self.progress = progress
        if self.cancelled.is_set():
            raise Cancelled(f"{self.entry.name} was stopped; start it again and it goes on where it stopped.")


class Downloads:
    """Starts, watches and stops downloads. Every method may be called from any thread.

    Args:
        folders: returns a host's folders for a kind of file such as "loras", the one to download into first.
        user_file: a person's own catalogue entries, None where there are none.
        notify: called with a row whenever one changes, from a download's thread.
        opener: finds a file elsewhere, None for the hub.
        endings: of file names that the host reads as safetensors files.
    """

    def __init__(
        self,
        folders: Callable[[str], Sequence[Path]],
        user_file: Path | None = None,
        notify: Callable[[Row], None] = lambda row: None,
        opener: Callable[[Entry], Remote] | None = None,
        endings: Sequence[str] = SAFETENSORS,
    ):
        self._folders, self._user_file, self._notify = folders, user_file, notify
        self._opener, self._endings = opener, endings
        self._record = user_file and user_file.with_name(NAME)
        self._jobs: dict[str, Job] = {}
        self._problems: dict[str, str] = {}
        self._copies: dict[str, Path] = {}  # the same content, found under another name
        self._lock, self._slots = threading.Lock(), threading.BoundedSemaphore(AT_ONCE)

    def catalog(self) -> tuple[Catalog, str]:
        """Returns the entries, and what is wrong with the person's own file: then the pack's entries are there without it.

        Entries without a hash have the one that the hub has said at a download.
        """
        catalog, problem = self._released()
        return with_verified(catalog, self._record) if self._record else catalog, problem

    def _released(self) -> tuple[Catalog, str]:
        """Returns the entries as they are to be fetched: the hub may have another file by now than at an earlier download."""
        try:
            return load_catalog(self._user_file), ""
        except CatalogError as error:
            return load_catalog(), str(error)

    def rows(self) -> list[Row]:
        """Returns every entry's row. Looks into the folders, so keep it off an event loop."""
        jobs, entries = dict(self._jobs), self.catalog()[0]
        indexes = {kind: index_folders(self._folders(kind)) for kind in {entry.folder for entry in entries}}
        return [self._row(entry, jobs.get(entry.id), indexes[entry.folder]) for entry in entries]

    def row(self, entry_id: str) -> Row:
        """Returns one entry's row. Looks into its folders, so keep it off an event loop.

        Raises: CatalogError for an unknown id.
        """
        return self._row(self.catalog()[0].get(entry_id), self._jobs.get(entry_id))

    def active(self) -> list[Row]:
        """Returns the rows of the downloads under way. Touches no disk."""
        with self._lock:
            return [job.row for job in self._jobs.values()]

    def follow(self, entry_id: str, pause: float = POLL) -> Iterator[Row]:
        """Yields an entry's row until no download of it is under way, and at last how it lies on the disk.

        Leaving the iteration stops no download. Only the last row looks into the folders.

        Args:
            entry_id: of the catalogue.
            pause: seconds between two rows, 0 for a caller that waits in its own way.
        Raises: CatalogError for an unknown id, when the first row is asked for.
        """
        entry = self.catalog()[0].get(entry_id)
        while job := self._jobs.get(entry.id):
            yield job.row
            time.sleep(pause)
        yield self._row(self._newest(entry))

    def start(self, entry_id: str, *, acknowledged: bool = False, set_aside: bool = False) -> Row:
        """Starts an entry's download, or finds it under way, and returns its row.

        Args:
            entry_id: of the catalogue.
            acknowledged: whether the person accepts the licence.
            set_aside: whether a corrupt file in its place may be renamed.
        Raises: CatalogError for an unknown id; DownloadError for a licence that was not accepted.
        """
        entry = self._released()[0].get(entry_id)
        require_acknowledged(entry, acknowledged)
        with self._lock:
            job = self._jobs.get(entry.id)
            if job is None:
                job = self._jobs[entry.id] = Job(entry)
                self._problems.pop(entry.id, None)
                threading.Thread(target=self._run, args=(job, set_aside), name=f"hyper_sd job {entry.id}", daemon=True).start()
        return job.row

    def cancel(self, entry_id: str) -> Row:
        """Stops an entry's download if one is under way, keeping what came, and returns its row.

        Raises: CatalogError for an unknown id.
        """
        entry = self.catalog()[0].get(entry_id)
        job = self._jobs.get(entry.id)
        if job is None:
            return self._row(entry)
        job.cancelled.set()
        return job.row

    def _look(self, entry: Entry, index: Index | None = None) -> Found:
        found = look(entry, index_folders(self._folders(entry.folder)) if index is None else index)
        copy = self._copies.get(entry.id)
        if found.state is not State.READY and copy and copy.is_file() and known_sha256(copy):
            return Found(State.READY, copy, copy.stat().st_size)
        return found

    def _run(self, job: Job, set_aside: bool) -> None:
        entry = job.entry
        try:
            while not self._slots.acquire(timeout=0.2):
                job.report(job.progress)
            try:
                self._download(job, set_aside)
            finally:
                self._slots.release()
        except Cancelled:
            pass
        except HyperSDError as error:
            self._problems[entry.id] = str(error)
        except Exception as error:
            _log.exception("%s could not be downloaded", entry.name)
            self._problems[entry.id] = f"{entry.name} could not be downloaded: {error}. The host's log has the details."
        with self._lock:
            del self._jobs[entry.id]
        self._notify(self._row(self._newest(entry), self._jobs.get(entry.id)))

    def _newest(self, entry: Entry) -> Entry:
        """Returns an entry with what a download has told of it by now."""
        return next((known for known in self.catalog()[0] if known.id == entry.id), entry)

    def _download(self, job: Job, set_aside: bool) -> None:
        def report(progress: Progress) -> None:
            if progress.state is not State.READY:  # the row of a ready file has its name, which a look at the disk tells
                job.report(progress)
                self._notify(job.row)

        first, *rest = self._folders(job.entry.folder)
        options = {"opener": self._opener, "also": rest, "set_aside": set_aside, "endings": self._endings}
        if self._record:
            options["verified"] = partial(remember, self._record, job.entry)
        path = download(job.entry, first, progress=report, **options)
        if path.name.lower() != job.entry.name.lower():
            self._copies[job.entry.id] = path

    def _row(self, entry: Entry, job: Job | None = None, index: Index | None = None) -> Row:
        """Returns how an entry's file lies on the disk, with the progress of its download where one is under way."""
        found = self._look(entry, index)
        progress = job.progress if job else Progress(found.state, found.bytes_done, entry.approximate_size, note=found.note)
        name = listed_name(found.path, self._folders(entry.folder)) if found.path and found.state is State.READY else ""
        problem = "" if job else self._problems.get(entry.id, "")  # a download's own comes with how it has ended
        return Row(entry, progress, name, problem or found.problem)


def user_catalog(user_folder: str | os.PathLike) -> Path:
    """Returns where a person's own entries lie in a host's user folder. The file need not exist."""
    return Path(user_folder) / "hyper_sd" / CATALOG.name
