"""`python install.py test`: style, format and the whole suite against a real ComfyUI; with --webui, a real WebUI instead."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from .console import say
from .requirements import ROOT

# Two processes share the test files: a file stays whole, so what its tests share is made once. In the folders' order the long
# tests of training do not come last, where one process would wait for the other.
PARALLEL = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")


def add_test_options(parser: argparse.ArgumentParser) -> None:
    """Adds what chooses the hosts to a parser."""
    parser.add_argument("--comfyui", type=Path, metavar="PATH", help="your own ComfyUI; default: one found, else a pinned copy")
    parser.add_argument("--webui", type=Path, metavar="PATH", help="run tests/webui on this WebUI of the A1111 family instead")
    parser.add_argument("--webui-python", metavar="FILE", help="its Python; default: the venv in its folder")


def split_arguments(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the options of add_test_options and the other arguments, which are pytest's."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_test_options(parser)
    return parser.parse_known_args(arguments)


def run_checks(arguments: list[str], comfyui: Path) -> int:
    """Runs ruff and pytest over the repository and returns the first exit code that is not 0; pytest speaks last.

    Args:
        arguments: for pytest, and those of add_test_options.
        comfyui: the host that runs.
    """
    # One thread per process: on a small machine more of them only wait for each other.
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "COMFYUI_PATH": str(comfyui)}
    chosen, pytest_arguments = split_arguments(arguments)
    if chosen.webui:
        return _run_webui(chosen, pytest_arguments, environment)
    commands = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["pytest", *PARALLEL, *pytest_arguments])
    codes = []
    for command in commands:
        say(f"$ {' '.join(command)}")
        codes.append(subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment, check=False).returncode)
    if any(codes[:2]):
        say("ruff found something above: run `ruff check --fix .` and `ruff format .`", stream=sys.stderr)
    return next((code for code in reversed(codes) if code), 0)


def _run_webui(chosen: argparse.Namespace, pytest_arguments: list[str], environment: dict[str, str]) -> int:
    environment["A1111_PATH"] = str(chosen.webui.resolve())
    if chosen.webui_python:
        environment["A1111_PYTHON"] = chosen.webui_python
    command = [sys.executable, "-m", "pytest", "tests/webui", *pytest_arguments]
    say(f"$ A1111_PATH={environment['A1111_PATH']} {' '.join(command[1:])}")
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
