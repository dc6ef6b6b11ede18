"""Which model an image will be made with: the loaded one, or on the page the chosen one, told by its file's head."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import UnsupportedModelError
from ..models.header import read_header
from . import host

# What a full checkpoint of a family has in its tensors' names, and no other family's has.
SIGNS = {
    "conditioner.embedders.1.": "sdxl",
    "joint_blocks.0.": "sd3",
    "double_blocks.0.": "flux",
    "cond_stage_model.transformer.": "sd15",
}


@dataclass(frozen=True)
class Model:
    """What is there: family: a key of FAMILIES, None for another; path: the checkpoint's."""

    family: str | None
    path: Path | None

    @classmethod
    def of(cls, sd_model: Any) -> "Model":
        """Returns the description of a loaded model."""
        return cls(host.family(sd_model), host.checkpoint_file(sd_model))

    @classmethod
    def on_page(cls) -> "Model":
        """Returns the description of the one that the page's dropdown shows, which may not be loaded yet.

        Raises: UnsupportedModelError when there is none, or it cannot be told before it is loaded.
        """
        from modules import sd_models

        loaded = cls.of(host.loaded_model())
        try:
            path = Path(sd_models.select_checkpoint().filename)
        except FileNotFoundError as error:
            raise UnsupportedModelError("There is no checkpoint; put one into the host's folder and choose it.") from error
        if loaded.path == path:
            return loaded
        try:
            return cls(family_in(path, path.stat().st_mtime_ns), path)
        except (OSError, UnsupportedModelError) as error:
            raise UnsupportedModelError(f"{path.name} has to be loaded first: make an image. ({error})") from error


@lru_cache(maxsize=64)
def family_in(path: Path, changed: int) -> str | None:
    """Returns the family of a checkpoint file by its head alone, None for another.

    Args: changed: the file's time, by which it is read again after a change.
    Raises: OSError, UnsupportedModelError for a file whose head cannot be read.
    """
    names = list(read_header(path))
    return next((family for sign, family in SIGNS.items() if any(sign in name for name in names)), None)
