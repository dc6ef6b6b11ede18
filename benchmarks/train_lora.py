"""What does a training step cost beside ComfyUI's own Train LoRA node, in time and in memory?

One command, from the repository root, in the environment of `python install.py test`, with a ComfyUI folder, on Linux; it
takes up to 12 GB of memory:

    python -m hyper_sd.benchmarks.train_lora --comfyui PATH --out benchmarks/results/train_lora.json

Each run is a process of its own that makes a model, latents and conditioning, seeded, and calls one node once: HyperSDTrainLora
with "style finetune", or the host's TrainLoraNode with AdamW and MSE. The sides of a case take turns, each turn beginning with
the next one. A step is what lies between two reports to the host's progress bar, the first two left out; its median is taken
in wall and in processor time. Memory is resident: `growth` is the highest during the call less what was there just before it.

Both learn to denoise the same latents, but they are not the same in everything. The host's node also adapts the first and
last layer and the embedding of time, and gives every bias and norm a difference of its own; ours adapts the layers that the
released LoRAs do. The host's compares pictures (x0), ours noises. Asked for a batch of n, the host's gives the network every
latent with every caption, n x n rows; `accumulated` takes its batch one by one, which are the n rows of ours. It stops with an
error where all latents come in one list, so both get two. It keeps no checkpoint; ours are as they come, and timed. Our last
sheet of samples, which it does not draw, is left out. Ours computes in float32 on a CPU. Both run with and without gradient
checkpointing, the host's also as it comes (`defaults`: bf16, checkpointing).
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from .measure import (
    add_machine_option,
    command_line,
    forget_highest_memory,
    hand_over,
    logger,
    machine,
    memory,
    run_again,
    start_logging,
    take_turns,
    versions,
    write_result,
)
from .train_lora_report import figures, per_step, ratios, trained
from .with_comfyui import add_comfyui_option, enter_comfyui, full_unet

OURS, OURS_AGAIN = "ours", "ours, checkpointing"
FP32 = {"training_dtype": "fp32", "lora_dtype": "fp32", "gradient_checkpointing": False}
HOSTS: dict[str, dict[str, Any]] = {
    "plain": FP32,
    "checkpointing": FP32 | {"gradient_checkpointing": True},
    "accumulated": FP32 | {"batch_size": 1, "grad_accumulation_steps": None},  # as many as the batch
    "defaults": {"training_dtype": "bf16", "lora_dtype": "bf16", "gradient_checkpointing": True},
}
PAIRS = {"plain": OURS, "checkpointing": OURS_AGAIN, "accumulated": OURS, "defaults": OURS}
BEST = "the best in float32"
TOKENS, RATE = 77, 1e-4
BAR = 0.8  # at most this many times the host's


@dataclass(frozen=True)
class Case:
    """A model and its data.

    Args:
        model: "embedded" or "sd15".
        size: height and width of the latents.
        batch: latents in a step.
        steps: optimizer steps of a run.
        sides: ours, and names in HOSTS.
        rank: of the LoRA.
    """

    model: str
    size: int
    batch: int
    steps: int
    sides: tuple[str, ...]
    rank: int = 8

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names in HOSTS among the sides."""
        return tuple(side for side in self.sides if side in HOSTS)


CASES = {
    "embedded": Case("embedded", 16, 4, 16, (OURS, "plain", "accumulated", OURS_AGAIN, "checkpointing", "defaults")),
    "embedded, one at a time": Case("embedded", 16, 1, 20, (OURS, "plain", OURS_AGAIN, "checkpointing", "defaults")),
    "sd15": Case("sd15", 32, 1, 4, (OURS, "plain", OURS_AGAIN, "checkpointing", "defaults")),
}


@dataclass
class Watch:
    """Follows a node through the host's progress bar.

    Args:
        stamps: what is noted at the first report of each step: wall seconds, processor seconds, rows asked of the network.
        rows: rows asked of the network so far.
    """

    stamps: list[tuple[float, float, int]]
    rows: int = 0

    def progress(self, value: int, *_: Any, **__: Any) -> None:
        """Notes the first report of every step."""
        if value > len(self.stamps):
            self.stamps.append((time.perf_counter(), time.process_time(), self.rows))

    def asked(self, _: Any, arguments: tuple) -> None:
        """Counts the rows of a call of the network."""
        self.rows += len(arguments[0])


