"""Our own ways to take a training step of SDXL beside each other: plain, with gradient checkpointing, without CUDA graphs."""

import gc
import json
import math
import time
from dataclasses import dataclass, fields
from typing import Any

import torch

from ..training.config import Stage, TrainingConfig
from ..training.engine import PRECISION_DTYPES, LocalEngine, usual_precision
from ..training.graphs import can_record
from ..training.loop import train
from ..training.lora_layers import LoraLayers
from ..training.memory import estimate
from ..training.preset_table import PRESETS
from . import sdxl_shape
from .card import CPU, Growth, KernelWatch, card
from .measure import logged, logger, machine, run_again, versions
from .step_watch import Watch, figures_of

SEED, EXAMPLES, SEGMENTS = 0, 8, 4
FULL_STEPS, NARROW_STEPS = 9, 5
FULL_SIZE, NARROW_SIZE = 128, 8  # of the latents; 1024 px in full
NARROW_RANK, NARROW_DEPTHS = 4, (1, 1, 1)


@dataclass(frozen=True)
class Way:
    """How a step is taken.

    Args:
        objective: "tscd" or "finetune".
        batch_size: examples in a step.
        checkpointing: whether blocks are recomputed.
        eager: without CUDA graphs.
    """

    objective: str
    batch_size: int = 1
    checkpointing: bool = False
    eager: bool = False

    def config(self, rank: int, steps: int, precision: str) -> TrainingConfig:
        """Returns the settings of a run."""
        return TrainingConfig(
            stages=(Stage(SEGMENTS, steps),), objective=self.objective, batch_size=self.batch_size, rank=rank, seed=SEED,
            precision=precision, gradient_checkpointing=self.checkpointing, warmup_steps=0,
            **({"cuda_graphs": "off"} if self.eager else {}),
        )  # fmt: skip


def has_graphs() -> bool:
    """Returns whether this version of the training can replay its steps as CUDA graphs, and so also leave that off."""
    return "cuda_graphs" in {field.name for field in fields(TrainingConfig)}


WAYS = {
    "tscd": Way("tscd"),
    **({"tscd, eager": Way("tscd", eager=True)} if has_graphs() else {}),
    "tscd, checkpointing": Way("tscd", checkpointing=True),
    "finetune": Way("finetune"),
    "finetune, batch 4": Way("finetune", batch_size=4),
}


def step_once(name: str, *, narrow: bool, device: str) -> dict[str, Any]:
    """Trains a few steps in this process and returns what they took.

    Args:
        name: of the way, in WAYS.
        narrow: whether the network has a few channels and transformer blocks only.
        device: "cpu" or "cuda".
    Returns: figures_of() the steps; "said", the bytes that the estimate said before; the bytes of Growth, without the network's
        own weights; "losses", and what they depend on.
    """
    rank, steps = (NARROW_RANK, NARROW_STEPS) if narrow else (PRESETS["Thorough"]["sdxl"].rank, FULL_STEPS)
    engine = LocalEngine(device, usual_precision(torch.device(device)))
    config = WAYS[name].config(rank, steps, engine.precision)
    depths = NARROW_DEPTHS if narrow else sdxl_shape.DEPTHS
    network = sdxl_shape.build_network(narrow, PRECISION_DTYPES[engine.precision] or torch.float32, device, depths)
    examples = sdxl_shape.make_examples(network, EXAMPLES, NARROW_SIZE if narrow else FULL_SIZE)
    denoiser, watch, losses = sdxl_shape.make_denoiser(network), Watch(steps, KernelWatch(device)), []
    gc.collect()
    growth, start = Growth(device), time.perf_counter()
    layers, example = LoraLayers(network, rank), examples.largest()
    shape, records = example.latents.shape, can_record(config, engine)
    said = estimate(denoiser, layers, config, shape, example.conditioning, records=records).needed(config)
    with logged() as messages:
        for state in train(config, denoiser, layers, examples, engine=engine):
            watch.progress(state.step)
            losses.append(state.losses["loss"])
    if not all(map(math.isfinite, losses)):
        raise SystemExit(f"{name}: finite losses were expected, got {losses}.")
    more = {"said": said, "losses": losses, "messages": messages, "seed": SEED, "rank": rank, "precision": engine.precision}
    return {**figures_of(watch, start), **growth.figures(), **more}


def report_of_ways(device: str) -> dict[str, Any]:
    """Measures every way, each in a process of its own, and returns the whole result."""
    found = {}
    for name in WAYS:
        found[name] = run_again("--way", name)
        logger.info("%s: %s", name, json.dumps(found[name]))
    return {
        "what": "a training step of SDXL's UNet, random weights, taken in several ways", "device": device,
        "card": card() if device != CPU else None, "versions": versions(), "machine": machine(), "ways": found,
    }  # fmt: skip
