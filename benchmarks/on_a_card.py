"""How fast are training and sampling on a graphics card, and which of the bars are met? Under five minutes, once, as it stands.

One command, from the repository root, on a machine with a graphics card:

    python -m hyper_sd.benchmarks.on_a_card --comfyui PATH --out benchmarks/results/on_a_card.json

It needs there: a torch that can use the card, the pack with its extra (`pip install -e .[train]`: diffusers, transformers,
accelerate), and for the comparisons with a host a ComfyUI with what its requirements.txt installs, in the same environment,
named by --comfyui or COMFYUI_PATH; without one they are left out, which a line for each says. No model and no network: all
weights are random. SDXL in full size takes up to 70 GB of the card's memory at batch 4 without gradient checkpointing, 25 GB
at batch 1; what does not fit fails alone, and is said to have failed.

What is run, each in a process of its own with a time limit: the sampler without a model; a style step of SDXL at 1024 px with
our node and the host's, plain and with gradient checkpointing, at batch 1 and 4; a TSCD step; both without CUDA graphs where
the version has them; a TSCD step of the small model beside three copies of it; and the one-step loader. What is over its limit
is ended, the rest goes on, and the file is written after each arm. `arms` holds what each found: seconds a step ("walls", the
spread over "measured_steps" steps), bytes by which memory grew, kernels, and for how long the card was busy. `bars` holds each
bar with "met": true, false, or null where it was not measured.

With --narrow the networks have a few channels: a trial of the whole path that any machine can make. Its figures mean nothing,
and it has no bars.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .card import CPU, CUDA, card
from .card_arms import Arm, arms, bars
from .measure import RESULTS, command_line, logger, machine, start_logging, versions, write_result
from .with_comfyui import add_comfyui_option

NEEDS_A_CARD = (
    "this benchmark needs a graphics card that torch can use, and finds none; --narrow tries its path on the processor"
)
MINUTES = 4.8
LEAST_SECONDS = 12.0  # an arm is not begun with less


def ended(process: subprocess.Popen) -> None:
    """Ends a process, and where the system knows groups, those that it has started."""
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def environment(arm: Arm, comfyui: Path | None) -> dict[str, str]:
    """Returns an arm's environment: with a ComfyUI on the path where it needs one."""
    if not arm.needs_comfyui or comfyui is None:
        return dict(os.environ)
    folder = str(comfyui.resolve())
    path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "COMFYUI_PATH": folder}


