"""What does a training step cost beside ComfyUI's own Train LoRA node, in time and in memory?

One command, from the repository root, in an environment with the `test` extra and a ComfyUI folder, on Linux; it takes up to
12 GB of memory:

    python -m hyper_sd.benchmarks.train_lora --comfyui PATH --out benchmarks/results/train_lora.json

Each run is a process of its own that makes a model, latents and conditioning, seeded, and calls one node once: HyperSDTrainLora
with "style finetune", or the host's TrainLoraNode with AdamW and MSE. The sides of a case take turns, every second turn in the
opposite order. A step is what lies between two reports to the host's progress bar, the first two left out; its median is taken
in wall and in processor time. Memory is resident: `growth` is the highest during the call less what was there just before it.

Both learn to denoise the same latents, but they are not the same in everything. The host's node also adapts the first and
last layer and the embedding of time, and gives every bias and norm a difference of its own; ours adapts the layers that the
released LoRAs do. The host's compares pictures (x0), ours noises. Asked for a batch of n, the host's gives the network every
latent with every caption, n x n rows; `accumulated` takes its batch one by one, which are the n rows of ours. It stops with an
error where all latents come in one list, so both get two. It keeps no checkpoint; ours are as they come, and timed. Our last
sheet of samples, which it does not draw, is left out. Ours runs as it decides by itself: float32 on a CPU, blocks computed
again only where memory is short; the host's both ways, and as it comes (`defaults`: bf16, checkpointing on).
"""

import argparse
import json
import logging
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from .lora_apply import full_unet
from .one_step_load import memory
from .sampler_overhead import processor
from .with_comfyui import add_comfyui_option, enter_comfyui

logger = logging.getLogger("hyper_sd")

OURS = "ours"
FP32 = {"training_dtype": "fp32", "lora_dtype": "fp32", "gradient_checkpointing": False}
HOSTS: dict[str, dict[str, Any]] = {
    "plain": FP32,
    "checkpointing": FP32 | {"gradient_checkpointing": True},
    "accumulated": FP32 | {"batch_size": 1, "grad_accumulation_steps": None},  # as many as the batch
    "defaults": {"training_dtype": "bf16", "lora_dtype": "bf16", "gradient_checkpointing": True},
}
ALIKE = ("plain", "checkpointing", "accumulated")  # in float32, as ours
TOKENS, RATE, LEFT_OUT = 77, 1e-4, 2
BAR = 0.8  # at most this many times the host's
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """A model and its data. Args: size: of the latents; hosts: names in HOSTS; steps: optimizer steps of a run."""

    model: str
    size: int
    batch: int
    steps: int
    hosts: tuple[str, ...]
    rank: int = 8


CASES = {
    "embedded": Case("embedded", 16, 4, 16, ("plain", "checkpointing", "accumulated", "defaults")),
    "embedded, one at a time": Case("embedded", 16, 1, 20, ("plain", "checkpointing", "defaults")),
    "sd15": Case("sd15", 32, 1, 6, ("plain", "checkpointing")),
}


@dataclass
class Watch:
    """Follows a node through the host's progress bar: (wall seconds, processor seconds, rows asked of the network) a step."""

    stamps: list[tuple[float, float, int]]
    rows: int = 0

    def progress(self, value: int, *_: Any, **__: Any) -> None:
        """Notes the first report of every step."""
        if value > len(self.stamps):
            self.stamps.append((time.perf_counter(), time.process_time(), self.rows))

    def asked(self, _: Any, arguments: tuple) -> None:
        """Counts the rows of a call of the network."""
        self.rows += len(arguments[0])


