"""What benchmarks measure on a graphics card, and as far as it goes on a processor: memory, kernels, how long it is busy."""

import argparse
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from .measure import MIB, forget_highest_memory, logger, memory

CPU, CUDA = "cpu", "cuda"
LAUNCH = re.compile(r"(cuda|cu|hip)\w*Launch")  # runtime calls that start a kernel or a whole graph
COPIES = ("Memcpy", "Memset")  # what the profiler calls work of the card that is no kernel


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Adds --device to a parser; its default is CUDA where there is a card."""
    default = CUDA if torch.cuda.is_available() else CPU
    parser.add_argument("--device", choices=(CPU, CUDA), default=default, help="that computes; default here: %(default)s")


def require_device(parser: argparse.ArgumentParser, device: str | None) -> None:
    """Ends the program with one clear line where "cuda" is asked for and torch finds no card."""
    if device == CUDA and not torch.cuda.is_available():
        parser.error("--device cuda needs a graphics card that this torch can use, and it finds none; use --device cpu")


def card() -> dict[str, Any] | None:
    """Returns the card's name, memory, compute capability and driver, and CUDA's version; None without a card."""
    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name, "memory_mib": round(found.total_memory / MIB), "capability": f"{found.major}.{found.minor}",
        "driver": _driver(), "cuda": torch.version.cuda or torch.version.hip, "system": platform.platform(),
    }  # fmt: skip


def _driver() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.splitlines() or [""])[0].strip() or None


class Growth:
    """The highest memory from here on less what is held now: torch's own on a card, resident memory on a processor.

    Args:
        device: "cpu" or "cuda".
    """

    def __init__(self, device: str) -> None:
        self.device = device
        if device == CUDA:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        elif Path("/proc/self/clear_refs").exists():
            forget_highest_memory()
        self.before, self.reserved = self._now()

    def _now(self) -> tuple[int, int]:
        if self.device == CUDA:
            return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        return memory().get("rss", 0), 0

    def figures(self) -> dict[str, int | None]:
        """Returns bytes: "before", "peak", "growth", and on a card "reserved", by how much what torch keeps from the card grew.

        Figures that the system does not tell are None.
        """
        if self.device == CUDA:
            peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved() - self.reserved
        else:
            peak, reserved = memory().get("highest"), None
        growth = None if peak is None else peak - self.before
        return {"before": self.before, "peak": peak, "growth": growth, "reserved": reserved}


class KernelWatch:
    """What a card does between start() and stop(), as torch.profiler sees it; on a processor nothing but the time.

    Args:
        device: "cpu" or "cuda".
    """

    def __init__(self, device: str) -> None:
        self.device, self._began = device, 0.0
        self._profile: torch.profiler.profile | None = None

    def start(self) -> None:
        """Begins, once the card has done all that it was given."""
        os.environ.setdefault("TEARDOWN_CUPTI", "0")  # taking it apart has crashed where graphs are replayed after it
        activity = torch.profiler.ProfilerActivity
        self.wait()
        try:
            self._profile = torch.profiler.profile(activities=[activity.CUDA if self.device == CUDA else activity.CPU])
            self._profile.start()
        except RuntimeError as error:
            logger.warning("torch.profiler does not start here, so kernels are not counted: %s", error)
            self._profile = None
        self._began = time.perf_counter()

    def stop(self) -> dict[str, Any]:
        """Ends, once the card has done all that it was given.

        Returns: "kernels" that ran, "copies" and fills of memory, "launches" by the processor (a graph is one), "busy_seconds"
            in which the card did any of these, "profiled_seconds" of the whole stretch. All but the last are None on a
            processor, and where the profiler was not allowed to see the card.
        """
        self.wait()
        seconds, found = time.perf_counter() - self._began, {}
        if self._profile is not None:
            self._profile.stop()
            found = work_of(self._profile.events() or []) if self.device == CUDA else {}
        nothing = dict.fromkeys(("kernels", "copies", "launches", "busy_seconds"))
        return nothing | found | {"profiled_seconds": seconds}

    def wait(self) -> None:
        """Returns once the card has done all that it was given."""
        if self.device == CUDA:
            torch.cuda.synchronize()


def work_of(events: Iterable[Any]) -> dict[str, Any]:
    """Returns the figures of KernelWatch.stop() of a profiler's events; {} where the card's own are missing.

    Args:
        events: with `name`, `device_type`, `time_range` in microseconds, and in newer versions of torch `is_user_annotation`.
    """
    device, listed = torch.autograd.DeviceType.CUDA, list(events)
    work = [event for event in listed if event.device_type == device and not _is_mark(event)]
    if not work:
        return {}
    copies = sum(event.name.startswith(COPIES) for event in work)
    launches = sum(bool(LAUNCH.match(event.name)) for event in listed if event.device_type != device)
    busy = merged_length((event.time_range.start, event.time_range.end) for event in work)
    return {"kernels": len(work) - copies, "copies": copies, "launches": launches, "busy_seconds": busy / 1e6}


def _is_mark(event: Any) -> bool:
    """Whether an event of the card is no work, but a stretch that a program has named, such as an optimizer's step."""
    return getattr(event, "is_user_annotation", False) or event.name.startswith("Optimizer.")


def merged_length(intervals: Iterable[tuple[float, float]]) -> float:
    """Returns the length of the union of intervals (start, end), so that what runs at the same time counts once."""
    length, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        length += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return length
