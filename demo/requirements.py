"""The one list of what each of install.py's commands needs; the pack's own run-time needs are in requirements.txt."""

import hashlib
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCH_VERSION = "2.13.0"  # tested; where a GPU is found pip takes the newest instead
FRONTEND = "comfyui-frontend-package"

# ComfyUI 0.3.75's own list, without torch (chosen in demo/torch_build.py) and without its templates, help pages and torchaudio.
COMFYUI = (
    f"{FRONTEND}==1.32.9", "torchvision", "torchsde", "numpy>=1.25.0", "einops", "transformers>=4.50.3", "tokenizers>=0.13.3",
    "sentencepiece", "safetensors>=0.4.2", "aiohttp>=3.11.8", "yarl>=1.18.0", "pyyaml", "pillow", "scipy", "tqdm", "psutil",
    "alembic", "SQLAlchemy", "av>=14.2.0", "kornia>=0.7.1", "spandrel", "pydantic~=2.0", "pydantic-settings~=2.0", "requests",
)  # fmt: skip
TEST = (
    "pytest", "pytest-xdist", "hypothesis", "diffusers", "accelerate", "peft", "playwright", "tomli; python_version < '3.11'",
    "ruff==0.17.5", "torchdiffeq", "setuptools>=70.1",
)  # fmt: skip
# Installed without what they ask for: of k-diffusion the tests use the denoisers that A1111 wraps its networks in, which need
# torchsde and torchdiffeq; the rest of it would bring a dozen packages for training and logging.
TEST_ALONE = ("k-diffusion==0.1.1.post1",)
RECIPE = ("diffusers", "transformers", "tokenizers", "accelerate", "kornia>=0.7.1", "resvg-py")
EVALUATION = ("choix", "matplotlib")  # strengths from comparisons in pairs, and charts
COMMANDS = ("demo", "test", "train-demo", "evaluate", "compare", "votes", "taste")

_LEFT_OUT = {"torch", "comfyui-workflow-templates", "comfyui-embedded-docs"}


def name_of(requirement: str) -> str:
    """Returns the normalised project name of a requirement line ("Pydantic_Settings~=2.0" gives "pydantic-settings").

    Source: PEP 503.
    """
    return re.sub(r"[-_.]+", "-", re.split(r"[\s<>=!~;\[@]", requirement.strip(), maxsplit=1)[0]).lower()


def read_requirements(path: Path) -> tuple[str, ...]:
    """Returns the requirement lines of a file, without comments, pip options and blank lines."""
    lines = (line.split("#", 1)[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return tuple(line for line in lines if line and not line.startswith("-"))


def host_requirements(comfyui: Path) -> tuple[str, ...]:
    """Returns what a ComfyUI needs besides torch: its own requirements.txt where it has one."""
    listed = comfyui / "requirements.txt"
    if not listed.is_file():
        return COMFYUI
    return (*(line for line in read_requirements(listed) if name_of(line) not in _LEFT_OUT), "requests")


def requirements_for(command: str, comfyui: Path | None) -> tuple[str, ...]:
    """Returns the requirement lines of one of COMMANDS, each project once.

    Args: comfyui: the ComfyUI that is going to run, None for a command that runs none.
    """
    wanted = {
        "demo": (), "test": (*TEST, *EVALUATION), "train-demo": RECIPE,
        "evaluate": (*EVALUATION, "diffusers", "transformers", "accelerate"),
        "taste": ("transformers",),
    }.get(command, EVALUATION)  # fmt: skip
    host = host_requirements(comfyui) if comfyui else ()
    first: dict[str, str] = {}
    for line in (*host, *wanted, *read_requirements(ROOT / "requirements.txt")):
        first.setdefault(name_of(line), line)
    return tuple(first.values())


def alone_for(command: str) -> tuple[str, ...]:
    """Returns the requirement lines of one of COMMANDS that are installed without their own requirements."""
    return TEST_ALONE if command == "test" else ()


def digest(requirements: tuple[str, ...]) -> str:
    """Returns a short hash that changes whenever a list changes."""
    return hashlib.sha256("\n".join(sorted(requirements)).encode()).hexdigest()[:16]
