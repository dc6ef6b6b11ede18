"""Whether a file is the model that an entry names, told by its header alone: for files whose hash nobody has written down."""

from pathlib import Path

from ..errors import UnsupportedModelError
from .entry import Entry
from .families import FAMILIES, model_of, title_of
from .header import METADATA, read_header
from .lora_family import family_of
from .lora_keys import DOWN, is_text_encoder, layer_path, split_key
from .sdxl_unet import SDXL


def can_be_told(entry: Entry) -> bool:
    """Whether a header can tell that a file is an entry's model; nothing in it tells one scorer's file from another."""
    return entry.family in FAMILIES


def require_model(path: Path, entry: Entry) -> bool:
    """Refuses a file that is another model than an entry's, or for another one.

    Args:
        path: of a safetensors file.
        entry: whose file it shall be.
    Returns: whether the header tells that it is that model; it does not for a LoRA with layers of several models or of none.
    Raises: UnsupportedModelError saying what it is; OSError of the system.
    """
    header = read_header(path)
    if not can_be_told(entry):
        return False
    if entry.folder == "loras":
        found = _lora_family({name: tensor for name, tensor in header.items() if name != METADATA}, path)
    elif entry.family == "sdxl":
        from .unet_file import inspect_unet  # needs torch, which the list of files does without

        inspect_unet(path, SDXL)
        return True
    else:
        found = model_of(header)
    if found and found.startswith("an unknown kind"):
        return False
    if found not in (None, entry.family):
        wanted = title_of(entry.family)
        raise UnsupportedModelError(f"{path.name} is for {title_of(found)}, and {entry.title} is for {wanted}; get it again.")
    return found is not None


def _lora_family(header: dict, path: Path) -> str | None:
    keys = [(key, tensor["shape"]) for name, tensor in header.items() if (key := split_key(name))]
    if not keys:
        raise UnsupportedModelError(f"{path.name} holds no LoRA; get it again.")
    layers: dict[str, tuple[int, int] | None] = {}
    for key, shape in keys:
        if not is_text_encoder(key.module):
            layer = layer_path(key.module)
            is_down = key.part in DOWN and len(shape) > 1
            layers[layer] = (shape[1], len(shape)) if is_down else layers.get(layer)
    return family_of(layers)
