"""LoRA files for a MODEL: which family it is, where the file lies, what is in it, and how much of it fits."""

import functools
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.supported_models
import comfy.utils
import folder_paths

from ..errors import UnsupportedModelError
from ..models import embedded
from ..models.catalog import load_catalog
from ..models.families import FAMILIES
from ..models.lora import LoraInfo, Match, check_family, check_values, host_keys, match, read_lora
from ..models.progress import State
from .model_downloads import DOWNLOADS
from .schema import require_choice

AUTO = "auto"
DEMO = "demo model: "  # before the names of the embedded model's own LoRAs


def lora_options() -> list[str]:
    """Returns the names of every LoRA: the host's files, then the embedded model's."""
    return [*folder_paths.get_filename_list("loras"), *(DEMO + title for title in embedded.LORA_TITLES)]


def key_of(option: str) -> tuple[str, int] | None:
    """Returns a Hyper-SD LoRA's variant and the steps in its name, None for another of lora_options."""
    if option.startswith(DEMO):
        return embedded.LORA_TITLES.get(option.removeprefix(DEMO))
    entry = load_catalog().lora_named(Path(option).name)
    return (entry.kind, entry.steps) if entry else None


def variant_of(option: str) -> str | None:
    """Returns a Hyper-SD LoRA's variant, None for another of lora_options."""
    key = key_of(option)
    return key[0] if key else None


def family_of(model: Any) -> str:
    """Returns a MODEL's family: a key of FAMILIES, or the host's name for another."""
    config = model.model.model_config
    known = {key: getattr(comfy.supported_models, family.comfyui_class) for key, family in FAMILIES.items()}
    return next((key for key, kind in known.items() if isinstance(config, kind)), type(config).__name__)


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
        raise UnsupportedModelError(f"The LoRA {name} is no longer in the loras folder; refresh the page (R) and choose again.")
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
    info = read_lora(path)
    check_values(path)
    tensors = comfy.utils.load_torch_file(str(path), safe_load=True)
    names = host_keys(tensors)
    return info, comfy.lora_convert.convert_lora({names[key]: tensor for key, tensor in tensors.items()})


def read_file(path: Path, model: Any) -> tuple[LoraInfo, dict[str, Any]]:
    """Returns what a LoRA file for a MODEL is, and its tensors under names the host knows.

    Raises: UnsupportedModelError for a damaged file, one with NaN in it, or one of another family.
    """
    info, tensors = _read(path, path.stat().st_mtime_ns)
    family = family_of(model)
    usual = FAMILIES[family].text_width if family in FAMILIES else None
    is_usual = model.model.model_config.unet_config.get("context_dim") == usual
    if is_usual or info.family in FAMILIES:  # otherwise both may be small relatives of a family: the sizes decide
        check_family(info, family)
    return info, tensors


def require_fit(model: Any, path: Path, tensors: dict[str, Any]) -> tuple[dict[str, Any], Match]:
    """Returns the host's names of a MODEL's layers, and how many of the LoRA's modules are among them.

    Raises: UnsupportedModelError when none is, or one is sized for another model.
    """
    weights = model.model.state_dict()
    listed = comfy.lora.model_lora_keys_unet(model.model, {}).items()  # by the configuration: not all of them are there
    offered = {name: target for name, target in listed if (target if isinstance(target, str) else target[0]) in weights}
    fit = match(tensors, offered)
    if not fit.matched:
        raise UnsupportedModelError(
            f"No module of {path.name} has a place in this model; choose a LoRA made for {family_of(model)}."
        )
    _require_sizes(weights, path, tensors, offered)
    return offered, fit


def add_lora(model: Any, path: Path, tensors: dict[str, Any], strength: float) -> tuple[Any, Match]:
    """Returns a clone of a MODEL with the LoRA's patches, and how many of its modules found their place.

    Raises: UnsupportedModelError when none did, or one is sized for another model.
    """
    offered, fit = require_fit(model, path, tensors)
    patched = model.clone()
    patched.add_patches(comfy.lora.load_lora(tensors, offered), strength)
    return patched, fit


def _require_sizes(weights: dict[str, Any], path: Path, tensors: dict[str, Any], offered: dict[str, Any]) -> None:
    """The host would log a size that does not fit while it draws, and draw without that module."""
    for name, down in tensors.items():
        target = offered.get(name.removesuffix(".lora_down.weight"))
        if isinstance(target, str) and name.endswith(".lora_down.weight"):
            width = weights[target].shape[1]
            if down.shape[1] not in (width, weights[target][0].numel()):  # ComfyUI's own training flattens convolutions
                raise UnsupportedModelError(
                    f"{path.name} was made for a model of other sizes ({name} takes {down.shape[1]} values, this model's layer "
                    f"{width}); choose a LoRA made for this model."
                )
