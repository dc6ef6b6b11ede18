"""What install.py's commands do: make the environment if need be, enter it, then run. Standard library only."""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ..models.embedded import CHECKPOINT
from .check import run_checks, split_arguments
from .checkpoint import read_checkpoint
from .compare_options import check_compare
from .console import say
from .environment import contents_for, environment_for, inside, install, is_complete, make_venv, rerun
from .errors import DemoError
from .evaluate_options import COMFYUI, check_evaluate
from .host import CACHE, ensure_comfyui
from .one_at_a_time import one_at_a_time
from .options import read_demo_options
from .requirements import ROOT
from .server import check_port
from .taste_options import check_taste
from .votes_options import vote_files

WITH_COMFYUI = ("demo", "test")


def run(command: str, arguments: list[str], parsed: argparse.Namespace | None) -> int:
    """Runs a command and returns its exit code.

    Args:
        command: one of COMMANDS.
        arguments: its raw arguments.
        parsed: its options, None for the commands that pass theirs on.
    Raises: DemoError, UnsupportedModelError for a checkpoint that the demo cannot run.
    """
    if command in CHECKS:
        CHECKS[command](parsed)
    comfyui = None
    with one_at_a_time(CACHE / "install.lock", "installing"):
        if command in WITH_COMFYUI or (command == "evaluate" and parsed.through == COMFYUI):
            options = split_arguments(arguments)[0] if parsed is None else parsed
            comfyui = ensure_comfyui(options.comfyui, pip_python=make_venv)
        requirements, venv = contents_for(command, comfyui), environment_for(comfyui)
        if not is_complete(command, requirements, venv):
            install(command, requirements, venv)
            say(f"The environment {venv} is ready.")
    if not inside(venv):
        return rerun([command, *arguments], venv)
    return _run_inside(command, arguments, parsed, comfyui)


def _check_demo(parsed: argparse.Namespace) -> None:
    """Refuses what cannot work before minutes are spent on it.

    Raises: DemoError, UnsupportedModelError for a checkpoint that the demo cannot run.
    """
    if parsed.checkpoint:
        read_checkpoint(parsed.checkpoint)
    elif not CHECKPOINT.is_file():
        raise DemoError(
            f"The demo model {CHECKPOINT} is missing; get the pack again, train it with `python install.py train-demo`, "
            "or give an SD1.5 or SDXL file with --checkpoint."
        )
    if parsed.port:
        check_port(parsed.port)
    try:
        parsed.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(f"--out {parsed.out} cannot be made ({error.strerror}); give a folder that can be written.") from error


def _run_inside(command: str, arguments: list[str], parsed: argparse.Namespace | None, comfyui: Path | None) -> int:
    if command == "demo":
        from .run import run_demo  # needs what the environment holds

        return run_demo(read_demo_options(parsed), comfyui)
    if command == "test":
        return run_checks(arguments, comfyui)
    if command != "train-demo":
        return _run_evaluation(command, parsed, comfyui)
    recipe = "import runpy, install; install.bind_package(); runpy.run_module('hyper_sd.demo.recipe', run_name='__main__')"
    return subprocess.run([sys.executable, "-c", recipe, *arguments], cwd=ROOT, check=False).returncode


def _run_evaluation(command: str, parsed: argparse.Namespace, comfyui: Path | None) -> int:
    """Runs one of the commands that draw, compare and judge pictures."""
    if command == "taste":
        from .taste import run_taste

        return run_taste(parsed)
    if command == "compare":
        from .compare import run_compare

        return run_compare(parsed)
    if command == "votes":
        from .votes import run_votes

        return run_votes(parsed)
    from .evaluate import run_evaluate

    return run_evaluate(parsed, comfyui)


# What refuses a command that cannot work, before minutes are spent on it.
CHECKS: dict[str, Callable[[argparse.Namespace], object]] = {
    "demo": _check_demo,
    "compare": check_compare,
    "votes": lambda parsed: vote_files(parsed.files),
    "taste": check_taste,
    "evaluate": check_evaluate,
}
