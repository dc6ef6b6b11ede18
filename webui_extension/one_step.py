"""The one-step SDXL UNet as a checkpoint: which file it is, and which file is only a UNet, told by the head alone."""

import logging
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UnsupportedModelError
from ..models.header import read_header
from ..models.one_step import start_of
from ..models.unet_file import inspect_unet

_log = logging.getLogger("hyper_sd")


class Kind(NamedTuple):
    """What a file is to this extension.

    Args:
        is_sdxl: whether a whole SDXL UNet is in it.
        has_clip: whether text encoders are in it as well.
        has_vae: whether a VAE is in it as well.
        start: the timestep of its one step, None for a model of many steps.
    """

    is_sdxl: bool = False
    has_clip: bool = False
    has_vae: bool = False
    start: int | None = None


def kind_of(path: str | Path) -> Kind:
    """Returns what a file is; its head is read again only once the file has changed. What cannot be read is of no kind."""
    path = Path(path)
    try:
        status = path.stat()
        return _read(path, status.st_mtime_ns, status.st_size)
    except OSError:
        return Kind()


def is_one_step_checkpoint(path: str | Path) -> bool:
    """Tells whether a file is the one-step SDXL UNet, alone or in a full checkpoint.

    It is known by a note or by its name; see start_of.
    """
    return kind_of(path).start is not None


def is_unet_only(path: str | Path) -> bool:
    """Tells whether a file holds an SDXL UNet and no text encoders: the A1111 family loads it, and makes garbage with it."""
    kind = kind_of(path)
    return kind.is_sdxl and not kind.has_clip


@lru_cache(maxsize=1024)
def _read(path: Path, changed: int, size: int) -> Kind:
    try:
        info = inspect_unet(path)
        metadata = read_header(path).get("__metadata__", {})
    except UnsupportedModelError:
        return Kind()
    return Kind(True, info.has_clip, info.has_vae, start_of(path.name, metadata))


def start_timestep(path: str | Path | None) -> int | None:
    """Returns the timestep that a checkpoint's one step begins at, None for a checkpoint of many steps."""
    return kind_of(path).start if path else None


def problem_of(path: str | Path | None, own_text_encoders: bool = False) -> str:
    """Returns why no picture can be made with a checkpoint, and what to do; "" where nothing is known against it.

    Args:
        path: of the checkpoint, None where there is none.
        own_text_encoders: whether the person has chosen text encoders beside the checkpoint, as Forge allows.
    """
    if path is None or own_text_encoders or not is_unet_only(path):
        return ""
    return (
        f"{Path(path).name} is only a UNet, without the text encoders and the VAE that a picture needs. Open the tab Hyper-SD "
        "models and press Build checkpoint: it joins this UNet and an SDXL checkpoint of yours into a full one, to use instead."
    )


def _loaded_problem(sd_model: Any) -> str:
    from . import host

    return problem_of(host.checkpoint_file(sd_model), host.has_own_text_encoders())


def refuse_unet_only(p: Any) -> None:
    """Has a run end with a sentence, instead of garbage, when its checkpoint is only a UNet; for a script's process()."""
    from . import host

    if problem := _loaded_problem(p.sd_model):
        host.stop(p, problem)


def register() -> None:
    """Has the host's log say so as soon as such a checkpoint is loaded; Reload UI has forgotten earlier callbacks."""
    from modules import script_callbacks

    def warn(sd_model: Any) -> None:
        if problem := _loaded_problem(sd_model):
            _log.error("%s", problem)

    script_callbacks.on_model_loaded(warn)
