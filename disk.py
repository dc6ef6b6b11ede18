"""Room on the disk, and files that are whole or not there: written under a temporary name beside the target, then renamed."""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SPARE = 64 * 2**20  # bytes left free beside a file, so that the system and other programs go on
PART = ".part"  # how the temporary names end
UNITS = ("B", "kB", "MB", "GB")
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


@contextmanager
def whole_file(target: Path, partial: Path | None = None) -> Iterator[Path]:
    """Gives a name beside the target to write to; what stands there takes the target's name when all went well.

    Its content is on the disk before the name is. After an error, or a stop, the target is as it was and nothing else is left.

    Args:
        target: a path whose folder is made if need be.
        partial: the name to write to, where a lock keeps others from it; None for one that nobody else takes.
    Raises: OSError of the system.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = partial or part_beside(target)
    try:
        yield partial
        flush(partial)
        partial.replace(target)
    finally:
        with suppress(OSError):
            partial.unlink()


def part_beside(target: Path) -> Path:
    """Returns a temporary name in the target's folder that no other run or program takes, short whatever the target's is."""
    return target.with_name(f".{secrets.token_hex(8)}{PART}")


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


def flush(path: Path) -> None:
    """Has the system bring a file's content to the disk."""
    with path.open("rb+") as file:  # Windows flushes only what could be written
        os.fsync(file.fileno())


def write_whole(target: Path, content: bytes) -> None:
    """Writes a file whole or not at all; see whole_file."""
    with whole_file(target) as partial:
        partial.write_bytes(content)
