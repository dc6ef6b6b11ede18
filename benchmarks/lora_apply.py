"""What does the Hyper-SD node's LoRA cost beside ComfyUI's LoraLoader, and a change of strength between two steps?

One command, from the repository root, in an environment with the `test` extra and a ComfyUI folder; it takes 10 GB of memory:

    python -m hyper_sd.benchmarks.lora_apply --comfyui PATH --out benchmarks/results/lora_apply.json

The model is SD1.5's UNet in full size with random weights, the LoRA has the released file's 278 modules at rank 64. Both apply
it in one process, in turn (A B, B A, ..), from the file on the disk (in the system's cache) to patched weights; nothing is kept
from the turn before. Ours also reads the head, refuses NaN and tells how many modules matched. The clock is the wall clock.
The schedule samples 4 Euler steps of an 8 x 8 latent at one strength, and at another strength each step.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from .with_comfyui import add_comfyui_option, enter_comfyui, pack_nodes

ROUNDS, STEPS = 7, 4
OURS, PEER = "HyperSDLoraLoader", "LoraLoaderModelOnly"


def load_host(folder: Path) -> SimpleNamespace:
    """Imports the ComfyUI on the path, with `folder` as its loras folder, and loads the pack as it would."""
    import comfy.model_base
    import comfy.model_management
    import comfy.model_patcher
    import comfy.samplers
    import comfy.supported_models
    import folder_paths

    import nodes

    folder_paths.folder_names_and_paths["loras"] = ([str(folder)], {".safetensors"})
    from hyper_sd.nodes import lora_files

    return SimpleNamespace(comfy=comfy, nodes=nodes, pack=pack_nodes(), lora_files=lora_files)


def full_unet(host: SimpleNamespace) -> Any:
    """Returns SD1.5's UNet in full size as a MODEL, with seeded random weights."""
    config = host.comfy.supported_models.SD15(
        {
            "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
            "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
            "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "context_dim": 768, "num_heads": 8,
            "num_head_channels": -1, "use_spatial_transformer": True, "legacy": False, "use_linear_in_transformer": False,
            "adm_in_channels": None, "dtype": torch.float32,
        }
    )  # fmt: skip
    config.unet_config.update(num_heads=8, num_head_channels=-1)
    model = host.comfy.model_base.BaseModel(config)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.diffusion_model.parameters():
        scale = (parameter.numel() / parameter.shape[0]) ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    device = host.comfy.model_management.get_torch_device()
    return host.comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Returns a call's seconds and its result."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def apply_both(host: SimpleNamespace, model: Any, name: str, rounds: int) -> dict[str, Any]:
    """Applies the LoRA with both nodes in turn and returns the times and the ratio within each turn."""

    def ours() -> Any:
        host.lora_files._read.cache_clear()
        return host.pack[OURS].execute(model, 4, "n-step", 1.0, lora_name=name).args[0]

    def peer() -> Any:
        return host.nodes.LoraLoaderModelOnly().load_lora_model_only(model, name, 1.0)[0]

    def patched(load: Callable[[], Any]) -> Any:
        made = load()
        made.patch_model()
        return made

    seconds: dict[str, list[float]] = {OURS: [], PEER: []}
    for turn in range(rounds + 1):
        for label, load in ((OURS, ours), (PEER, peer))[:: 1 if turn % 2 else -1]:
            took, made = timed(lambda load=load: patched(load))
            made.unpatch_model()
            if turn:  # the first one warms the caches
                seconds[label].append(took)
    ratios = [a / b for a, b in zip(seconds[OURS], seconds[PEER], strict=True)]
    return {"seconds": {label: summary(values) for label, values in seconds.items()}, "ratio": summary(ratios)}


def schedule_cost(host: SimpleNamespace, model: Any, name: str, rounds: int) -> dict[str, Any]:
    """Samples with one strength and with a strength a step, and returns the times and the cost of one change."""
    from comfy_extras.nodes_custom_sampler import SamplerCustom

    conditioning = [[torch.zeros(1, 77, 768), {}]]
    sigmas = host.comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "sgm_uniform", STEPS)
    euler, latent = host.comfy.samplers.sampler_object("euler"), {"samples": torch.zeros(1, 4, 8, 8)}

    def sample(curve: str) -> None:
        conds = (
            host.pack["HyperSDLoraSchedule"].execute(model, sigmas, conditioning, conditioning, name, curve, 1.0, 0.5, "1").args
        )
        SamplerCustom.execute(model, True, 1, 1.0, *conds, euler, sigmas, latent)

    seconds: dict[str, list[float]] = {"constant": [], "linear": []}
    for turn in range(rounds + 1):
        for curve in ("constant", "linear")[:: 1 if turn % 2 else -1]:
            took, _ = timed(lambda curve=curve: sample(curve))
            if turn:
                seconds[curve].append(took)
    changes = [(b - a) / (STEPS - 1) for a, b in zip(seconds["constant"], seconds["linear"], strict=True)]
    return {"seconds": {curve: summary(values) for curve, values in seconds.items()}, "seconds_per_change": summary(changes)}


def summary(values: list[float]) -> dict[str, float]:
    """Returns the smallest, the median and the largest."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_comfyui_option(parser)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    enter_comfyui(parser, options.comfyui)
    from ..tests.models.synthetic_loras import write_lora

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        host = load_host(Path(folder))
        write_lora(Path(folder) / "full.safetensors", "sd15", rank=64)
        model = full_unet(host)
        result = {
            "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "rounds": options.rounds,
            "apply": apply_both(host, model, "full.safetensors", options.rounds),
            "schedule": schedule_cost(host, model, "full.safetensors", options.rounds),
        }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
