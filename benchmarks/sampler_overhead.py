"""What does the sampler itself cost? Time and memory per step without the model, beside the host's own lcm and euler.

One command, from the repository root, in the environment of `python install.py test`, with a ComfyUI folder:

    python -m hyper_sd.benchmarks.sampler_overhead --comfyui PATH --out benchmarks/results/sampler_overhead.json

The model is a tensor computed beforehand, so that what is left is the sampler. All three run in one process, in turn
(A B C, B C A, ..), with seeded noise, the host's model_sampling and the host's protocol. The ratio is taken within each turn,
where a busy machine slows both sides alike. On the CPU the clock is the process's own processor time, which other programs
lengthen least; on CUDA it is the wall clock up to the end of the device's work. This benchmark measures another program's
code, which is why it imports comfy outside nodes/.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from ..samplers.schedule import NoiseSchedule
from ..samplers.tcd import sample_tcd
from ..samplers.timesteps import hyper_sd_sigmas
from .card import require_device
from .measure import command_line, machine, ratios_of, seconds_of, spread, start_logging, take_turns, versions, write_result
from .op_recorder import SYNCHRONISING, OpRecorder
from .with_comfyui import add_comfyui_option, enter_comfyui

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


def footprint(sampler: Callable[..., torch.Tensor], model: ConstantModel, x: torch.Tensor, sigmas: torch.Tensor) -> dict:
    """Latent-sized allocations per step and the operators of the loop that would wait for a device."""
    with OpRecorder(x.numel()) as recorder:
        loop = recorder.starting_at_first_call(model)
        loop.inner_model = model.inner_model
        sampler(loop, x, sigmas, {"seed": SEED}, disable=True)
    waiting = sorted(SYNCHRONISING & set(recorder.ops))
    return {"allocations_per_step": recorder.allocations / STEPS, "waiting_operators": waiting}


def measure(host: SimpleNamespace, device: str, repeats: int) -> dict[str, Any]:
    """Runs all samplers in turn `repeats` times on `device`; returns times in microseconds, ratios and footprints."""
    x = (torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * 14.6).to(device)
    model = ConstantModel(host.model_sampling.to(device), x * 0.5)
    sigmas = hyper_sd_sigmas(NoiseSchedule.from_sigmas(host.model_sampling.sigmas.cpu()), STEPS).to(device)
    runs = {
        name: lambda sampler=sampler: sampler(model, x, sigmas, {"seed": SEED}, disable=True)
        for name, sampler in host.samplers.items()
    }
    timed = {name: lambda run=run: seconds_of(run, device)[0] * 1e6 / STEPS for name, run in runs.items()}
    times = take_turns(timed, repeats, warm_up=5)
    samplers = {
        name: {"microseconds_per_step": spread(times[name], 1), **footprint(sampler, model, x, sigmas)}
        for name, sampler in host.samplers.items()
    }
    if device == "cuda":
        for name, sample in runs.items():
            samplers[name]["waits_for_cuda"] = waits(sample, device)
    return {
        "samplers": samplers,
        "ratio_to_lcm": spread(ratios_of(times[OURS], times[PEER]), 3),
        "ratio_of_min": round(min(times[OURS]) / min(times[PEER]), 3),
    }


def main() -> None:
    """Reads the command line, measures on every device there is, and writes JSON."""
    parser = command_line(__doc__)
    add_comfyui_option(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="to measure alone; default: all there are")
    parser.add_argument("--repeats", type=int, default=300, help="turns of all samplers; more against a busy machine")
    arguments = parser.parse_args()
    require_device(parser, arguments.device)
    enter_comfyui(parser, arguments.comfyui)
    start_logging()
    host = load_host()
    every = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    devices = [arguments.device] if arguments.device else every
    with torch.inference_mode():
        results = {device: measure(host, device, arguments.repeats) for device in devices}
    report = {
        "what": "sampler time per step without the model",
        "latents": list(SHAPE), "steps": STEPS, "repeats": arguments.repeats, "bar": BAR,
        "versions": versions(comfyui=host.version), "machine": machine(),
        "devices": results,
    }  # fmt: skip
    write_result(report, arguments.out)


if __name__ == "__main__":
    main()
