"""Which torch and torchvision fit this machine, and whether they work once installed."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

from ..disk import free_bytes
from .console import say
from .errors import InstallError
from .pip import installed_version, pip_install, pip_try, site_packages
from .requirements import TORCH_VERSION

GIB = 2**30
SPACE_CPU, SPACE_GPU = 3 * GIB, 6 * GIB  # measured: 2.1 GB with the CPU build of torch, 5.5 GB with CUDA's libraries
# Releases whose compiled part is optional: the only ones that import beside a torch of another build.
INDEPENDENT_TORCHVISION = ("0.16.2", "0.15.2")
CPU_TIP = (
    "Tip: on Linux the default torch brings 3 GB of CUDA libraries. Without an NVIDIA GPU set PIP_EXTRA_INDEX_URL to the "
    "address of PyTorch's CPU wheels (see pytorch.org, Get Started, Compute Platform CPU) to save most of the download."
)
_CHECK_TORCHVISION = "import torchvision, torchvision.transforms"
_CHECK_TORCHAUDIO = "import torchaudio, torchaudio.functional"


def has_gpu() -> bool:
    """Tells whether an NVIDIA or AMD GPU is there; Apple's needs no build of its own."""
    if Path("/dev/kfd").exists():
        return True
    if shutil.which("nvidia-smi") is None:
        return False
    try:
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return found.returncode == 0 and "GPU" in found.stdout


def _brings_cuda() -> bool:
    """Tells whether plain torch is going to be the big build: on Linux PCs, unless pip was pointed elsewhere."""
    pointed = any(os.environ.get(name) for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"))
    return platform.system() == "Linux" and platform.machine() in {"x86_64", "AMD64"} and not pointed


def torch_candidates(gpu: bool) -> tuple[str, ...]:
    """Returns the requirements to try in order; the local version +cpu exists only where pip is pointed to such wheels."""
    return ("torch",) if gpu else (f"torch=={TORCH_VERSION}+cpu", f"torch=={TORCH_VERSION}", "torch")


def check_space(folder: Path, needed: int) -> None:
    """Raises InstallError unless the folder's disk has the given bytes free."""
    free = free_bytes(folder)
    if free < needed:
        raise InstallError(
            f"{folder} has {free / GIB:.1f} GB free, the first installation needs {needed / GIB:.0f} GB; "
            "free some space or move this folder to another disk, then run the same command again."
        )


def check_first_installation(python: Path, folder: Path) -> None:
    """Raises InstallError when torch is missing and the disk is too full for it and what goes with it."""
    if installed_version(python, "torch"):
        return
    gpu = has_gpu()
    check_space(folder, SPACE_GPU if gpu or _brings_cuda() else SPACE_CPU)
    if not gpu and _brings_cuda():
        say(CPU_TIP)


def install_torch(python: Path, folder: Path) -> str:
    """Installs torch where it is missing and returns its version.

    Raises: InstallError when pip cannot.
    """
    version = installed_version(python, "torch")
    if version:
        return version
    *tries, last = torch_candidates(has_gpu())
    if not any(pip_try(python, [candidate]) for candidate in tries):
        pip_install(python, [last])
    version = installed_version(python, "torch")
    if not version:
        raise InstallError(f"pip reported success, but torch is not in {folder}; delete that folder and run again.")
    return version


def torchvision_candidates(torch_version: str) -> tuple[tuple[str, ...], ...]:
    """Returns pip arguments to try in order: the build made for this torch, then releases that need no particular torch.

    Source: the table in torchvision's README: torch 2.N goes with torchvision 0.(N + 15).
    """
    number, _, build = torch_version.partition("+")
    minor = int(number.split(".")[1])
    matching = f"torchvision==0.{minor + 15}.*"
    if not build:
        return (("--no-deps", matching), *(("--no-deps", f"torchvision=={old}") for old in INDEPENDENT_TORCHVISION))
    exact = tuple(("--no-deps", f"torchvision==0.{minor + 15}.{patch}+{build}") for patch in (0, 1))
    return (*exact, *(("--no-deps", f"torchvision=={old}") for old in INDEPENDENT_TORCHVISION), ("--no-deps", matching))


def _imports(python: Path, statement: str) -> bool:
    result = subprocess.run([str(python), "-c", statement], capture_output=True, check=False)
    return result.returncode == 0


def repair_torchvision(python: Path, torch_version: str) -> None:
    """Exchanges torchvision where the one pip chose does not import: beside a CPU-only torch it takes one built for CUDA.

    Raises: InstallError when none does.
    """
    if _imports(python, _CHECK_TORCHVISION):
        return
    for arguments in torchvision_candidates(torch_version):
        if pip_try(python, list(arguments)) and _imports(python, _CHECK_TORCHVISION):
            return
    raise InstallError(
        f"No torchvision imports beside torch {torch_version}. Install the pair that pytorch.org names for this machine with "
        f'"{python} -m pip install torch torchvision", then run the same command again.'
    )


def repair_torchaudio(python: Path) -> None:
    """Takes the compiled part off a torchaudio that does not import: beside a CPU-only torch pip chooses one built for CUDA.

    ComfyUI 0.33 does not start without torchaudio; of the compiled part, which torchaudio can do without, it uses nothing.

    Raises: InstallError when it does not import even so.
    """
    if _imports(python, _CHECK_TORCHAUDIO):
        return
    for site in site_packages(python):
        for compiled in (*site.glob("torchaudio/lib/*.so"), *site.glob("torchaudio/lib/*.pyd")):
            compiled.unlink()
    if not _imports(python, _CHECK_TORCHAUDIO):
        raise InstallError(
            "The installed torchaudio does not import beside torch. Install the pair that pytorch.org names for this machine "
            f'with "{python} -m pip install torch torchaudio", then run the same command again.'
        )
