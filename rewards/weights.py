"""The files of scorers: read without running anything of them, and put into a network only if they fit it exactly."""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..errors import RewardError, UnsupportedModelError
from ..models.catalog import load_catalog
from ..models.content import require_content
from ..models.files import sha256_of

PLACES = "position_ids"  # counts that old files carry, and that a network makes itself
Network = TypeVar("Network", bound=nn.Module)
Tensors = Mapping[str, torch.Tensor]


def remedy(*entry_ids: str) -> str:
    """Returns how files are had: "Download ... in the tab Hyper-SD models, or run `python install.py download ...`."."""
    titles = " and ".join(load_catalog().get(entry_id).title for entry_id in entry_ids)
    return f"Download {titles} in the tab Hyper-SD models, or run `python install.py download {' '.join(entry_ids)}`."


def released_sha256(entry_id: str) -> str | None:
    """Returns the SHA-256 of a file of the catalogue, None where it is not known."""
    return load_catalog().get(entry_id).sha256


def require_released(path: Path, entry_id: str, why: str) -> None:
    """Refuses a file of any other content than the released one.

    Args:
        path: of the file.
        entry_id: of the released one in the catalogue, which has its SHA-256.
        why: what another file would do, as half a sentence.
    Raises: RewardError with both hashes.
    """
    title = load_catalog().get(entry_id).title
    _require_hash(Path(path), released_sha256(entry_id), title, f"{why}. {remedy(entry_id)}")


def _require_hash(path: Path, expected: str | None, title: str, then: str) -> None:
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise RewardError(f"{path} cannot be read ({error}); {then}") from error
    if digest != expected:
        raise RewardError(
            f"{path} is not {title}: its SHA-256 begins with {digest[:12]}, the released one's with {str(expected)[:12]}; "
            f"{then}"
        )


def read_tensors(path: Path, entry_id: str) -> dict[str, torch.Tensor]:
    """Returns the tensors of a file by name, on the processor.

    A safetensors file holds nothing but tensors. A checkpoint of torch is opened only after its SHA-256 has been found to be
    the released one, and even then nothing but tensors is taken from it.

    Args:
        path: a .safetensors, .pt or .bin file.
        entry_id: of the catalogue.
    Raises: RewardError for a file that is missing, damaged, truncated or, where its content matters, not the released one.
    """
    path, how = Path(path), remedy(entry_id)
    if path.suffix.lower() != ".safetensors":
        return read_checkpoint(path, released_sha256(entry_id), load_catalog().get(entry_id).title, how)
    _require_whole(path, path.suffix.lower(), how)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RewardError(f"{path} cannot be read ({error}). {how}") from error


def _require_whole(path: Path, ending: str, how: str) -> None:
    if not path.is_file():
        raise RewardError(f"{path} is not there. {how}")
    try:
        require_content(path, ending)
    except (OSError, UnsupportedModelError) as error:
        raise RewardError(f"{path} cannot be read ({error}). {how}") from error


def read_checkpoint(path: Path, sha256: str | None, title: str, how: str) -> dict[str, torch.Tensor]:
    """Returns the tensors of a checkpoint of torch by name, on the processor.

    Args:
        path: of the file.
        sha256: of the released one; a file of any other content is not opened.
        title: of the released one.
        how: how the released one is had, as a sentence.
    Raises: RewardError for a file that is missing, damaged, truncated or not the released one.
    """
    _require_whole(path, ".pt", how)
    _require_hash(path, sha256, title, f"a checkpoint of torch is opened only where its content is known. {how}")
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # what is refused raises pickle's own error, and pickle is imported nowhere here
        raise RewardError(f"{path} cannot be read ({str(error)[:300]}). {how}") from error
    held = held.get("state_dict", held) if isinstance(held, dict) else held
    if not isinstance(held, dict):
        raise RewardError(f"{path} holds no tensors by name. {how}")
    return {name: value for name, value in held.items() if isinstance(value, torch.Tensor)}


def filled(build: Callable[[], Network], tensors: Tensors, path: Path, entry_id: str) -> Network:
    """Returns a new network in float32 that holds a file's tensors, each in its place and none left over.

    Args:
        build: makes the network; its own first weights are not computed.
        tensors: by the network's names.
        path: where they come from, for the message.
        entry_id: of the catalogue.
    Raises: RewardError naming what does not fit.
    """
    with torch.device("meta"):
        network = build()
    held = {name: value for name, value in tensors.items() if not name.endswith(PLACES)}
    require_fit(network, held, path, remedy(entry_id))
    network.load_state_dict({name: value.float() for name, value in held.items()}, strict=False, assign=True)
    for module in network.modules():
        places = getattr(module, PLACES, None)
        if isinstance(places, torch.Tensor) and places.is_meta:
            setattr(module, PLACES, torch.arange(places.shape[-1]).expand(places.shape))
    return network


def require_fit(network: nn.Module, tensors: Tensors, path: Path, how: str) -> None:
    """Refuses tensors that do not fit a network name by name.

    Args:
        network: that shall take them.
        tensors: by name.
        path: where they come from, for the message.
        how: how the right file is had, as a sentence.
    Raises: RewardError naming what does not fit.
    """
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items() if not name.endswith(PLACES)}
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    wrong = [f"{name} is missing" for name in wanted if name not in given]
    wrong += [f"{name} is too much" for name in given if name not in wanted]
    both = ((name, given[name], shape) for name, shape in wanted.items() if name in given)
    wrong += [f"{name} is {found} and not {shape}" for name, found, shape in both if found != shape]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise RewardError(f"{path} is the file of another model ({wrong[0]}{more}). {how}")


def require_transformers() -> ModuleType:
    """Returns the package transformers, whose networks the released scorers use.

    Raises: RewardError saying how it is had, where it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise RewardError(
            f"This score needs the package transformers, which cannot be imported ({error}). Install it into the Python that "
            "runs this: pip install transformers."
        ) from error
    return transformers
