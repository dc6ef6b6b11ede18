"""Follows a training step by step from the outside: when each one ended, and what the card did in the last one."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

from .card import KernelWatch
from .measure import extremes

LEFT_OUT = 2  # steps at the start of a run


class Watch:
    """Follows a training through the reports that it makes after every step, such as those to a host's progress bar.

    Args:
        profiled: number of the step, from 1, that `kernels` watches; 0 watches none. It is to be the last one, because the
            profiler itself takes time before and after it.
        kernels: watches the card.
    """

    def __init__(self, profiled: int = 0, kernels: KernelWatch | None = None) -> None:
        # What is noted at the first report of each step: wall seconds, processor seconds, rows asked of the network.
        self.stamps: list[tuple[float, float, int]] = []
        self.rows = 0
        self.work: dict[str, Any] = {}
        self._profiled, self._kernels = profiled, kernels

    def progress(self, value: int, *_: Any, **__: Any) -> None:
        """Notes the first report of every step; the arguments are those of the host's progress bar."""
        if value <= len(self.stamps):
            return
        if self._kernels:
            self._kernels.wait()  # so that a step is over when it is said to be
        self.stamps.append((time.perf_counter(), time.process_time(), self.rows))
        if self._kernels and value == self._profiled - 1:
            self._kernels.start()
        if self._kernels and value == self._profiled:
            self.work = self._kernels.stop()

    def asked(self, _: Any, arguments: tuple) -> None:
        """Counts the rows of a call of the network; a hook before its forward pass."""
        self.rows += len(arguments[0])

    def steps(self) -> list[tuple[float, ...]]:
        """Returns what every step took, without the first ones and the profiled one."""
        return per_step(self.stamps[: self._profiled - 1] if self._profiled else self.stamps)


def per_step(stamps: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Returns what every step took, the first ones left out."""
    pairs = zip(stamps[LEFT_OUT - 1 :], stamps[LEFT_OUT:], strict=False)
    return [tuple(b - a for a, b in zip(before, after, strict=True)) for before, after in pairs]


def figures_of(watch: Watch, start: float) -> dict[str, Any]:
    """Returns what one run's steps took.

    Args:
        watch: that followed it.
        start: wall seconds at its beginning.
    Returns: "wall", "cpu" and "rows", medians of a step; "walls", the spread over the steps, and "measured_steps", their
        number; "before_first", seconds until the first step is done; "until_first", the same less a step; "until_usual",
        seconds until steps take their usual time, with what the first LEFT_OUT took longer, such as recording graphs;
        "work", what the card did in the profiled step, with "busy_share", its busy seconds of an unprofiled step's time.
    """
    walls, cpus, rows = zip(*watch.steps(), strict=True)
    wall, first, work = statistics.median(walls), watch.stamps[0][0] - start, dict(watch.work)
    if work.get("busy_seconds") is not None:
        work["busy_share"] = work["busy_seconds"] / wall
    return {
        "wall": wall, "cpu": statistics.median(cpus), "rows": statistics.median(rows), "walls": extremes(walls),
        "measured_steps": len(walls), "before_first": first, "until_first": first - wall,
        "until_usual": watch.stamps[LEFT_OUT - 1][0] - start - LEFT_OUT * wall, "work": work,
    }  # fmt: skip
