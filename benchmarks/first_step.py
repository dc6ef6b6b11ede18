"""How long does a training of SDXL prepare before its first step: the weights' fingerprint, adapter sets, trial passes?

One command, from the repository root, in an environment with the `train` extra; on a processor it takes 9 GB of memory:

    python -m hyper_sd.benchmarks.first_step --out benchmarks/results/first_step.json

The network is SDXL's UNet in full size in bf16, its values random, on one thread of a processor or on a card. Timed is what a
distillation at rank 64 and 1024 px does once it is loaded: the hash that names the run's folder, the set "student" and its
average, and the estimate of the memory with its trial passes. `--beside` keeps the result of another version in the new one.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from ..training.config import Stage, TrainingConfig
from ..training.lora_layers import STUDENT, TARGET, LoraLayers
from ..training.memory import estimate
from ..training.request import fingerprint
from . import sdxl_shape
from .card import CPU, add_device_option, require_device
from .measure import command_line, logger, machine, seconds_of, spread, start_logging, versions, write_result

RANK, SIZE, NARROW_SIZE = 64, 128, 16
HASH, STUDENT_SET, TARGET_SET, TRIAL = "fingerprint", "student", "target", "estimate"


def measure(narrow: bool, device: str, turns: int) -> dict[str, Any]:
    """Does everything `turns` times and returns the seconds of every part, and of all together.

    Args:
        narrow: whether the network has a few channels only.
        device: "cpu" or "cuda".
        turns: at least two.
    """
    network = sdxl_shape.build_network(narrow, torch.bfloat16, device)
    denoiser = sdxl_shape.make_denoiser(network)
    example = sdxl_shape.make_examples(network, 1, NARROW_SIZE if narrow else SIZE).largest()
    config = TrainingConfig((Stage(4, 1),), batch_size=1, rank=RANK, precision="bf16")
    passes, found = [], {HASH: [], STUDENT_SET: [], TARGET_SET: [], TRIAL: []}
    hook = network.register_forward_pre_hook(lambda *_: passes.append(1))
    for _ in range(turns):
        layers = LoraLayers(network, RANK)
        parts = {
            HASH: lambda: fingerprint(network.state_dict()),
            STUDENT_SET: lambda layers=layers: layers.add(STUDENT),
            TARGET_SET: lambda layers=layers: layers.add(TARGET, copy_of=STUDENT),
            TRIAL: lambda: estimate(denoiser, RANK, config, example.latents.shape, example.conditioning),
        }
        for name, part in parts.items():
            found[name].append(seconds_of(part, device)[0])
        layers.detach()
        del layers, parts
    hook.remove()
    together = [sum(values) for values in zip(*found.values(), strict=True)]
    return {
        "seconds": {name: spread(values, 3) for name, values in found.items()}, "together": spread(together, 3),
        "trial_passes": len(passes) // turns, "turns": turns,
    }  # fmt: skip


def report(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the whole result."""
    own = measure(arguments.narrow, arguments.device, arguments.turns)
    result = {"what": "seconds before the first step of a training of SDXL, the model loaded", "narrow": arguments.narrow}
    result |= {"rank": RANK, "device": arguments.device, "versions": versions(), "machine": machine(), **own}
    if arguments.beside:
        other = json.loads(arguments.beside.read_text(encoding="utf-8"))
        result["before"] = {name: other[name] for name in own}
    return result


def main() -> None:
    """Reads the command line, measures, and writes JSON."""
    parser = command_line(__doc__)
    add_device_option(parser)
    parser.add_argument("--narrow", action="store_true", help="a network of few channels, to try this program")
    parser.add_argument("--turns", type=int, default=3, help="how often each part is done; default %(default)s")
    parser.add_argument("--beside", type=Path, help="result of another version, which is kept beside the new one")
    arguments = parser.parse_args()
    require_device(parser, arguments.device)
    start_logging()
    if arguments.device == CPU:
        torch.set_num_threads(1)
    result = report(arguments)
    logger.info("%s", json.dumps(result, indent=1))
    write_result(result, arguments.out)


if __name__ == "__main__":
    main()
