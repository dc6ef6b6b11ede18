"""What does the Hyper-SD node's LoRA cost beside ComfyUI's LoraLoader, and a change of strength between two steps?

One command, from the repository root, in the environment of `python install.py test`, with a ComfyUI folder; it takes
10 GB of memory:

    python -m hyper_sd.benchmarks.lora_apply --comfyui PATH --out benchmarks/results/lora_apply.json

The model is SD1.5's UNet in full size with random weights, the LoRA has the released file's 278 modules at rank 64. Both apply
it in one process, in turn (A B, B A, ..), from the file on the disk (in the system's cache) to patched weights; nothing is kept
from the turn before. Ours also reads the head, refuses NaN and tells how many modules matched. The clock is the wall clock.
The schedule samples 4 Euler steps of an 8 x 8 latent at one strength, and at another strength each step.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from .measure import command_line, extremes, machine, ratios_of, start_logging, take_turns, versions, write_result
from .with_comfyui import add_comfyui_option, enter_comfyui, full_unet, pack_nodes

ROUNDS, STEPS = 7, 4
OURS, PEER = "HyperSDLoraLoader", "LoraLoaderModelOnly"


def load_host(folder: Path) -> SimpleNamespace:
    """Imports the ComfyUI on the path, with `folder` as its loras folder, and loads the pack as it would."""
    import comfy.samplers
    import folder_paths

    import nodes

    folder_paths.folder_names_and_paths["loras"] = ([str(folder)], {".safetensors"})
    from hyper_sd.nodes import lora_files

    return SimpleNamespace(comfy=comfy, nodes=nodes, pack=pack_nodes(), lora_files=lora_files)


def apply_both(host: SimpleNamespace, model: Any, name: str, rounds: int) -> dict[str, Any]:
    """Applies the LoRA with both nodes in turn and returns the times and the ratio within each turn."""

    def ours() -> Any:
        host.lora_files._read.cache_clear()
        return host.pack[OURS].execute(model, 4, "n-step", 1.0, lora_name=name).args[0]

    def peer() -> Any:
        return host.nodes.LoraLoaderModelOnly().load_lora_model_only(model, name, 1.0)[0]

    def seconds_to_patch(load: Callable[[], Any]) -> float:
        start = time.perf_counter()
        loaded = load()
        loaded.patch_model()
        seconds = time.perf_counter() - start
        loaded.unpatch_model()
        return seconds

    sides = {OURS: lambda: seconds_to_patch(ours), PEER: lambda: seconds_to_patch(peer)}
    seconds = take_turns(sides, rounds, warm_up=1)
    ratios = ratios_of(seconds[OURS], seconds[PEER])
    return {"seconds": {label: extremes(values) for label, values in seconds.items()}, "ratio": extremes(ratios)}


def schedule_cost(host: SimpleNamespace, model: Any, name: str, rounds: int) -> dict[str, Any]:
    """Samples with one strength and with a strength a step, and returns the times and the cost of one change."""
    from comfy_extras.nodes_custom_sampler import SamplerCustom

    conditioning = [[torch.zeros(1, 77, 768), {}]]
    sigmas = host.comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "sgm_uniform", STEPS)
    euler, latent = host.comfy.samplers.sampler_object("euler"), {"samples": torch.zeros(1, 4, 8, 8)}

    def seconds_to_sample(curve: str) -> float:
        start = time.perf_counter()
        conds = (
            host.pack["HyperSDLoraSchedule"].execute(model, sigmas, conditioning, conditioning, name, curve, 1.0, 0.5, "1").args
        )
        SamplerCustom.execute(model, True, 1, 1.0, *conds, euler, sigmas, latent)
        return time.perf_counter() - start

    sides = {curve: lambda curve=curve: seconds_to_sample(curve) for curve in ("constant", "linear")}
    seconds = take_turns(sides, rounds, warm_up=1)
    changes = [(b - a) / (STEPS - 1) for a, b in zip(seconds["constant"], seconds["linear"], strict=True)]
    return {"seconds": {curve: extremes(values) for curve, values in seconds.items()}, "seconds_per_change": extremes(changes)}


def main() -> None:
    """Measures and writes the result."""
    parser = command_line(__doc__)
    add_comfyui_option(parser)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of both sides; default %(default)s")
    options = parser.parse_args()
    enter_comfyui(parser, options.comfyui)
    start_logging()
    from ..tests.models.synthetic_loras import write_lora

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        host = load_host(Path(folder))
        write_lora(Path(folder) / "full.safetensors", "sd15", rank=64)
        model = full_unet()
        result = {
            "machine": machine(),
            "versions": versions(),
            "rounds": options.rounds,
            "apply": apply_both(host, model, "full.safetensors", options.rounds),
            "schedule": schedule_cost(host, model, "full.safetensors", options.rounds),
        }
    write_result(result, options.out)


if __name__ == "__main__":
    main()
