"""What does the one-step loader take beside ComfyUI's own loaders, in time and in memory?

One command, from the repository root, in the environment of `python install.py test`, with a ComfyUI folder, on Linux; it
writes 17 GB to --work once, and takes up to 16 GB of memory:

    python -m hyper_sd.benchmarks.one_step_load --comfyui PATH --work FOLDER --out benchmarks/results/one_step_load.json

The files have the released ones' names, shapes and dtypes, with seeded random values. Every load is a process of its own that
runs one node once: UNETLoader or CheckpointLoaderSimple, and HyperSDOneStepLoader on the same file; the dtype is set by the
host's own switch (--fp16-unet and its like), so both are asked for the same. They take turns (A B, B A, ..). "warm": the file
is in the system's cache; "cold": it was put out of it just before. After the clock has stopped, a sum over the UNet's bits
shows that both loaded the same; CLIP and VAE are loaded by the host's own code either way.

Memory is the growth of the process over the load: rss counts every resident page, those of a mapped file among them, which
the system can take back; anonymous counts only those it cannot. `loaded` is the size of all weights afterwards.

Where there is a card, or with --device cuda, both load into main memory as the host does there, and `to_card` is how long the
host then takes to bring the UNet to the card. With --sparse the files are holes full of zeros: written at once and without room
on the disk, for a machine that is lent for minutes. Nothing but zeros is then compared, and "cold" means nothing.
"""

import argparse
import json
import os
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import torch

from .card import CPU, add_device_option, require_device
from .measure import (
    GB,
    command_line,
    forget_highest_memory,
    hand_over,
    logger,
    machine,
    memory,
    ratios_of,
    run_again,
    start_logging,
    take_turns,
    versions,
    write_result,
)
from .with_comfyui import add_comfyui_option, enter_comfyui

OURS = "HyperSDOneStepLoader"
FORMS = {"unet": "UNETLoader", "checkpoint": "CheckpointLoaderSimple"}
FOLDERS = {"unet": "diffusion_models", "checkpoint": "checkpoints"}
SWITCHES = {"fp16": "fp16_unet", "bf16": "bf16_unet", "fp8": "fp8_e4m3fn_unet", "fp32": "fp32_unet"}
CASES = [
    ("unet", "fp16", "warm"), ("unet", "fp8", "warm"), ("checkpoint", "fp16", "warm"), ("checkpoint", "fp8", "warm"),
    ("unet", "fp16", "cold"), ("checkpoint", "fp16", "cold"), ("unet", "fp32", "cold"),
]  # fmt: skip
BARS = {"time": 1.05, "peak_beside_host": 1.0, "peak_beside_loaded": 1.15}


def disk_bytes() -> int:
    """Returns how many bytes the disk has given this process; in a warm load it stays near 0."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


class AnonymousPeak:
    """Watches the anonymous memory of this process from a thread, every few milliseconds."""

    def __init__(self) -> None:
        self.peak, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, memory()["anonymous"])

    def __enter__(self) -> "AnonymousPeak":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, memory()["anonymous"])


def weights_of(outputs: tuple) -> list[torch.Tensor]:
    """Returns every tensor of the MODEL, CLIP and VAE among a loader's outputs."""
    networks = [getattr(output, "model", None) for output in outputs[:1]]
    networks += [
        getattr(output, "cond_stage_model", None) or getattr(output, "first_stage_model", None) for output in outputs[1:3]
    ]
    return [tensor for network in networks if network is not None for tensor in network.state_dict().values()]


def bits(tensors: list[torch.Tensor]) -> int:
    """Returns a sum over the tensors' bits that tells one set of weights from another."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [int(t.contiguous().view(-1).view(kinds[t.dtype.itemsize]).sum(dtype=torch.int64)) for t in tensors if t.numel()]
    return sum(index * value for index, value in enumerate(sums, 1)) % 2**61


def load_once(form: str, dtype: str, side: str, work: Path, device: str) -> dict[str, Any]:
    """Runs one loader in this process and returns what it took."""
    from comfy.cli_args import args

    args.cpu = device == CPU
    setattr(args, SWITCHES[dtype], True)
    import folder_paths
    from comfyui_version import __version__
    from hyper_sd.nodes.one_step import HyperSDOneStepLoader

    import nodes

    for folder in FOLDERS.values():
        folder_paths.folder_names_and_paths[folder] = ([str(work / folder)], {".safetensors"})
    host = nodes.NODE_CLASS_MAPPINGS[FORMS[form]]()
    run = {
        ("ours", "unet"): lambda: HyperSDOneStepLoader.execute(f"diffusion_models/{form}.safetensors").args,
        ("ours", "checkpoint"): lambda: HyperSDOneStepLoader.execute(f"checkpoints/{form}.safetensors").args,
        ("host", "unet"): lambda: host.load_unet(f"{form}.safetensors", "default"),
        ("host", "checkpoint"): lambda: host.load_checkpoint(f"{form}.safetensors"),
    }[side, form]
    with torch.inference_mode():
        figures, outputs = measured(run)
        return figures | {"to_card": None if device == CPU else seconds_to_card(outputs[0]), "comfyui": __version__}


def seconds_to_card(model: Any) -> float:
    """Returns how long the host takes to bring a MODEL to the card."""
    import comfy.model_management

    torch.cuda.synchronize()
    start = time.perf_counter()
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measured(run: Any) -> tuple[dict[str, Any], tuple]:
    """Runs a loader; returns seconds, bytes and the sum of its weights' bits, and the loader's outputs."""
    forget_highest_memory()
    before, disk = memory(), disk_bytes()
    with AnonymousPeak() as anonymous:
        wall, cpu = time.perf_counter(), time.process_time()
        outputs = run()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    after = memory()
    tensors = weights_of(outputs)
    figures = {
        "wall": wall,
        "cpu": cpu,
        "disk": disk_bytes() - disk,
        "peak_rss": after["highest"] - before["rss"],
        "peak_anonymous": anonymous.peak - before["anonymous"],
        "loaded": sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors),
        "largest": max(tensor.numel() * tensor.dtype.itemsize for tensor in tensors),
        "tensors": len(tensors),
        "bits": bits(list(outputs[0].model.diffusion_model.state_dict().values())),
    }
    return figures, outputs


def file_of(form: str, work: Path, sparse: bool) -> Path:
    """Returns a form's file, written where it is not there yet."""
    from ..tests.models import synthetic_unets

    path = work / FOLDERS[form] / f"{form}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        part = path.with_suffix(".part")
        if form == "unet":
            synthetic_unets.write(part, synthetic_unets.unet("diffusers"), torch.float32, sparse)
        else:
            synthetic_unets.write(part, synthetic_unets.checkpoint(), torch.float16, sparse)
        part.rename(path)
    return path


