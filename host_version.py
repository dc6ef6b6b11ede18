"""Which ComfyUI the pack needs, and the refusal of one that is older. Standard library only: it is asked before all else."""

import re
import sys
from pathlib import Path

from .errors import HyperSDError

MINIMUM = "0.3.59"  # the first that lets a model take another attention (optimized_attention_override), which training needs


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"v?(\d+)\.(\d+)\.(\d+)", version)
    return tuple(map(int, found.groups())) if found else ()


def is_too_old(version: str) -> bool:
    """Tells whether a version of ComfyUI is older than MINIMUM; one that is not written in numbers is not."""
    return () < _numbers(version) < _numbers(MINIMUM)


def version_in(comfyui: Path) -> str:
    """Returns the version that a ComfyUI's folder states, "" where it states none, as those before January 2025."""
    try:
        text = (comfyui / "comfyui_version.py").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r"""^__version__ = ["'](.+?)["']""", text, re.MULTILINE)
    return found[1] if found else ""


def refuse_old_comfyui() -> None:
    """Stops the loading of the pack where the program that loads it is a ComfyUI that is too old.

    Nothing of the host is imported for that: a ComfyUI from January 2025 on has read its own version before it loads a pack.

    Raises: HyperSDError.
    """
    version = getattr(sys.modules.get("comfyui_version"), "__version__", "")
    if is_too_old(version):
        raise HyperSDError(
            f"Hyper-SD needs ComfyUI {MINIMUM} or newer, this is ComfyUI {version}; update ComfyUI, then start it again."
        )
