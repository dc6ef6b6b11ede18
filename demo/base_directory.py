"""The demo's own ComfyUI folder: models, outputs and a custom_nodes that links to this pack, apart from any real one."""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from .errors import HostError
from .requirements import ROOT

BASE = ROOT / ".demo" / "base"
PACK_NAME = "hyper-sd"
_OFFERED = "demo"
_LORAS = "evaluate"
_FOLDERS = ("custom_nodes", "models/checkpoints", "models/loras", "input", "output", "temp", "user")


def prepare(base_directory: Path = BASE) -> Path:
    """Makes ComfyUI's folders, links the pack into custom_nodes and returns the base directory."""
    for folder in _FOLDERS:
        (base_directory / folder).mkdir(parents=True, exist_ok=True)
    link_pack(base_directory)
    return base_directory


def _is_link(path: Path) -> bool:
    if path.is_symlink():
        return True
    try:  # a Windows junction; Path.is_junction exists only since Python 3.12
        return bool(os.readlink(path))
    except (OSError, ValueError):
        return False


def _remove_link(path: Path) -> None:
    if os.name == "nt" and not path.is_symlink():
        path.rmdir()  # removes a junction, not what it leads to
    else:
        path.unlink()


def link_pack(base_directory: Path, root: Path = ROOT) -> Path:
    """Links custom_nodes/hyper-sd to this pack, anew when it leads elsewhere, and returns the link.

    Raises: HostError when a real folder stands in its place or the system permits no link.
    """
    link = base_directory / "custom_nodes" / PACK_NAME
    if _is_link(link):
        if link.resolve() == root.resolve():
            return link
        _remove_link(link)
    elif link.exists():
        raise HostError(f"{link} is a real folder where the demo puts its link; move it away and run again.")
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.symlink_to(root.resolve(), target_is_directory=True)
    except OSError as error:
        _junction(link, root.resolve(), error)
    return link


def _junction(link: Path, root: Path, reason: OSError) -> None:
    """Windows lets everyone make junctions, but symbolic links only administrators and developers."""
    if os.name != "nt":
        raise HostError(
            f"Could not make the link {link} -> {root}: {reason}. Move this folder to a disk with links."
        ) from reason
    import _winapi

    _winapi.CreateJunction(str(root), str(link))


def offer_checkpoint(base_directory: Path, checkpoint: Path) -> tuple[str, tuple[str, ...]]:
    """Makes one checkpoint known to the demo's ComfyUI without copying it.

    Returns: its name in CheckpointLoaderSimple and the extra arguments main.py needs for it.
    """
    folder = base_directory / "models" / "checkpoints" / _OFFERED
    shutil.rmtree(folder, ignore_errors=True)  # the links of earlier runs, not what they lead to
    folder.mkdir(parents=True)
    for link in (os.symlink, os.link):
        try:
            link(checkpoint.resolve(), folder / checkpoint.name)
        except OSError:  # not permitted, or another disk: the next way
            continue
        return os.path.join(_OFFERED, checkpoint.name), ()  # as ComfyUI lists it, with the system's own separator
    config = base_directory / "extra_model_paths.yaml"  # JSON is YAML, and quotes any path rightly
    paths = {"hyper_sd_demo": {"base_path": str(checkpoint.resolve().parent), "checkpoints": "."}}
    config.write_text(json.dumps(paths), encoding="utf-8")
    return checkpoint.name, ("--extra-model-paths-config", str(config))


def offer_loras(base_directory: Path, loras: Iterable[Path]) -> dict[Path, str]:
    """Makes LoRA files known to the demo's ComfyUI, where the system permits it without copying them.

    Returns: the name of each in LoraLoader's list.
    """
    folder = base_directory / "models" / "loras" / _LORAS
    shutil.rmtree(folder, ignore_errors=True)  # the links of earlier runs, not what they lead to
    folder.mkdir(parents=True)
    names = {}
    for number, lora in enumerate(dict.fromkeys(loras)):
        offered = folder / f"{number:02d}-{lora.name}"  # two folders may hold files of one name
        for link in (os.symlink, os.link, shutil.copyfile):
            try:
                link(lora.resolve(), offered)
            except OSError:  # not permitted, or another disk: the next way
                continue
            break
        else:
            raise HostError(
                f"{lora} could not be made known to ComfyUI in {folder}; make room there, or check its permissions."
            )
        names[lora] = os.path.join(_LORAS, offered.name)
    return names