def set_cache(path: Path, state: str) -> None:
    """Reads the file into the system's cache, or puts it out of it."""
    with path.open("rb", buffering=0) as file:
        if state == "cold":
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return
        buffer = bytearray(1 << 24)
        while file.readinto(buffer):
            pass


def compare(form: str, dtype: str, state: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Loads in turn with both sides and returns their figures and ratios."""
    path, rounds = file_of(form, arguments.work, arguments.sparse), arguments.rounds

    def load(side: str) -> dict[str, Any]:
        set_cache(path, state)
        return run_again("--load", form, dtype, side)

    runs = take_turns({side: lambda side=side: load(side) for side in ("ours", "host")}, rounds)
    if len({run["bits"] for side in runs.values() for run in side}) != 1:
        raise SystemExit(f"{form} {dtype}: both sides must load the same weights, and did not.")
    names = ("wall", "cpu", "disk", "peak_rss", "peak_anonymous", "loaded")
    middle = {side: {name: statistics.median(run[name] for run in done) for name in names} for side, done in runs.items()}
    first, times = runs["ours"][0], ratios_of(*([run["wall"] for run in runs[side]] for side in ("ours", "host")))
    result = {
        "form": form, "dtype": dtype, "cache": state, "host_node": FORMS[form], "rounds": rounds,
        "file_gb": round(path.stat().st_size / GB, 3), "tensors": first["tensors"],
        "loaded_gb": round(first["loaded"] / GB, 3), "largest_tensor_gb": round(first["largest"] / GB, 3),
        "ours": in_units(middle["ours"]), "host": in_units(middle["host"]),
        "time_ratio": round(statistics.median(times), 3), "time_ratio_each": [round(ratio, 3) for ratio in times],
        "cpu_ratio": round(middle["ours"]["cpu"] / middle["host"]["cpu"], 3),
        "peak_rss_ratio": round(middle["ours"]["peak_rss"] / middle["host"]["peak_rss"], 3),
        "peak_anonymous_ratio": round(middle["ours"]["peak_anonymous"] / middle["host"]["peak_anonymous"], 3),
        "peak_beside_loaded": round((middle["ours"]["peak_rss"] - first["largest"]) / first["loaded"], 3),
        "host_peak_beside_loaded": round((middle["host"]["peak_rss"] - first["largest"]) / first["loaded"], 3),
        "to_card_seconds": {side: done[0]["to_card"] for side, done in runs.items()}, "comfyui": first["comfyui"],
    }  # fmt: skip
    logger.info(json.dumps(result))
    return result


def in_units(figures: dict[str, float]) -> dict[str, float]:
    """Returns seconds as they are and bytes in GB, rounded."""
    return {
        f"{name}_seconds" if name in {"wall", "cpu"} else f"{name}_gb": round(value / (1 if name in {"wall", "cpu"} else GB), 3)
        for name, value in figures.items()
    }


def main() -> None:
    """Reads the command line; measures every case, or as a child process one load."""
    parser = command_line(__doc__)
    add_comfyui_option(parser)
    add_device_option(parser)
    parser.add_argument("--work", type=Path, required=True, help="folder for the two files, 17 GB; they stay for the next run")
    parser.add_argument("--rounds", type=int, default=3, help="loads of each side in each case")
    parser.add_argument("--only", type=int, nargs="+", help="numbers of the cases to run, from 0")
    parser.add_argument("--sparse", action="store_true", help="files that are holes, without a value but zero")
    parser.add_argument("--load", nargs=3, metavar=("FORM", "DTYPE", "SIDE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    require_device(parser, arguments.device)
    start_logging()
    enter_comfyui(parser, arguments.comfyui)
    if arguments.load:
        hand_over(load_once(*arguments.load, arguments.work, arguments.device))
        return
    cases = [CASES[number] for number in arguments.only or range(len(CASES))]
    results = [compare(*case, arguments) for case in cases]
    report = {
        "what": "loading the one-step SDXL UNet, in a process of its own each time",
        "bars": BARS, "device": arguments.device, "sparse": arguments.sparse,
        "versions": versions(comfyui=results[0]["comfyui"]),
        "machine": machine() | {"memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB, 1)},
        "cases": results,
    }  # fmt: skip
    write_result(report, arguments.out)


if __name__ == "__main__":
    main()
