"""What the person at the terminal sees: plain lines, and one line that is rewritten while something goes on."""

import sys
import time
from typing import TextIO

from ..models.progress import format_duration

BAR_WIDTH = 24
REPEAT_SECONDS = 10.0  # into a file or a CI log, a lasting state is repeated this often instead of rewritten


def say(text: str = "", end: str = "\n", stream: TextIO | None = None) -> None:
    """Writes a line now. Characters that the terminal cannot show become question marks instead of an error.

    Args:
        text: the line.
        end: what follows it.
        stream: where to write it, None for the standard output.
    """
    stream = stream or sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding) + end)
    stream.flush()


class StatusLine:
    """One line that shows what is going on, rewritten in place on a terminal.

    Args:
        stream: where to write it, None for the standard output.
    """

    def __init__(self, stream: TextIO | None = None):
        self.stream = stream or sys.stdout
        self.in_place = self.stream.isatty()
        self.width = 0
        self.last = time.monotonic()

    def update(self, text: str) -> None:
        """Shows the text in place of the one before."""
        if self.in_place:
            say("\r" + text.ljust(self.width), end="", stream=self.stream)
            self.width = len(text)
        elif time.monotonic() - self.last >= REPEAT_SECONDS:
            say(text, stream=self.stream)
            self.last = time.monotonic()

    def close(self, text: str) -> None:
        """Ends the line with its last text."""
        start = "\r" if self.in_place else ""
        say(start + text.ljust(self.width), stream=self.stream)
        self.width = 0


def share_bar(done: int, total: int) -> str:
    """Returns "####...." for a share of the whole."""
    filled = min(BAR_WIDTH * done // max(total, 1), BAR_WIDTH)
    return "#" * filled + "." * (BAR_WIDTH - filled)


def progress_text(label: str, done: int, total: int, seconds: float) -> str:
    """Returns "label [####....] 3/8  5 s left" from the steps done and the seconds they took."""
    bar = share_bar(done, total)
    left = "" if done == 0 else f"  {format_duration(seconds / done * (total - done))} left"
    return f"{label} [{bar}] {done}/{total}{left}"
