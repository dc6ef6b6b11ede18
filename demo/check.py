"""`python install.py test`: style, format and the whole suite against a real ComfyUI."""

import os
import subprocess
import sys
from pathlib import Path

from .console import say
from .requirements import ROOT


def run_checks(pytest_arguments: list[str], comfyui: Path) -> int:
    """Runs ruff and pytest over the repository and returns the first exit code that is not 0; pytest speaks last."""
    # One thread per process: on a small machine more of them only wait for each other.
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "COMFYUI_PATH": str(comfyui)}
    commands = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["pytest", *pytest_arguments])
    codes = []
    for command in commands:
        say(f"$ {' '.join(command)}")
        codes.append(subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment, check=False).returncode)
    if any(codes[:2]):
        say("ruff found something above: run `ruff check --fix .` and `ruff format .`", stream=sys.stderr)
    return next((code for code in reversed(codes) if code), 0)
