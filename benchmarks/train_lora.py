"""What does a training step cost beside ComfyUI's own Train LoRA node, in time and in memory?

One command, from the repository root, in the environment of `python install.py test`, with a ComfyUI folder, on Linux where it
measures a processor, which takes up to 12 GB of memory:

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

With --device cuda, the default where there is a card, the model is SDXL's UNet in full size with random weights, made on the
card in the dtype that the host's loader would choose, 1024 px, rank 64, batch 1 and 4. Memory is torch's own: the highest that
was allocated during the call less what the model held. Both compute in bf16, the host's LoRA is in bf16 too, as it comes. Our
checkpoints, gigabytes each, are not written. `ours, eager` is ours without CUDA graphs. The last step is watched by
torch.profiler instead of being timed: `work` says how many kernels ran and what share of a step's time the card was busy.
"""

import gc
import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from .card import CPU, Growth, KernelWatch, add_device_option, card, require_device
from .measure import (
    add_machine_option,
    command_line,
    hand_over,
    logged,
    logger,
    machine,
    run_again,
    start_logging,
    take_turns,
    versions,
    write_result,
)
from .step_watch import Watch, figures_of
from .train_lora_cases import BARS, BY_DEFAULT, CASES, HOSTS, OURS, PAIRS, Case, inputs, settings
from .train_lora_report import figures, ratios, trained
from .with_comfyui import add_comfyui_option, enter_comfyui, full_unet, sdxl_unet

BEST = "the best in float32"


def load_host(device: str) -> SimpleNamespace:
    """Imports what is needed of the ComfyUI on the path, which computes on a device."""
    from comfy.cli_args import args

    args.cpu = device == CPU
    import comfy.utils
    import folder_paths
    from comfy_extras.nodes_train import TrainLoraNode
    from comfyui_version import __version__

    from ..nodes import demo_model
    from ..nodes.training import train_lora
    from ..training import preview, run

    return SimpleNamespace(
        comfy=comfy, folder_paths=folder_paths, theirs=TrainLoraNode, version=__version__, demo=demo_model.HyperSDDemoModel,
        ours=train_lora.HyperSDTrainLora, node=train_lora, previews=preview.Previews, run=run,
    )  # fmt: skip


def make_model(host: SimpleNamespace, case: Case) -> Any:
    """Returns a case's MODEL."""
    if case.model == "embedded":
        return host.demo.execute().args[0]
    return full_unet() if case.model == "sd15" else sdxl_unet(narrow=case.model != "sdxl")


@contextmanager
def timed_checkpoints(host: SimpleNamespace, are_written: bool) -> Iterator[list[float]]:
    """Gives a list of the seconds that every checkpoint took to write; where they are not written, it stays empty."""
    seconds, write = [], host.run.save_checkpoint

    def timed(*arguments: Any) -> None:
        start = time.perf_counter()
        write(*arguments)
        seconds.append(time.perf_counter() - start)

    with mock.patch.object(host.run, "save_checkpoint", timed if are_written else lambda *_: None):
        yield seconds


@contextmanager
def noted_estimate(host: SimpleNamespace) -> Iterator[dict[str, Any]]:
    """Gives what our node says before it trains: "said" bytes, and whether it will use "gradient_checkpointing"."""
    noted: dict[str, Any] = {"said": None, "gradient_checkpointing": None}
    fitted = host.node.fitted

    def noting(*arguments: Any) -> Any:
        job, needed, free = fitted(*arguments)
        noted.update(said=needed, gradient_checkpointing=job.phases[0].config.gradient_checkpointing)
        return job, needed, free

    with mock.patch.object(host.node, "fitted", noting):
        yield noted


