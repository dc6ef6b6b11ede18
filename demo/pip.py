"""pip as a program: it shows its own progress, and its failures become messages that say what to do."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from .console import say
from .errors import InstallError

# What pip writes when it is the network that failed, not the search for a version.
_NETWORK = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|Max retries|Retrying \(Retry|ProxyError|SSLError"
)
_NOT_OFFERED = "No matching distribution found"
_NO_WHEEL = re.compile(rf"{_NOT_OFFERED} for ([^\s;]+)")
# "numpy==2.4.6 from ADDRESS (from -r ...):", then "Expected sha256 ...", "Expected or ..." for each file and "Got ...".
_OTHER_FILE = re.compile(r"^ +(\S+==\S+) [^\n]*\n((?: +Expected[^\n]*\n)+) +Got +(\w+)", re.MULTILINE)
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


def _install_error(result: subprocess.CompletedProcess) -> InstallError:
    return InstallError(
        f"pip could not install what is needed (exit code {result.returncode}):\n{result.stderr.strip()}\n"
        "Free disk space, or use Python 3.10 to 3.13 if a package has no build for yours, then run the same command again."
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
    raise _network_error(arguments[-1]) if _NETWORK.search(result.stderr) else _install_error(result)


def pip_install_locked(python: Path, lines: list[str]) -> None:
    """Installs exactly the given files: wheels whose sha256 is named, and nothing that they ask for besides.

    Args:
        python: the one whose environment gets them.
        lines: lines of the lock file; see lock in demo/lock.py.
    Raises: InstallError.
    """
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "lock.txt"
        listed.write_text("\n".join(lines), encoding="utf-8")
        options = ["--require-hashes", "--only-binary", ":all:", "--no-deps", "--requirement", str(listed)]
        result = _pip(python, ["install", *options], capture=True)
    if result.returncode:
        raise _locked_error(python, result)


def _locked_error(python: Path, result: subprocess.CompletedProcess) -> InstallError:
    if found := _OTHER_FILE.search(result.stderr):
        requirement, allowed, given = found.groups()
        hashes = re.findall(r"\b[0-9a-f]{64}\b", allowed)
        expected = hashes[0] if len(hashes) == 1 else f"one of the {len(hashes)} that demo/lock.txt names for it"
        return InstallError(
            f"pip was given a file of {requirement} with sha256 {given}, expected {expected}: it is damaged, or not the one "
            f'that was tested. Nothing was installed. Run "{python} -m pip cache purge" and the same command again. If that '
            "does not help, somebody has put another file where pip looks (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS)."
        )
    if _NETWORK.search(result.stderr):
        return _network_error("the packages of demo/lock.txt")
    if found := _NO_WHEEL.search(result.stderr):
        version = subprocess.run([str(python), "-V"], capture_output=True, text=True, check=False).stdout.strip()
        return InstallError(
            f"There is no wheel of {found[1]}, which demo/lock.txt names, for {version} on {platform.platform()}. The lock is "
            "made for Python 3.10 to 3.13 on Linux (x86-64, ARM), Windows (x86-64) and macOS 14 or newer (ARM). Run install.py "
            "with such a Python, or on your own ComfyUI, for which nothing is locked: --comfyui PATH."
        )
    return _install_error(result)


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
