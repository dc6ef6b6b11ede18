"""What does the sampler itself cost? Time and memory per step without the model, beside the host's own lcm and euler.

One command, from the repository root, in an environment with the `test` extra and a ComfyUI folder:

    python -m hyper_sd.benchmarks.sampler_overhead --comfyui PATH --out benchmarks/results/sampler_overhead.json

The model is a tensor computed beforehand, so that what is left is the sampler. All three run in one process, in turn
(A B C, B C A, ..), with seeded noise, the host's model_sampling and the host's protocol. The ratio is taken within each turn,
where a busy machine slows both sides alike. On the CPU the clock is the process's own processor time, which other programs
lengthen least; on CUDA it is the wall clock up to the end of the device's work. This benchmark measures another program's
code, which is why it imports comfy outside nodes/.
"""

import argparse
import json
import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ..samplers.schedule import NoiseSchedule
from ..samplers.tcd import sample_tcd
from ..samplers.timesteps import hyper_sd_sigmas
from .op_recorder import SYNCHRONISING, OpRecorder
from .with_comfyui import add_comfyui_option, enter_comfyui

logger = logging.getLogger("hyper_sd")

SHAPE, STEPS, SEED = (1, 4, 128, 128), 8, 3  # the latents of one 1024 x 1024 image
OURS, PEER = "hyper_sd_tcd", "lcm"
BAR = 1.1  # at most this many times lcm, and no more allocations than it


class ConstantModel:
    """Answers every call with one stored tensor, in the layers a ComfyUI sampler looks through."""

    def __init__(self, model_sampling: torch.nn.Module, denoised: torch.Tensor) -> None:
        self.inner_model = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=model_sampling))
        self.denoised = denoised

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **extra_args: Any) -> torch.Tensor:
        return self.denoised


def load_host() -> SimpleNamespace:
    """Imports the sampling parts of the ComfyUI on the path; returns its samplers, model sampling and version."""
    from comfy.k_diffusion import sampling
    from comfy.model_sampling import EPS, ModelSamplingDiscrete
    from comfyui_version import __version__

    model_sampling = type("ModelSampling", (ModelSamplingDiscrete, EPS), {})()
    samplers = {OURS: sample_tcd, PEER: sampling.sample_lcm, "euler": sampling.sample_euler}
    return SimpleNamespace(samplers=samplers, model_sampling=model_sampling, version=__version__)


@contextmanager
def waiting_is_an_error(device: str) -> Iterator[None]:
    """On CUDA, torch raises where the host would wait for the device."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def waits(sample: Callable[[], torch.Tensor], device: str) -> bool:
    """Whether `sample` waits for a CUDA device, by torch's own account."""
    try:
        with waiting_is_an_error(device):
            sample()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    return False


def seconds_per_step(sample: Callable[[], torch.Tensor], device: str) -> float:
    """Processor time of one run on the CPU, wall time to the end of the device's work on CUDA, divided by the steps."""
    if device == "cpu":
        start = time.process_time()
        sample()
        return (time.process_time() - start) / STEPS
    torch.cuda.synchronize()
    start = time.perf_counter()
    sample()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / STEPS


def footprint(sampler: Callable[..., torch.Tensor], model: ConstantModel, x: torch.Tensor, sigmas: torch.Tensor) -> dict:
    """Latent-sized allocations per step and the operators of the loop that would wait for a device."""
    with OpRecorder(x.numel()) as recorder:
        loop = recorder.starting_at_first_call(model)
        loop.inner_model = model.inner_model
        sampler(loop, x, sigmas, {"seed": SEED}, disable=True)
    waiting = sorted(SYNCHRONISING & set(recorder.ops))
    return {"allocations_per_step": recorder.allocations / STEPS, "waiting_operators": waiting}


def spread(values: list[float], digits: int) -> dict[str, float]:
    """Least value, quartiles and median."""
    low, middle, high = statistics.quantiles(values, n=4)
    numbers = {"min": min(values), "lower_quartile": low, "median": middle, "upper_quartile": high}
    return {name: round(value, digits) for name, value in numbers.items()}


def measure(host: SimpleNamespace, device: str, repeats: int) -> dict[str, Any]:
    """Runs all samplers in turn `repeats` times on `device`; returns times in microseconds, ratios and footprints."""
    x = (torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * 14.6).to(device)
    model = ConstantModel(host.model_sampling.to(device), x * 0.5)
    sigmas = hyper_sd_sigmas(NoiseSchedule.from_sigmas(host.model_sampling.sigmas.cpu()), STEPS).to(device)
    runs = {
        name: lambda sampler=sampler: sampler(model, x, sigmas, {"seed": SEED}, disable=True)
        for name, sampler in host.samplers.items()
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 5):
        names = list(runs)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds = seconds_per_step(runs[name], device)
            if turn >= 5:  # the first turns warm up
                times[name].append(seconds * 1e6)
    ratios = [ours / peer for ours, peer in zip(times[OURS], times[PEER], strict=True)]
    samplers = {
        name: {"microseconds_per_step": spread(times[name], 1), **footprint(sampler, model, x, sigmas)}
        for name, sampler in host.samplers.items()
    }
    if device == "cuda":
        for name, sample in runs.items():
            samplers[name]["waits_for_cuda"] = waits(sample, device)
    return {
        "samplers": samplers,
        "ratio_to_lcm": spread(ratios, 3),
        "ratio_of_min": round(min(times[OURS]) / min(times[PEER]), 3),
    }


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    """Reads the command line, measures on every device there is, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_comfyui_option(parser)
    parser.add_argument("--repeats", type=int, default=300, help="turns of all samplers; more against a busy machine")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    enter_comfyui(parser, arguments.comfyui)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    host = load_host()
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    with torch.inference_mode():
        results = {device: measure(host, device, arguments.repeats) for device in devices}
    report = {
        "what": "sampler time per step without the model",
        "latents": list(SHAPE), "steps": STEPS, "repeats": arguments.repeats, "bar": BAR,
        "versions": {"torch": torch.__version__, "comfyui": host.version, "python": platform.python_version()},
        "machine": {
            "processor": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "load_average": [round(load, 1) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
            "gpu": torch.cuda.get_device_name() if "cuda" in devices else None,
        },
        "devices": results,
    }  # fmt: skip
    text = json.dumps(report, indent=2) + "\n"
    logger.info(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
