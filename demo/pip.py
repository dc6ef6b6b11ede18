"""pip as a program: it shows its own progress, and its failures become messages that say what to do."""

import importlib.metadata
import os
import re
import shutil
import subprocess
from pathlib import Path

from .console import say
from .errors import InstallError

# What pip writes when it is the network that failed, not the search for a version.
_NETWORK = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|Max retries|Retrying \(Retry|ProxyError|SSLError"
)
_NOT_OFFERED = "No matching distribution found"
_ENVIRONMENT = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PYTHONIOENCODING": "utf-8"}


def site_packages(python: Path) -> list[Path]:
    """Returns the package folders of the virtual environment a Python belongs to, without starting it."""
    root = python.parent.parent
    return [folder for folder in (*root.glob("lib/python3*/site-packages"), root / "Lib" / "site-packages") if folder.is_dir()]


def installed_version(python: Path, name: str) -> str | None:
    """Returns the version of a project in a virtual environment, or None."""
    paths = [str(folder) for folder in site_packages(python)]
    found = importlib.metadata.distributions(name=name, path=paths)
    return next((distribution.version for distribution in found), None)


def remove_half_installed(python: Path) -> list[str]:
    """Forgets projects whose installation was cut off, so that pip installs them again, and returns their folders' names.

    pip writes RECORD last; a dist-info folder without one is what a killed pip leaves, and pip itself takes it for complete.
    """
    folders = [info for site in site_packages(python) for info in site.glob("*.dist-info") if not (info / "RECORD").is_file()]
    for folder in folders:
        shutil.rmtree(folder)
    return [folder.name for folder in folders]


def _pip(python: Path, arguments: list[str], capture: bool) -> subprocess.CompletedProcess:
    command = [str(python), "-m", "pip", *arguments]
    stderr = subprocess.PIPE if capture else None
    return subprocess.run(
        command, env={**os.environ, **_ENVIRONMENT}, stderr=stderr, text=True, encoding="utf-8", errors="replace", check=False
    )


def _network_error(what: str) -> InstallError:
    return InstallError(
        f"pip could not reach its package index for {what}. Check the network (a proxy goes into HTTPS_PROXY), "
        "then run the same command again: it goes on where it stopped."
    )


def pip_try(python: Path, arguments: list[str]) -> bool:
    """Installs the given arguments and tells whether that worked; a version that is not on offer is no error.

    Raises: InstallError when the network failed, since the next candidate would fail the same way.
    """
    say(f"Installing {arguments[-1]}")
    result = _pip(python, ["install", *arguments], capture=True)
    if result.returncode == 0:
        return True
    if _NETWORK.search(result.stderr):
        raise _network_error(arguments[-1])
    if _NOT_OFFERED not in result.stderr:
        say(result.stderr.strip())
    say(f"{arguments[-1]} is not on offer here; trying the next.")
    return False


def pip_install(python: Path, arguments: list[str]) -> None:
    """Installs the given arguments.

    Raises: InstallError.
    """
    result = _pip(python, ["install", *arguments], capture=True)
    if result.returncode == 0:
        return
    if _NETWORK.search(result.stderr):
        raise _network_error(arguments[-1])
    raise InstallError(
        f"pip could not install what is needed (exit code {result.returncode}):\n{result.stderr.strip()}\n"
        "Free disk space, or use Python 3.10 to 3.13 if a package has no build for yours, then run the same command again."
    )


def pip_download(python: Path, requirement: str, folder: Path) -> None:
    """Downloads one wheel, without its dependencies, into a folder.

    Raises: InstallError.
    """
    arguments = ["download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), requirement]
    result = _pip(python, arguments, capture=True)
    if result.returncode == 0:
        return
    if _NETWORK.search(result.stderr):
        raise _network_error(requirement)
    raise InstallError(
        f"pip could not download {requirement} (exit code {result.returncode}):\n{result.stderr.strip()}\n"
        "Use your own ComfyUI instead: --comfyui PATH."
    )