def run_arm(arm: Arm, comfyui: Path | None, seconds: float) -> dict[str, Any]:
    """Runs an arm for so many seconds at most.

    Returns: "status", "done", "failed" or "out of time"; "seconds"; and its "result", or "why" there is none.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out, printed, errors = (Path(folder, name) for name in ("result.json", "stdout", "stderr"))
        options = [*arm.options, *(["--out", str(out)] if arm.writes else [])]
        options += ["--work", folder] if arm.benchmark == "one_step_load" else []
        command = [sys.executable, "-m", f"hyper_sd.benchmarks.{arm.benchmark}", *options]
        with printed.open("wb") as stdout, errors.open("wb") as stderr:
            process = subprocess.Popen(
                command, stdout=stdout, stderr=stderr, env=environment(arm, comfyui), start_new_session=True
            )
            try:
                code = process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                code = None
            except BaseException:
                ended(process)
                raise
            if code is None:
                ended(process)
        taken = {"seconds": round(time.monotonic() - began, 1)}
        if code is None:
            return {"status": "out of time", **taken, "why": f"ended after {seconds:.0f} s"}
        result = read_result(out if arm.writes else printed)
        if code or result is None:
            text = errors.read_text(encoding="utf-8", errors="replace").strip()
            logger.warning("%s", text[-3000:])
            return {"status": "failed", **taken, "why": f"exit code {code}: {(text.splitlines() or [''])[-1][-300:]}"}
        return {"status": "done", **taken, "result": result}


def read_result(path: Path) -> dict[str, Any] | None:
    """Returns the JSON that is a file, or the last line of one that begins as JSON; None where there is none."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = [line for line in text.splitlines() if line.startswith("{")]
    for candidate in (text, lines[-1] if lines else ""):
        try:
            return json.loads(candidate)
        except json.JSONDecodeError:
            continue
    return None


def summed_up(name: str, done: Mapping[str, Any]) -> str:
    """Returns one line about a run."""
    result, head = done.get("result", {}), f"{name}: {done['status']} in {done['seconds']} s"
    if "why" in done:
        return f"{head}, {done['why']}"
    if "wall" not in result:
        return head
    work, growth = result["work"], result["growth"]
    share = f", card busy {work['busy_share']:.0%}, {work['kernels']} kernels" if "busy_share" in work else ""
    grown = f", grew by {growth / 2**30:.2f} GiB" if growth is not None else ""
    share += "".join(f"; {text}" for text in result.get("messages", ()) if "CUDA graphs" in text)
    return f"{head}; {result['wall']:.3f} s a step{grown}, {result['until_first']:.1f} s before the first{share}"


class Report:
    """What is known so far, written after every arm.

    Args:
        narrow: whether this is a trial.
        device: "cpu" or "cuda".
        out: the file; None logs the result at the end.
    """

    def __init__(self, narrow: bool, device: str, out: Path | None) -> None:
        self.out, self.arms, self._began = out, {}, time.monotonic()
        self._head = {
            "what": "training and sampling on a graphics card" + (", a trial with narrow networks" if narrow else ""),
            "narrow": narrow, "device": device, "card": card() if device == CUDA else None, "versions": versions(),
            "machine": machine(), "seed": 0,
        }  # fmt: skip

    def add(self, name: str, done: Mapping[str, Any]) -> None:
        """Takes in a run of an arm, or why there is none."""
        logger.info(summed_up(name, done) if "seconds" in done else f"{name}: {done['status']}, {done['why']}")
        entry = self.arms.setdefault(name, {"status": done["status"], "runs": []})
        if "result" in done:
            entry["status"] = "done"
            entry["runs"].append(done["result"])
        elif "why" in done:
            entry["why"] = done["why"]
        if self.out:
            write_result(self.whole(), self.out)

    def whole(self) -> dict[str, Any]:
        """Returns the result."""
        found = {} if self._head["narrow"] else {"bars": bars({name: arm["runs"] for name, arm in self.arms.items()})}
        return {**self._head, "seconds": round(time.monotonic() - self._began, 1), **found, "arms": self.arms}


def run_all(planned: Sequence[Arm], report: Report, arguments: argparse.Namespace) -> None:
    """Runs the arms in turns until the time is over."""
    end = time.monotonic() + 60 * arguments.minutes
    for turn in range(arguments.turns):
        for arm in planned:
            left = end - time.monotonic()
            if turn and not arm.is_repeated:
                continue
            if arm.needs_comfyui and arguments.comfyui is None:
                report.add(arm.name, {"status": "not run", "why": "there is no ComfyUI: set COMFYUI_PATH or --comfyui"})
            elif left < LEAST_SECONDS:
                report.add(arm.name, {"status": "not run", "why": f"the {arguments.minutes:g} minutes are over; see --minutes"})
            else:
                report.add(arm.name, run_arm(arm, arguments.comfyui, min(left, arm.most_seconds)))


def main() -> None:
    """Reads the command line, runs every arm, and writes JSON."""
    parser = command_line(__doc__)
    add_comfyui_option(parser)
    parser.add_argument("--narrow", action="store_true", help="try the path with narrow networks, on the processor if need be")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="that it may take in all; default %(default)s")
    parser.add_argument("--turns", type=int, default=1, help="of the main arms; more than 1 needs more --minutes")
    parser.add_argument("--only", nargs="+", metavar="ARM", help="arms to run, by their names in the result")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.narrow:
        parser.error(NEEDS_A_CARD)
    start_logging()
    device = CUDA if torch.cuda.is_available() else CPU
    folder = Path(arguments.comfyui) if arguments.comfyui else None
    arguments.comfyui = folder if folder and (folder / "main.py").is_file() else None
    if folder and arguments.comfyui is None:
        logger.warning("%s is no ComfyUI: it has no main.py. What needs one is left out.", folder)
    every = arms(arguments.narrow, device, arguments.comfyui is not None)
    unknown = set(arguments.only or ()) - {arm.name for arm in every}
    if unknown:
        parser.error(f"there is no arm {', '.join(sorted(unknown))}; there are: {'; '.join(arm.name for arm in every)}")
    planned = [arm for arm in every if not arguments.only or arm.name in arguments.only]
    out = arguments.out or (None if arguments.narrow else RESULTS / "on_a_card.json")
    report = Report(arguments.narrow, device, out)
    run_all(planned, report, arguments)
    for bar in [] if arguments.narrow else report.whole()["bars"]:
        verdict = {True: "met", False: "NOT MET", None: "not measured"}[bar["met"]]
        logger.info("%s: %s %s, found %s: %s", bar["what"], bar["is"], bar["limit"], bar["found"], verdict)
    write_result(report.whole(), out)


if __name__ == "__main__":
    main()
