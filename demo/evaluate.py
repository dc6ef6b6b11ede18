"""`python install.py evaluate`: draws, scores, and writes the table, the charts and a sheet. Ctrl-C loses nothing.

With several cards, in an environment that has the extras `train` and `evaluation`, the pictures are shared by

    accelerate launch -m hyper_sd.demo.evaluate --through diffusers --model FOLDER --lora FILE --prompts FILE
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import EvaluationError, HyperSDError
from ..evaluation.arms import BASE, EMBEDDED_NAMES, base_arms, lora_arms, require_arms
from ..evaluation.drawing import Paint, draw, missing, prepare, seconds_of
from ..evaluation.plan import Model, Plan, mark_of
from ..evaluation.prompts import held_out_labels, read_prompts
from ..evaluation.report import write_report
from ..evaluation.scoring import choose_metrics, measure
from ..evaluation.summary import summarise
from ..models.embedded import CHECKPOINT, FAMILY, SIZE
from ..models.families import title_of
from ..models.host_folders import REWARDS
from ..models.progress import format_duration
from .checkpoint import read_checkpoint
from .console import StatusLine, progress_text, say, share_bar
from .evaluate_options import BASE_STEPS, DIFFUSERS, PROMPTS, add_evaluate_options, check_evaluate
from .fetch_models import model_folders
from .options import CFG_CHECKPOINT, CFG_DEMO_MODEL, DEFAULT_STEPS
from .run import stop_on_signals

TOGETHER = 24  # pictures of the demo model that diffusers draws at a time: a processor draws each eight times as fast then


@dataclass(frozen=True)
class Process:
    """One of the processes that share the drawing.

    Args:
        rank: its number.
        world: how many there are.
        device: that it works on.
    """

    rank: int
    world: int
    device: str

    @property
    def is_first(self) -> bool:
        """Whether it is the one that speaks, scores and writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Waits for the others."""
        if self.world > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


def this_process() -> Process:
    """Returns which of the processes that a launcher has started this one is; the only one without a launcher."""
    import torch

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"true", "1", "yes"}
        state = PartialState(cpu=on_cpu or not torch.cuda.is_available())
        return Process(state.process_index, state.num_processes, str(state.device))
    accelerators = {"cuda": torch.cuda, "mps": torch.backends.mps, "xpu": torch.xpu}
    device = next((name for name, backend in accelerators.items() if backend.is_available()), "cpu")
    return Process(0, 1, device)


def make_plan(parsed: argparse.Namespace, model: Model) -> Plan:
    """Returns what the options ask for.

    Raises: HyperSDError for LoRAs, step counts and prompts that cannot be used.
    """
    cfg = parsed.cfg or (CFG_DEMO_MODEL if model.is_embedded else CFG_CHECKPOINT)
    arms = base_arms(parsed.base_steps or (DEFAULT_STEPS if model.is_embedded else (BASE_STEPS,)), cfg)
    for lora in parsed.lora or (EMBEDDED_NAMES if model.is_embedded else ()):
        arms += lora_arms(lora, model, parsed.steps)
    source = parsed.prompts and parsed.prompts.expanduser()
    prompts = read_prompts(source, parsed.limit) if source else held_out_labels(parsed.limit or PROMPTS)
    return Plan(model, parsed.through, require_arms(arms), tuple(prompts), parsed.seeds, source)


def read_model(parsed: argparse.Namespace, diffusers_model=None) -> Model:
    """Returns what is known of the model.

    Args:
        parsed: the options.
        diffusers_model: the loaded pipeline, for a run through diffusers.
    Raises: UnsupportedModelError for a file that cannot be drawn with.
    """
    if parsed.model is None:
        return Model("demo model", FAMILY, mark_of(CHECKPOINT), SIZE)
    path = parsed.model.expanduser()
    if diffusers_model is not None:
        return Model(path.name, diffusers_model.kind.family, mark_of(path), diffusers_model.resolution, path)
    checkpoint = read_checkpoint(path)
    return Model(path.name, checkpoint.family, mark_of(path), checkpoint.size, path)


def _load_diffusers(parsed: argparse.Namespace, process: Process):
    from ..training.launch.diffusers_models import load_model
    from ..training.launch.embedded_model import load_embedded_model

    if parsed.model is None:
        return load_embedded_model("fp32")
    return load_model(str(parsed.model.expanduser()), "fp32" if process.device == "cpu" else "fp16", local=True)


@contextmanager
def _painter(plan: Plan, parsed: argparse.Namespace, comfyui: Path | None, loaded, process: Process) -> Iterator[Paint]:
    if parsed.through == DIFFUSERS:
        from ..training.launch.painter import DiffusersPainter

        yield DiffusersPainter(loaded, process.device)
        return
    from .comfy_painter import comfy_painter

    with comfy_painter(plan, comfyui, parsed.port) as paint:
        yield paint


def draw_all(plan: Plan, parsed: argparse.Namespace, comfyui: Path | None, loaded, process: Process) -> None:
    """Draws this process' share of what is missing.

    Raises: HyperSDError where it cannot go on; what is drawn is kept.
    """
    if process.is_first:
        prepare(plan, parsed.out)
    jobs = missing(plan, parsed.out, parsed.again)
    process.wait()  # before any of them draws, so that all share the same list
    total = len(plan.arms) * len(plan.prompts) * plan.seeds
    if process.is_first:
        say(f"{total} pictures in {parsed.out}: {total - len(jobs)} are there, {len(jobs)} are drawn.")
    jobs, line, last = jobs[process.rank :: process.world], StatusLine(), None
    if jobs:
        with _painter(plan, parsed, comfyui, loaded, process) as paint:
            for last in draw(plan, parsed.out, jobs, paint, _together(plan, parsed)):
                if process.is_first and last.job:
                    bar, left = share_bar(last.done, last.total), format_duration(last.seconds_left)
                    line.update(f"Drawing [{bar}] {last.done}/{last.total}  {left} left  {last.job.arm.label}")
            if process.is_first and last:
                line.close(f"Drawn: {last.done} pictures")
    process.wait()


def _together(plan: Plan, parsed: argparse.Namespace) -> int:
    if parsed.through != DIFFUSERS:
        return 1  # ComfyUI gives the pictures of a batch one noise in all
    return parsed.batch or (TOGETHER if plan.model.is_embedded else 1)


def run_evaluate(parsed: argparse.Namespace, comfyui: Path | None) -> int:
    """Draws, scores, writes, and returns the exit code.

    Args:
        parsed: the options, checked.
        comfyui: the folder of the ComfyUI, None for diffusers.
    Raises: HyperSDError when something stops it; what was drawn and scored is kept.
    """
    stop_on_signals()
    process = this_process()
    if process.world > 1 and parsed.through != DIFFUSERS:
        raise EvaluationError("Several processes draw through diffusers alone; add --through diffusers.")
    loaded = _load_diffusers(parsed, process) if parsed.through == DIFFUSERS else None
    plan = make_plan(parsed, read_model(parsed, loaded))
    folders = _scorer_folders(parsed, comfyui)
    metrics, left_out = choose_metrics(parsed.metric, plan.model.is_embedded, folders)
    if process.is_first:
        _say_plan(plan, left_out)
    try:
        draw_all(plan, parsed, comfyui, loaded, process)
        if process.is_first:
            _measure(plan, parsed, metrics, left_out, folders, process)
    except KeyboardInterrupt:
        if process.is_first:
            say(f"\nStopped. What is drawn and scored stays in {parsed.out}; the same command goes on there.")
        raise
    return 0


def _say_plan(plan: Plan, left_out: list[str]) -> None:
    model = plan.model
    say(f"{model.title} ({title_of(model.family)}), {len(plan.prompts)} prompts, {plan.seeds} of each, through {plan.through}:")
    for arm in plan.arms:
        loras = ", ".join(f"{use.path.name} at {use.strength:g}" for use in arm.loras)
        say(f"  {arm.label:40} CFG {arm.cfg:g}, eta {arm.eta:g}  {loras or BASE}")
    for reason in left_out:
        say(f"Left out: {reason}")


def _measure(
    plan: Plan, parsed: argparse.Namespace, metrics: list[str], left_out: list[str], folders: list[Path], process: Process
) -> None:
    line, begun = StatusLine(), {}

    def report(title: str, done: int, total: int) -> None:
        start = begun.setdefault(title, time.monotonic())
        line.update(progress_text(f"Measuring {title}", done, total, time.monotonic() - start))

    scores = measure(plan, parsed.out, metrics, folders, process.device, report)
    line.close("Measured.")
    together = _together(plan, parsed)
    shared = f"Pictures were drawn {together} at a time, and each has its share of the seconds. " if together > 1 else ""
    notes = [f"Not measured. {reason}" for reason in left_out]
    notes += [f"{shared}The seconds hold encoding of the prompt, sampling and decoding, and no loading of a model."]
    summary = summarise(plan, scores, seconds_of(plan, parsed.out), parsed.machine or machine(process), notes)
    for path in write_report(summary, parsed.out):
        say(f"  {path}")
    one, other = (parsed.out / "images" / arm.slug for arm in (plan.arms[0], plan.arms[-1]))
    if one != other:
        say(f"To compare two ways blind: python install.py compare {one} {other}")


def _scorer_folders(parsed: argparse.Namespace, comfyui: Path | None) -> list[Path]:
    if parsed.scorers:
        return [parsed.scorers.expanduser()]
    return [*model_folders(REWARDS), *([comfyui / "models" / REWARDS] if comfyui else [])]


def machine(process: Process) -> str:
    """Returns what the pictures are drawn on, for people: its processor or card."""
    import torch

    if process.device.startswith("cuda"):
        return f"{process.world} x {torch.cuda.get_device_name()}, torch {torch.__version__}"
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}"


def main(arguments: list[str]) -> int:
    """Runs it as a module, in the running environment, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m hyper_sd.demo.evaluate", description=__doc__.splitlines()[0])
    add_evaluate_options(parser)
    parsed = parser.parse_args(arguments)
    try:
        check_evaluate(parsed)
        if parsed.through != DIFFUSERS:
            raise EvaluationError(
                "As a module it draws through diffusers: add --through diffusers, or use install.py evaluate."
            )
        return run_evaluate(parsed, None)
    except HyperSDError as error:
        say(f"\n{error}", stream=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
