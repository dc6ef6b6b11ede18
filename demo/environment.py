"""A virtual environment for every host: made once, repaired after an interruption, left alone while its stamp is right."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from ..disk import write_whole
from .console import say
from .errors import InstallError
from .host import CACHE
from .lock import is_locked, lock
from .pip import installed_version, pip_install, pip_install_locked, remove_half_installed
from .requirements import ROOT, alone_for, digest, name_of, requirements_for
from .torch_build import check_first_installation, install_torch, repair_torchaudio, repair_torchvision

VENV = ROOT / ".venv"
STAMP = "hyper_sd.json"


def _has_shared_environment(comfyui: Path | None) -> bool:
    return comfyui is None or comfyui.resolve().parent == CACHE.resolve()


def environment_for(comfyui: Path | None) -> Path:
    """Returns the folder of the virtual environment in which a ComfyUI runs: its packages never meet another one's.

    Args:
        comfyui: its folder. The pinned copy, and None for a command that runs no ComfyUI, have .venv; every other one has an
            environment of its own beside the pinned copy, told by the folder's name and place. Nothing is put into the
            environment that the ComfyUI itself has.
    """
    if _has_shared_environment(comfyui):
        return VENV
    place = hashlib.sha256(str(comfyui.resolve()).encode()).hexdigest()[:6]
    return CACHE / f"venv-{comfyui.resolve().name}-{place}"


def contents_for(command: str, comfyui: Path | None) -> tuple[str, ...]:
    """Returns the requirement lines that install puts into environment_for(comfyui).

    Those of .venv are exact: what the lock file names. A ComfyUI of the person's own has its own list, which is no fixed one.

    Args:
        command: one of COMMANDS.
        comfyui: the ComfyUI that is going to run, None for a command that runs none.
    Raises: InstallError for a damaged lock file.
    """
    requirements = requirements_for(command, comfyui)
    return lock((*requirements, *alone_for(command))) if _has_shared_environment(comfyui) else requirements


def venv_python(venv: Path = VENV) -> Path:
    """Returns the path of a virtual environment's Python."""
    return venv / "Scripts" / "python.exe" if os.name == "nt" else venv / "bin" / "python"


def inside(venv: Path = VENV) -> bool:
    """Tells whether the running Python is the one of this virtual environment."""
    return venv.exists() and Path(sys.prefix).resolve() == venv.resolve()


def read_stamp(venv: Path = VENV) -> dict:
    """Returns what was installed for which command, {} when nothing was or the stamp cannot be read."""
    try:
        stamp = json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def expected_stamp(requirements: tuple[str, ...], venv: Path = VENV) -> dict:
    """Returns the stamp entry of a complete installation: Python, torch and the hash of the requirement list."""
    python = venv_python(venv)
    config = venv / "pyvenv.cfg"
    lines = config.read_text(encoding="utf-8").splitlines() if config.is_file() else []
    version = next((line.split("=", 1)[1].strip() for line in lines if line.startswith("version")), None)
    return {"python": version, "torch": installed_version(python, "torch"), "requirements": digest(requirements)}


def is_complete(command: str, requirements: tuple[str, ...], venv: Path = VENV) -> bool:
    """Tells whether this command's installation was finished and still is what it was; starts no process."""
    if not venv_python(venv).exists():
        return False
    expected = expected_stamp(requirements, venv)
    return expected["torch"] is not None and read_stamp(venv).get(command) == expected


def write_stamp(command: str, requirements: tuple[str, ...], venv: Path = VENV) -> None:
    """Records a finished installation."""
    stamp = {**read_stamp(venv), command: expected_stamp(requirements, venv)}
    write_whole(venv / STAMP, json.dumps(stamp, indent=1).encode())


def _works(python: Path) -> bool:
    if not python.exists():
        return False
    check = "import sys, pip; sys.exit(sys.version_info < (3, 10))"
    try:
        return subprocess.run([str(python), "-c", check], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def make_venv(venv: Path = VENV) -> Path:
    """Makes the virtual environment, or makes it anew when an interrupted run left it without pip, and returns its Python.

    Raises: InstallError.
    """
    python = venv_python(venv)
    if _works(python):
        return python
    say(f"Making the virtual environment {venv}")
    result = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(venv)], capture_output=True, text=True, errors="replace", check=False
    )
    if result.returncode or not _works(python):
        raise InstallError(
            f"Python could not make the virtual environment {venv}:\n{(result.stdout + result.stderr).strip()}\n"
            "On Debian and Ubuntu install the package python3-venv, then run the same command again."
        )
    return python


def install(command: str, requirements: tuple[str, ...], venv: Path = VENV) -> None:
    """Brings the virtual environment up to what a command needs; the stamp is written last, so any interruption is repaired.

    Raises: InstallError.
    """
    python = make_venv(venv)
    for name in remove_half_installed(python):
        say(f"An earlier run was cut off while installing {name.removesuffix('.dist-info')}; installing it again.")
    check_first_installation(python, venv)
    say(f"Installing {len(set(map(name_of, requirements)))} packages")
    locked = [line for line in requirements if is_locked(line)]
    if locked:  # before torch, which then brings nothing but itself and what its build needs
        pip_install_locked(python, locked)
    torch_version = install_torch(python, venv)
    # Naming the installed torch keeps pip from exchanging it for another build.
    pip_install(python, [f"torch=={torch_version}", *(line for line in requirements if not is_locked(line))])
    projects = {name_of(line) for line in requirements}
    if "torchvision" in projects:
        repair_torchvision(python, torch_version)
    if "torchaudio" in projects:
        repair_torchaudio(python)
    if not locked and (alone := alone_for(command)):
        pip_install(python, ["--no-deps", *alone])
    write_stamp(command, requirements, venv)


def rerun(arguments: list[str], venv: Path = VENV) -> int:
    """Runs install.py again under the virtual environment's Python with the same arguments and returns its exit code."""
    command = [str(venv_python(venv)), str(ROOT / "install.py"), *arguments]
    if os.name != "nt":
        os.execv(command[0], command)  # the same process, so a signal reaches the one that has the server
    try:
        return subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        return 130  # Ctrl-C went to the child as well, which has stopped its server
