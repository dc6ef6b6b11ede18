"""Room on the disk, and files that are whole or not there: written under a temporary name beside the target, then renamed."""

import errno
import logging
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

SPARE = 64 * 2**20  # bytes left free beside a file, so that the system and other programs go on
PART = ".part"  # how the temporary names end
OWN = ".hyper_sd-"  # how those begin that no other program takes
LEFT_AFTER = 3600  # seconds after which a file is taken for left behind, where the system cannot tell who writes it
UNITS = ("B", "kB", "MB", "GB")
logger = logging.getLogger("hyper_sd")
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows knows no quotas by this name


def format_bytes(count: float) -> str:
    """Returns a size as people read it: 269127064 gives "269 MB"."""
    unit = 0
    while count >= 999.5 and unit < len(UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.0f} {UNITS[unit]}" if unit < 3 else f"{count:.2f} {UNITS[unit]}"


def free_bytes(folder: Path) -> int:
    """Returns the bytes that are free where a folder is, or will be once it is made."""
    folder = Path(folder).absolute()
    return shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free


def require_room(folder: Path, needed: int) -> None:
    """Makes sure that a folder's disk takes `needed` bytes and has SPARE left.

    Raises: OSError as of a full disk, before anything is written.
    """
    if free_bytes(folder) < needed + SPARE:
        raise OSError(errno.ENOSPC, "too little room", str(folder))


def is_full(error: BaseException) -> bool:
    """Returns whether an error says that the disk, or a person's share of it, is full; some libraries only say so in words."""
    return getattr(error, "errno", None) in _FULL or "No space" in str(error)


def explain(error: BaseException, folder: Path, needed: int = 0) -> str:
    """Returns what hinders writing into a folder and what to do, as a sentence without its full stop.

    Args:
        error: what the system or a library raised.
        folder: where the file was to go.
        needed: bytes the file takes besides those written so far, 0 where that is not known.
    """
    if is_full(error):
        need = f", {format_bytes(needed + SPARE)} are needed" if needed else ""
        return f"the disk of {folder} is too full: {format_bytes(free_bytes(folder))} are free{need}; make room and try again"
    return f"{folder} cannot be written ({error}); check the folder and its permissions, or choose another"


class NotAFile(OSError):
    """A folder, a pipe, a socket or a device where a file was meant."""


def open_file(path: Path) -> BinaryIO:
    """Opens a file to read it. Nobody waits for a pipe, and nothing of a device is read.

    Raises: NotAFile for anything but a file; OSError of the system.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise NotAFile(f"{path} is not a file")
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # it became one in the meantime
        file.close()
        raise NotAFile(f"{path} is not a file")
    return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextmanager
def whole_file(target: Path, partial: Path | None = None) -> Iterator[Path]:
    """Gives a name beside the target to write to; what stands there takes the target's name when all went well.

    Its content is on the disk before the name is. After an error, or a stop, the target is as it was and nothing else is left.
    What a killed program leaves, clear_parts() takes away.

    Args:
        target: a path whose folder is made if need be.
        partial: the name to write to, where a lock keeps others from it; None for one that nobody else takes.
    Raises: OSError of the system.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with own_part(target) if partial is None else _removed(partial) as part:
        yield part
        flush(part)
        part.replace(target)


@contextmanager
def own_part(target: Path) -> Iterator[Path]:
    """Gives an empty file beside the target, held while it is written, and takes away what is left of it at the end.

    Args:
        target: a path whose folder exists.
    Raises: OSError of the system.
    """
    while True:
        partial = part_beside(target)
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with _removed(partial), _holding(descriptor) as is_there:
            if is_there:  # not where clear_parts() has come between the two
                yield partial
                return


@contextmanager
def _removed(path: Path) -> Iterator[Path]:
    try:
        yield path
    finally:
        with suppress(OSError):
            path.unlink()


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Keeps clear_parts() of every program from a file, under all its names, as long as this program lives.

    Gives whether the file still has a name.

    Raises: OSError of the system.
    """
    if fcntl is None:
        yield True
        return
    with _holding(os.open(path, os.O_RDONLY)) as is_there:
        yield is_there


@contextmanager
def _holding(descriptor: int) -> Iterator[bool]:
    """Does the same for an open file, and closes it; where there are no such locks, at once, since it could not be renamed."""
    if fcntl is None:
        os.close(descriptor)
        yield True
        return
    try:
        with suppress(OSError):  # a disk without locks; there clear_parts() leaves everything
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield os.fstat(descriptor).st_nlink > 0
    finally:
        os.close(descriptor)


def part_beside(target: Path) -> Path:
    """Returns a temporary name in the target's folder that no other run or program takes, short whatever the target's is."""
    return target.with_name(f"{OWN}{secrets.token_hex(8)}{PART}")


def clear_parts(folder: Path, deep: bool = False) -> None:
    """Takes away the unfinished files of programs that were killed, and leaves those that a program is still writing.

    Where the system cannot tell that nobody writes a file, it counts as left behind after an hour without a change. How many
    were taken away is logged.

    Args:
        folder: which need not exist.
        deep: whether the folders below are looked at, too.
    """
    pattern = f"{'**/' if deep else ''}{OWN}*{PART}"
    count = sum([_clear(path) for path in list(Path(folder).glob(pattern))])
    if count:
        logger.info("Removed %d unfinished files that a killed program had left in %s.", count, folder)


def _clear(path: Path) -> bool:
    """Takes away a file that nobody holds, and returns whether it did."""
    try:
        if fcntl is None:
            if time.time() - path.lstat().st_mtime > LEFT_AFTER:
                path.unlink()
                return True
            return False
        descriptor = no_follow(str(path), os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(descriptor)
        return True
    except OSError:  # held, gone, or not ours to take away
        return False


def claim(path: Path) -> bool:
    """Has a file of this program's own under a name that others could guess, and leaves what it holds.

    A link there would be written through, into whatever it leads to, so it is taken away, as is a second name of another file.

    Returns: whether something of the kind was taken away.
    Raises: OSError of the system, and for a folder, a pipe or a device under that name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    taken = False
    with suppress(FileNotFoundError):
        status = path.lstat()
        taken = stat.S_ISLNK(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_nlink > 1)
        if taken:
            path.unlink()
        elif not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a file, remove it", str(path))
    os.close(no_follow(str(path), os.O_RDWR | os.O_CREAT))
    return taken


def no_follow(path: str, flags: int) -> int:
    """Opens a file unless a link stands in its place, where the system can tell; the `opener` of open()."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def is_replaced(path: Path, file: BinaryIO) -> bool:
    """Whether something else than an open file has its name by now, such as a link, where the system can tell."""
    if not hasattr(os, "O_NOFOLLOW"):
        return False
    try:
        return not os.path.samestat(path.lstat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return True


def flush(path: Path) -> None:
    """Has the system bring a file's content to the disk."""
    with path.open("rb+") as file:  # Windows flushes only what could be written
        os.fsync(file.fileno())


def write_whole(target: Path, content: bytes) -> None:
    """Writes a file whole or not at all; see whole_file."""
    with whole_file(target) as partial:
        partial.write_bytes(content)
