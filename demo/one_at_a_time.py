"""A lock between processes, from the standard library alone: what installs runs before anything is installed."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .console import say

PAUSE = 0.5  # seconds between two tries


@contextmanager
def one_at_a_time(path: Path, what: str) -> Iterator[None]:
    """Waits until no other process is in here with the same file, and says so once. The system frees it with the process.

    Args:
        path: the lock's file, which stays where it is; its folder is made if need be.
        what: what the other one does, for the message.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        told = False
        while not _try_lock(file.fileno()):
            if not told:
                say(f"Another run is {what}; waiting for it.")
                told = True
            time.sleep(PAUSE)
        try:
            yield
        finally:
            _unlock(file.fileno())


def _try_lock(descriptor: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(descriptor, 0, os.SEEK_SET)  # the byte that is locked is the one at the file's position
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _unlock(descriptor: int) -> None:
    if os.name == "nt":
        import msvcrt

        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_UN)
