"""`python install.py test`: style, format and the whole suite against a real ComfyUI; with --webui, a real WebUI instead."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from .console import say
from .requirements import ROOT


def add_webui_options(parser: argparse.ArgumentParser) -> None:
    """Adds what chooses the WebUI to a parser."""
    parser.add_argument("--webui", type=Path, metavar="PATH", help="run tests/webui on this A1111 or Forge instead")
    parser.add_argument("--webui-python", metavar="FILE", help="its Python; default: the venv in its folder")


def run_checks(arguments: list[str], comfyui: Path) -> int:
    """Runs ruff and pytest over the repository and returns the first exit code that is not 0; pytest speaks last.

    Args: arguments: for pytest, and those of add_webui_options.
    """
    # One thread per process: on a small machine more of them only wait for each other.
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "COMFYUI_PATH": str(comfyui)}
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_webui_options(parser)
    chosen, pytest_arguments = parser.parse_known_args(arguments)
    if chosen.webui:
        return _run_webui(chosen, pytest_arguments, environment)
    commands = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["pytest", *pytest_arguments])
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
