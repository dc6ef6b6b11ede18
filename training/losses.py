"""The losses of a training: a text file beside its checkpoint, and the one number that people are shown."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

SHOWN = 20  # the last steps, whose mean people are shown


def smoothed(losses: Sequence[float]) -> float:
    """Returns the mean of the last losses, 0 where there is none."""
    recent = losses[-SHOWN:]
    return sum(recent) / max(len(recent), 1)


class LossLog:
    """The losses of a phase, kept beside its checkpoint, a line each, so that a resumed run has them all.

    Args:
        path: of the text file.
        total: steps of the phase; no more losses than these are read.
        writes: False keeps them in memory alone, as all processes but the first do.
    """

    def __init__(self, path: Path, total: int, writes: bool = True):
        self.path, self._writes, self._file = path, writes, None
        self.values = _numbers(path)[:total]

    def add(self, step: int, loss: float) -> None:
        """Adds the loss of a step, counted from 1, and drops those of later steps, which an ended attempt has left."""
        goes_back = len(self.values) >= step
        del self.values[step - 1 :]
        new = [loss] * (step - len(self.values))  # more than one where a crash has lost lines
        if self._file is None or goes_back:
            self.close()
            self._open()
        self.values += new
        self._write(new)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = None

    def _open(self) -> None:
        with contextlib.suppress(OSError):  # a full disk must not end a training; the checkpoint says so
            if self._writes:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("w", encoding="utf-8")
                self._write(self.values)

    def _write(self, values: list[float]) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.writelines(f"{value!r}\n" for value in values)
                self._file.flush()


def _numbers(path: Path) -> list[float]:
    try:
        return [float(line) for line in path.read_text(encoding="utf-8").split()]
    except (OSError, ValueError):
        return []