def run_once(case: Case, side: str, device: str) -> dict[str, Any]:
    """Runs one node in this process and returns what it took."""
    host = load_host(device)
    watch = Watch(case.steps, KernelWatch(device)) if case.profiled else Watch()
    host.comfy.utils.set_progress_bar_global_hook(watch.progress)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        host.folder_paths.set_output_directory(folder)
        checkpoints = stack.enter_context(timed_checkpoints(host, case.keeps_checkpoints))
        noted = stack.enter_context(noted_estimate(host))
        messages = stack.enter_context(logged())
        stack.enter_context(torch.inference_mode())
        model = make_model(host, case)
        if device == CPU:  # a graph that is replayed calls no hook
            model.model.diffusion_model.register_forward_pre_hook(watch.asked)
        given = inputs(case, model) | {name: [value] for name, value in settings(case, side).items()}
        node = host.theirs if side in HOSTS else host.ours
        stack.enter_context(mock.patch.object(host.previews, "draw_sheet", return_value=None))
        gc.collect()
        growth, start = Growth(device), time.perf_counter()
        _, lora, loss_map, *_ = node.execute(**given).args
        whole = time.perf_counter() - start
        grown = growth.figures()
    if len(loss_map["loss"]) < case.steps or not all(map(math.isfinite, loss_map["loss"])):
        raise SystemExit(f"{side}: {case.steps} finite losses were expected, got {loss_map['loss']}.")
    said = [text.replace(folder, "") for text in messages]
    return {
        **figures_of(watch, start), "call": whole, "checkpoints": checkpoints, **grown, **noted, "comfyui": host.version,
        "weights": str(model.model.get_dtype()), "seed": 0, "messages": said, **trained(lora),
    }  # fmt: skip


def compare(name: str, turns: int, device: str) -> dict[str, Any]:
    """Runs every side of a case in turn and returns figures and ratios."""
    case, bars = CASES[name], BARS[device]

    def run(side: str) -> dict[str, Any]:
        result = run_again("--run", name, side)
        logger.info("%s, %s: %s", name, side, json.dumps(result))
        return result

    runs = take_turns({side: lambda side=side: run(side) for side in case.sides}, turns)
    wanted = {
        "time": "wall", "processor_time": "cpu", "growth": "growth", "whole_peak": "peak", "until_first": "until_first",
    }  # fmt: skip
    pairs = {host: (PAIRS[host], [runs[host]]) for host in case.hosts}
    in_float32 = [runs[host] for host in case.hosts if HOSTS[host]["training_dtype"] == "fp32"]
    if in_float32:
        pairs[BEST] = OURS, in_float32
    beside = {
        host: {"of": own} | {key: ratios(runs[own], theirs, figure) for key, figure in wanted.items()}
        for host, (own, theirs) in pairs.items()
    }
    return {
        "case": name, "latents": [case.batch, 4, case.size, case.size], "rank": case.rank, "steps": case.steps, "turns": turns,
        "comfyui": runs[OURS][0]["comfyui"], "weights": runs[OURS][0]["weights"],
        "sides": {side: figures(done) for side, done in runs.items()}, "ratio_to": beside,
        "within_bar": {
            host: {key: found[key]["median"] <= bar for key, bar in bars.items()} for host, found in beside.items()
        },
    }  # fmt: skip


def report(results: Sequence[Mapping[str, Any]], processor: str, device: str) -> dict[str, Any]:
    """Returns the whole result."""
    return {
        "what": "a step of plain denoising with HyperSDTrainLora beside the host's TrainLoraNode", "bars": BARS[device],
        "device": device, "card": card() if device != CPU else None,
        "versions": versions(comfyui=results[0]["comfyui"]), "machine": machine(processor),
        "cases": list(results),
    }  # fmt: skip


def main() -> None:
    """Reads the command line; measures every case, or as a child process one run."""
    parser = command_line(__doc__)
    add_comfyui_option(parser)
    add_machine_option(parser)
    add_device_option(parser)
    parser.add_argument("--turns", type=int, default=3, help="runs of each side in each case")
    threads = (
        "of torch; default 1 on a processor, where more need a machine that does nothing else, and torch's own beside a card"
    )
    parser.add_argument("--threads", type=int, help=threads)
    parser.add_argument("--only", nargs="+", choices=list(CASES), help="cases to run; default: those of the device")
    parser.add_argument("--run", nargs=2, metavar=("CASE", "SIDE"), help="one run alone, whose figures are written to stdout")
    arguments = parser.parse_args()
    require_device(parser, arguments.device)
    start_logging()
    enter_comfyui(parser, arguments.comfyui)
    if arguments.threads or arguments.device == CPU:
        torch.set_num_threads(arguments.threads or 1)
    if arguments.run:
        name, side = arguments.run
        hand_over(run_once(CASES[name], side, arguments.device))
        return
    results = []
    for name in arguments.only or BY_DEFAULT[arguments.device]:
        results.append(compare(name, arguments.turns, arguments.device))
        # a run that is stopped keeps the cases it has done
        write_result(report(results, arguments.machine, arguments.device), arguments.out)


if __name__ == "__main__":
    main()
