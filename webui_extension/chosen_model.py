"""Which model an image will be made with: the loaded one, or on the page the chosen one, told by its file's head."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import UnsupportedModelError
from ..models.families import FAMILIES, model_of, title_of
from ..models.header import read_header
from . import host, one_step


@dataclass(frozen=True)
class Model:
    """What is there.

    Args:
        family: a key of FAMILIES, None for another model.
        path: the checkpoint's.
        name: what people call it.
    """

    family: str | None
    path: Path | None
    name: str = "this checkpoint"

    @classmethod
    def named(cls, model: str | None, path: Path | None) -> "Model":
        """Returns the description of a model.

        Args:
            model: a key of FAMILIES, another model's plain name, or None where it is not known.
            path: the checkpoint's.
        """
        return cls(model if model in FAMILIES else None, path, title_of(model) if model else cls.name)

    @classmethod
    def of(cls, sd_model: Any) -> "Model":
        """Returns the description of a loaded model: by its file, and where that does not tell, by its network.

        The file comes first because AUTOMATIC1111 marks the SDXL refiner as SDXL.
        """
        path = host.checkpoint_file(sd_model)
        try:
            model = model_in(path, path.stat().st_mtime_ns) if path else None
        except (OSError, UnsupportedModelError):
            model = None
        return cls.named(model or host.model(sd_model), path)

    @classmethod
    def on_page(cls) -> "Model":
        """Returns the description of the one that the page's dropdown shows, which may not be loaded yet.

        Raises: UnsupportedModelError when there is none, it is only a UNet, or it cannot be told before it is loaded.
        """
        from modules import sd_models

        loaded = cls.of(host.loaded_model())
        try:
            path = Path(sd_models.select_checkpoint().filename)
        except FileNotFoundError as error:
            raise UnsupportedModelError("There is no checkpoint; put one into the host's folder and choose it.") from error
        if loaded.path == path:
            return loaded
        if problem := one_step.problem_of(path, host.has_own_text_encoders()):
            raise UnsupportedModelError(problem)
        try:
            model, reason = model_in(path, path.stat().st_mtime_ns), "Its head does not say which model it is."
        except (OSError, UnsupportedModelError) as error:
            model, reason = None, str(error)
        if model is None:
            raise UnsupportedModelError(f"{path.name} has to be loaded first: make an image. ({reason})")
        return cls.named(model, path)


@lru_cache(maxsize=64)
def model_in(path: Path, changed: int) -> str | None:
    """Returns the model in a checkpoint file by its head alone, as models.families.model_of.

    Args:
        path: of the file.
        changed: the file's time, by which it is read again after a change.
    Raises: OSError, UnsupportedModelError for a file whose head cannot be read.
    """
    return model_of(read_header(path))