def load_host() -> SimpleNamespace:
    """Imports what is needed of the ComfyUI on the path."""
    from comfy.cli_args import args

    args.cpu = True
    import comfy.utils
    import folder_paths
    from comfy_extras.nodes_train import TrainLoraNode
    from comfyui_version import __version__

    from ..nodes import demo_model
    from ..nodes.training import train_lora
    from ..training import loop, preview

    return SimpleNamespace(
        comfy=comfy, folder_paths=folder_paths, theirs=TrainLoraNode, version=__version__, demo=demo_model.HyperSDDemoModel,
        ours=train_lora.HyperSDTrainLora, previews=preview.Previews, loop=loop,
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
    if side not in HOSTS:
        return shared | {
            "objective": "style finetune", "preset": "Small", "name": "benchmark", "preview_every": 10 * case.steps,
            "gradient_checkpointing": "on" if side == OURS_AGAIN else "auto",
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
        model = host.demo.execute().args[0] if case.model == "embedded" else full_unet()
        model.model.diffusion_model.register_forward_pre_hook(watch.asked)
        given = inputs(case, model) | {name: [value] for name, value in settings(case, side).items()}
        node = host.theirs if side in HOSTS else host.ours
        forget_highest_memory()
        before, start = memory()["rss"], time.perf_counter()
        with mock.patch.object(host.previews, "draw_sheet", return_value=None):
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


def compare(name: str, turns: int) -> dict[str, Any]:
    """Runs every side of a case in turn and returns figures and ratios."""
    case = CASES[name]

    def run(side: str) -> dict[str, Any]:
        result = run_again("--run", name, side)
        logger.info("%s, %s: %s", name, side, json.dumps(result))
        return result

    runs = take_turns({side: lambda side=side: run(side) for side in case.sides}, turns)
    wanted = {"time": "wall", "processor_time": "cpu", "growth": "growth", "whole_peak": "peak"}
    pairs = {host: (PAIRS[host], [runs[host]]) for host in case.hosts}
    pairs[BEST] = OURS, [runs[host] for host in case.hosts if host != "defaults"]
    beside = {
        host: {"of": own} | {key: ratios(runs[own], theirs, figure) for key, figure in wanted.items()}
        for host, (own, theirs) in pairs.items()
    }
    return {
        "case": name, "latents": [case.batch, 4, case.size, case.size], "rank": case.rank, "steps": case.steps, "turns": turns,
        "comfyui": runs[OURS][0]["comfyui"], "sides": {side: figures(done) for side, done in runs.items()}, "ratio_to": beside,
        "within_bar": {
            host: {key: found[key]["median"] <= BAR for key in ("time", "processor_time", "growth")}
            for host, found in beside.items()
        },
    }  # fmt: skip


def report(results: Sequence[Mapping[str, Any]], processor: str) -> dict[str, Any]:
    """Returns the whole result."""
    return {
        "what": "a step of plain denoising with HyperSDTrainLora beside the host's TrainLoraNode", "bar": BAR,
        "versions": versions(comfyui=results[0]["comfyui"]), "machine": machine(processor),
        "cases": list(results),
    }  # fmt: skip


def main() -> None:
    """Reads the command line; measures every case, or as a child process one run."""
    parser = command_line(__doc__)
    add_comfyui_option(parser)
    add_machine_option(parser)
    parser.add_argument("--turns", type=int, default=3, help="runs of each side in each case")
    parser.add_argument("--threads", type=int, default=1, help="of torch; more only on a machine that does nothing else")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), help="cases to run")
    parser.add_argument("--run", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    start_logging()
    enter_comfyui(parser, arguments.comfyui)
    torch.set_num_threads(arguments.threads)
    if arguments.run:
        name, side = arguments.run
        hand_over(run_once(CASES[name], side))
        return
    results = []
    for name in arguments.only:
        results.append(compare(name, arguments.turns))
        write_result(report(results, arguments.machine), arguments.out)  # a run that is stopped keeps the cases it has done


if __name__ == "__main__":
    main()
