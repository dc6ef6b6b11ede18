"""LoRA files for a MODEL: which family it is, where the file lies, what is in it, and how much of it fits."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import comfy.lora
import comfy.lora_convert
import comfy.supported_models
import folder_paths

from ..errors import UnsupportedModelError
from ..models import embedded
from ..models.families import FAMILIES, model_of_network, title_of
from ..models.lora import LoraInfo, check_family, host_keys, load_lora_file
from ..models.lora_fit import Match, match, require_fit, without
from ..models.network_shapes import Shapes, shapes_of
from ..models.progress import State
from ..models.recognition import Recognition, recognise
from .demo_model import is_embedded
from .model_downloads import DOWNLOADS
from .schema import require_choice

AUTO = "auto"
DEMO = "demo model: "  # before the names of the embedded model's own LoRAs


def lora_options() -> list[str]:
    """Returns the names of every LoRA: the host's files, then the embedded model's."""
    return [*folder_paths.get_filename_list("loras"), *(DEMO + title for title in embedded.LORA_TITLES)]


def known_lora(option: str) -> Recognition:
    """Returns what one of lora_options is known to be.

    Raises: UnsupportedModelError when it is gone.
    """
    return recognise(lora_path(option), DOWNLOADS.catalog()[0])


def family_of(model: Any) -> str:
    """Returns a MODEL's family: a key of FAMILIES, or another model's plain name.

    The sizes of its network tell, since the host has relatives of a family in the family's own classes: FLUX.2 in FLUX's, SD3.5
    in SD3's, SSD-1B in SDXL's. A network that says no sizes, being packed, is what the host's class says.
    """
    if is_embedded(model):
        return embedded.FAMILY
    config = type(model.model.model_config)
    classes = {getattr(comfy.supported_models, family.comfyui_class): key for key, family in FAMILIES.items()}
    return model_of_network(shapes_of(model.model.diffusion_model)) or classes.get(config, config.__name__)


def lora_path(name: str) -> Path:
    """Returns the file of a name from lora_options.

    Raises: UnsupportedModelError when it is gone.
    """
    if name.startswith(DEMO):
        title = name.removeprefix(DEMO)
        require_choice("the demo model's LoRA", title, embedded.LORA_TITLES)
        return embedded.lora_file(*embedded.LORA_TITLES[title])
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        raise UnsupportedModelError(
            f"The LoRA {name} is no longer a file in the loras folder; refresh the page (R) and choose again."
        )
    return Path(path)


def released_path(entry_id: str) -> Path:
    """Returns where a catalogue file lies in the host's folders.

    Raises: UnsupportedModelError when it is not there, or not whole, naming it and the way to get it.
    """
    row = DOWNLOADS.row(entry_id)
    if row.state is not State.READY:
        state = f"is damaged ({row.problem})" if row.state is State.CORRUPT else "is not there yet"
        raise UnsupportedModelError(
            f"{row.entry.name} {state}. Open the sidebar tab Hyper-SD models and press its button, or run "
            f"`python install.py download {entry_id}`; then queue again."
        )
    return lora_path(row.file)


@functools.lru_cache(maxsize=1)  # as the host's own loader does: another strength reads nothing again
def _read(path: Path, changed: int) -> tuple[LoraInfo, dict[str, Any]]:
    info, tensors = load_lora_file(path)
    names = host_keys(tensors)
    return info, comfy.lora_convert.convert_lora({names[key]: tensor for key, tensor in tensors.items()})


def read_file(path: Path, model: Any) -> tuple[LoraInfo, dict[str, Any]]:
    """Returns what a LoRA file for a MODEL is, and its tensors under names the host knows.

    Raises: UnsupportedModelError for a damaged file, one with NaN in it, or one of another family.
    """
    info, tensors = _read(path, path.stat().st_mtime_ns)
    family = family_of(model)
    # LoRAs of a family's relative are told as the family's, and those of the embedded model as none: there the sizes decide.
    if family in FAMILIES and (info.family in FAMILIES or not is_embedded(model)):
        check_family(info, family)
    return info, tensors


class Fit(NamedTuple):
    """What of a LoRA goes into a MODEL.

    Args:
        tensors: those that do; the host would say of the others only in its log, that their sizes do not fit, at every picture.
        offered: the host's names of the MODEL's layers -> where it patches them.
        match: how much that is.
    """

    tensors: dict[str, Any]
    offered: dict[str, Any]
    match: Match


def fit(model: Any, path: Path, tensors: dict[str, Any]) -> Fit:
    """Returns what of a LoRA goes into a MODEL, by names and sizes.

    Raises: UnsupportedModelError when nothing does, or most of what has a name in the MODEL has other sizes.
    """
    shapes = shapes_of(model.model)
    listed = comfy.lora.model_lora_keys_unet(model.model, {}).items()  # by the configuration: not all of them are there
    offered = {name: target for name, target in listed if (target if isinstance(target, str) else target[0]) in shapes}
    found = match(tensors, {name: _offered_shape(shapes, target) for name, target in offered.items()})
    require_fit(found, path.name, title_of(family_of(model)))
    return Fit(without(tensors, found.misfits), offered, found)


def _offered_shape(shapes: Shapes, target: Any) -> tuple[int, ...] | None:
    """Returns the shape of a weight, or of the rows or columns of it that a name stands for."""
    name, part = (target, None) if isinstance(target, str) else (target[0], target[1])
    shape = shapes[name]
    if shape is None or part is None:
        return shape
    dimension, _, length = part
    return *shape[:dimension], length, *shape[dimension + 1 :]


def add_lora(model: Any, path: Path, tensors: dict[str, Any], strength: float) -> tuple[Any, Match]:
    """Returns a clone of a MODEL with the LoRA's patches, and how much of it found its place.

    Raises: UnsupportedModelError when nothing did, or most of it is sized for another model.
    """
    fitting = fit(model, path, tensors)
    patched = model.clone()
    patched.add_patches(comfy.lora.load_lora(fitting.tensors, fitting.offered), strength)
    return patched, fitting.match
