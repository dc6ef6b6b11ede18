"""What does the sampler itself cost? Time and memory per step without the model, beside the host's own lcm and euler.

One command, from the repository root, in the environment of `python install.py test`, with a ComfyUI folder:

    python -m hyper_sd.benchmarks.sampler_overhead --comfyui PATH --out benchmarks/results/sampler_overhead.json

The model is a tensor computed beforehand, so that what is left is the sampler. All three run in one process, in turn
(A B C, B C A, ..), with seeded noise, the host's model_sampling and the host's protocol. The ratio is taken within each turn,
where a busy machine slows both sides alike. On the CPU the clock is the process's own processor time, which other programs
lengthen least; on CUDA it is the wall clock up to the end of the device's work. Whether a loop waits for a CUDA device is asked
in two ways, both from the model's first call on: of torch's sync-debug mode, and of a card that is kept busy, since that mode
does not see a copy from pageable memory. The result says which bars are met. This benchmark measures another program's code,
which is why it imports comfy outside nodes/.
"""

from collections.abc import Callable
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
BARS = {"cpu": 1.1, "cuda": 1.3}  # at most this many times lcm; besides no more allocations than it, and no waiting
BUSY = 10**9  # clock cycles, about half a second: much longer than a loop takes to hand over its work


class ConstantModel:
    """Answers every call with one stored tensor, in the layers a ComfyUI sampler looks through.

    Args:
        model_sampling: the host's.
        denoised: the answer.
        at_first: called once, when the loop asks for its first answer.
    """

    def __init__(
        self, model_sampling: torch.nn.Module, denoised: torch.Tensor, at_first: Callable[[], None] | None = None
    ) -> None:
        inner = SimpleNamespace(model_sampling=model_sampling)
        patcher = SimpleNamespace(get_model_object=lambda name: getattr(inner, name))  # ComfyUI 0.33's own samplers ask it
        self.inner_model = SimpleNamespace(inner_model=inner, model_patcher=patcher)
        self.denoised = denoised
        self.at_first = at_first

    def starting_with(self, at_first: Callable[[], None]) -> "ConstantModel":
        """Returns the same model with something to call when the loop begins."""
        return ConstantModel(self.inner_model.inner_model.model_sampling, self.denoised, at_first)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **extra_args: Any) -> torch.Tensor:
        if self.at_first is not None:
            self.at_first, call = None, self.at_first
            call()
        return self.denoised


def load_host() -> SimpleNamespace:
    """Imports the sampling parts of the ComfyUI on the path; returns its samplers, model sampling and version."""
    from comfy.k_diffusion import sampling
    from comfy.model_sampling import EPS, ModelSamplingDiscrete
    from comfyui_version import __version__

    model_sampling = type("ModelSampling", (ModelSamplingDiscrete, EPS), {})()
    samplers = {OURS: sample_tcd, PEER: sampling.sample_lcm, "euler": sampling.sample_euler}
    return SimpleNamespace(samplers=samplers, model_sampling=model_sampling, version=__version__)


def waits(sample: Callable[[ConstantModel], torch.Tensor], model: ConstantModel) -> dict[str, bool]:
    """Returns whether a loop waits for the CUDA device: by torch's sync-debug mode, and by a card that is kept busy."""
    return {"waits_for_cuda": _is_refused(sample, model), "waits_for_a_busy_card": _outlasts(sample, model)}


def _is_refused(sample: Callable[[ConstantModel], torch.Tensor], model: ConstantModel) -> bool:
    try:
        sample(model.starting_with(lambda: torch.cuda.set_sync_debug_mode("error")))
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def _outlasts(sample: Callable[[ConstantModel], torch.Tensor], model: ConstantModel) -> bool:
    """Whether the card has finished a long kernel of the first step's when the loop returns: then something waited for it.

    The second of two runs counts. The first asks the driver for the memory that a busy card still holds.
    """
    for _ in range(2):
        torch.cuda.synchronize()
        sample(model.starting_with(lambda: torch.cuda._sleep(BUSY)))
        finished = torch.cuda.current_stream().query()
    torch.cuda.synchronize()
    return finished


def footprint(sample: Callable[[Any], torch.Tensor], model: ConstantModel) -> dict[str, Any]:
    """Returns operators and latent-sized allocations per step, and the loop's operators that would wait for a device."""
    with OpRecorder(model.denoised.numel(), model.denoised.device) as recorder:
        loop = recorder.starting_at_first_call(model)
        loop.inner_model = model.inner_model
        sample(loop)
    return {
        "operators_per_step": len(recorder.ops) / STEPS,
        "allocations_per_step": recorder.allocations / STEPS,
        "waiting_operators": sorted(SYNCHRONISING & set(recorder.ops)),
    }


def bars_met(device: str, result: dict[str, Any]) -> dict[str, bool]:
    """Returns which bars a device's result meets."""
    ours, peer = result["samplers"][OURS], result["samplers"][PEER]
    waiting = [name for name in ("waiting_operators", "waits_for_cuda", "waits_for_a_busy_card") if ours.get(name)]
    return {
        "time": result["ratio_to_lcm"]["median"] <= BARS[device],
        "allocations": ours["allocations_per_step"] <= peer["allocations_per_step"],
        "no_waiting": not waiting,
    }


def measure(host: SimpleNamespace, device: str, repeats: int) -> dict[str, Any]:
    """Runs all samplers in turn `repeats` times on `device`; returns times in microseconds, ratios and footprints."""
    x = (torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * 14.6).to(device)
    model = ConstantModel(host.model_sampling.to(device), x * 0.5)
    sigmas = hyper_sd_sigmas(NoiseSchedule.from_sigmas(host.model_sampling.sigmas.cpu()), STEPS).to(device)
    runs = {
        name: lambda model, sampler=sampler: sampler(model, x, sigmas, {"seed": SEED}, disable=True)
        for name, sampler in host.samplers.items()
    }
    timed = {name: lambda run=run: seconds_of(lambda: run(model), device)[0] * 1e6 / STEPS for name, run in runs.items()}
    times = take_turns(timed, repeats, warm_up=5)
    samplers = {name: {"microseconds_per_step": spread(times[name], 1), **footprint(run, model)} for name, run in runs.items()}
    if device == "cuda":
        for name, sample in runs.items():
            samplers[name] |= waits(sample, model)
    result = {
        "samplers": samplers,
        "ratio_to_lcm": spread(ratios_of(times[OURS], times[PEER]), 3),
        "ratio_of_min": round(min(times[OURS]) / min(times[PEER]), 3),
    }
    return {**result, "bars_met": bars_met(device, result)}


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
        "latents": list(SHAPE), "steps": STEPS, "repeats": arguments.repeats, "bars": BARS,
        "versions": versions(comfyui=host.version), "machine": machine(),
        "devices": results,
    }  # fmt: skip
    write_result(report, arguments.out)


if __name__ == "__main__":
    main()