def per_step(stamps: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Returns what every step took, the first ones left out."""
    pairs = zip(stamps[LEFT_OUT - 1 :], stamps[LEFT_OUT:], strict=False)
    return [tuple(b - a for a, b in zip(before, after, strict=True)) for before, after in pairs]


def trained(lora: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Returns how many modules a LORA_MODEL changes and how many values were trained for it."""
    parts = (".lora_down.weight", ".lora_up.weight", ".diff_b", ".diff")
    named = {name: next((part for part in parts if name.endswith(part)), None) for name in lora}
    values = {name: part for name, part in named.items() if part}
    return {
        "modules": len({name.removesuffix(part) for name, part in values.items()}),
        "parameters": sum(lora[name].numel() for name in values),
    }


def load_host() -> SimpleNamespace:
    """Imports what is needed of the ComfyUI on the path."""
    import comfy.options  # keeps the host from reading this command's arguments
    import utils.extra_config  # noqa: F401 - before nodes.py hides it
    from comfy.cli_args import args

    args.cpu = True
    import comfy.model_base
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models
    import comfy.utils
    import folder_paths
    from comfy_extras.nodes_train import TrainLoraNode
    from comfyui_version import __version__

    from ..nodes import demo_model, train_lora, training_previews
    from ..training import loop

    return SimpleNamespace(
        comfy=comfy, folder_paths=folder_paths, theirs=TrainLoraNode, version=__version__, demo=demo_model.HyperSDDemoModel,
        ours=train_lora.HyperSDTrainLora, previews=training_previews.Previews, loop=loop,
    )  # fmt: skip


def inputs(case: Case, model: Any) -> dict[str, list]:
    """Returns model, latents and captions as both nodes take them: two LATENTs of one batch each."""
    generator = torch.Generator().manual_seed(1)
    width = model.model.model_config.unet_config["context_dim"]
    latents = [{"samples": torch.randn(case.batch, 4, case.size, case.size, generator=generator)} for _ in range(2)]
    captions = [[[torch.randn(1, TOKENS, width, generator=generator), {}] for _ in range(case.batch)] for _ in range(2)]
    return {"model": [model], "latents": latents, "positive": captions}


def settings(case: Case, side: str) -> dict[str, Any]:
    """Returns one side's other inputs."""
    shared = {"steps": case.steps, "rank": case.rank, "learning_rate": RATE, "batch_size": case.batch, "seed": 0}
    if side == OURS:
        return shared | {
            "objective": "style finetune", "preset": "Small", "name": "benchmark", "preview_every": 10 * case.steps,
        }  # fmt: skip
    fixed = {"optimizer": "AdamW", "loss_function": "MSE", "algorithm": "LoRA", "existing_lora": "[None]"}
    made = shared | fixed | {"grad_accumulation_steps": 1} | HOSTS[side]
    return made | {"grad_accumulation_steps": made["grad_accumulation_steps"] or case.batch}


@contextmanager
def timed_checkpoints(host: SimpleNamespace) -> Iterator[list[float]]:
    """Gives a list of the seconds that every checkpoint took to write."""
    seconds, write = [], host.loop.save_checkpoint

    def timed(*arguments: Any) -> None:
        start = time.perf_counter()
        write(*arguments)
        seconds.append(time.perf_counter() - start)

    with mock.patch.object(host.loop, "save_checkpoint", timed):
        yield seconds


def run_once(case: Case, side: str) -> dict[str, Any]:
    """Runs one node in this process and returns what it took."""
    host, watch = load_host(), Watch([])
    host.comfy.utils.set_progress_bar_global_hook(watch.progress)
    with tempfile.TemporaryDirectory() as folder, timed_checkpoints(host) as checkpoints, torch.inference_mode():
        host.folder_paths.set_output_directory(folder)
        model = host.demo.execute().args[0] if case.model == "embedded" else full_unet(host)
        model.model.diffusion_model.register_forward_pre_hook(watch.asked)
        given = inputs(case, model) | {name: [value] for name, value in settings(case, side).items()}
        node = host.ours if side == OURS else host.theirs
        Path("/proc/self/clear_refs").write_text("5")  # the highest rss begins anew
        before, start = memory()["rss"], time.perf_counter()
        with mock.patch.object(host.previews, "draw", return_value=None):
            _, lora, loss_map, *_ = node.execute(**given).args
        whole, highest = time.perf_counter() - start, memory()["highest"]
    if len(loss_map["loss"]) < case.steps or not all(map(math.isfinite, loss_map["loss"])):
        raise SystemExit(f"{side}: {case.steps} finite losses were expected, got {loss_map['loss']}.")
    walls, cpus, rows = zip(*per_step(watch.stamps), strict=True)
    return {
        "wall": statistics.median(walls), "cpu": statistics.median(cpus), "rows": statistics.median(rows), "call": whole,
        "before_first": watch.stamps[0][0] - start, "checkpoints": checkpoints, "growth": highest - before, "peak": highest,
        "before": before, "comfyui": host.version, **trained(lora),
    }  # fmt: skip


def child(name: str, side: str) -> dict[str, Any]:
    """Returns run_once's figures from a fresh process."""
    done = subprocess.run([*sys.orig_argv, "--run", name, side], capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise SystemExit(f"{side}, {name} failed:\n{done.stderr[-3000:]}")
    return json.loads(lines[-1])


def ratios(runs: Mapping[str, Sequence[Mapping[str, float]]], hosts: Sequence[str], figure: str) -> dict[str, Any]:
    """Returns ours / the least of these hosts' in each turn, and the median."""
    least = [min(turn) for turn in zip(*([run[figure] for run in runs[host]] for host in hosts), strict=True)]
    each = [run[figure] / other for run, other in zip(runs[OURS], least, strict=True)]
    return {"each": [round(ratio, 3) for ratio in each], "median": round(statistics.median(each), 3)}


def figures(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns one side's figures of all turns."""
    written = [seconds for run in runs for seconds in run["checkpoints"]]
    middle = {name: statistics.median(run[name] for run in runs) for name in ("wall", "cpu", "growth", "peak", "before_first")}
    return {
        "step_seconds": round(middle["wall"], 4), "step_seconds_each": [round(run["wall"], 4) for run in runs],
        "step_processor_seconds": round(middle["cpu"], 4), "seconds_to_first_step_done": round(middle["before_first"], 2),
        "growth_mib": round(middle["growth"] / MIB, 1), "growth_mib_each": [round(run["growth"] / MIB, 1) for run in runs],
        "whole_peak_mib": round(middle["peak"] / MIB, 1), "rows_per_step": runs[0]["rows"],
        "modules": runs[0]["modules"], "parameters": runs[0]["parameters"],
        "seconds_per_checkpoint": round(statistics.median(written), 4) if written else None,
    }  # fmt: skip


def compare(name: str, turns: int) -> dict[str, Any]:
    """Runs every side of a case in turn and returns figures and ratios."""
    case = CASES[name]
    sides = (OURS, *case.hosts)
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for turn in range(turns):
        for side in sides if turn % 2 == 0 else sides[::-1]:
            runs[side].append(child(name, side))
            logger.info("%s, turn %d, %s: %s", name, turn + 1, side, json.dumps(runs[side][-1]))
    groups = {side: (side,) for side in case.hosts}
    groups["best in float32"] = tuple(side for side in case.hosts if side in ALIKE)
    wanted = {"time": "wall", "processor_time": "cpu", "growth": "growth", "whole_peak": "peak"}
    beside = {who: {key: ratios(runs, group, figure) for key, figure in wanted.items()} for who, group in groups.items()}
    best = beside["best in float32"]
    return {
        "case": name, "latents": [case.batch, 4, case.size, case.size], "rank": case.rank, "steps": case.steps, "turns": turns,
        "comfyui": runs[OURS][0]["comfyui"], "sides": {side: figures(done) for side, done in runs.items()},
        "ratio_to": beside, "within_bar": {key: best[key]["median"] <= BAR for key in ("time", "growth")},
    }  # fmt: skip


def report(results: Sequence[Mapping[str, Any]], machine: str) -> dict[str, Any]:
    """Returns the whole result."""
    return {
        "what": "a step of plain denoising with HyperSDTrainLora beside the host's TrainLoraNode", "bar": BAR,
        "versions": {
            "torch": torch.__version__, "comfyui": results[0]["comfyui"], "python": platform.python_version(),
        },
        "machine": {
            "processor": machine, "threads": torch.get_num_threads(),
            "load_average": [round(load, 1) for load in os.getloadavg()],
        },
        "cases": list(results),
    }  # fmt: skip


def main() -> None:
    """Reads the command line; measures every case, or as a child process one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_comfyui_option(parser)
    parser.add_argument("--turns", type=int, default=3, help="runs of each side in each case")
    parser.add_argument("--threads", type=int, default=1, help="of torch; more only on a machine that does nothing else")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), help="cases to run")
    parser.add_argument("--machine", default=processor(), help="what to call this machine in the result")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--run", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    enter_comfyui(parser, arguments.comfyui)
    torch.set_num_threads(arguments.threads)
    if arguments.run:
        name, side = arguments.run
        sys.stdout.write(json.dumps(run_once(CASES[name], side)) + "\n")
        return
    results = []
    for name in arguments.only:
        results.append(compare(name, arguments.turns))
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(report(results, arguments.machine), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
