"""The model files of this host: its folders and lists, and the one Downloads that the panel and the downloads tab share."""

import logging
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from modules import paths_internal, sd_models, shared

from ..models.catalog import load_catalog
from ..models.host_folders import HOST_ENDINGS, HOST_FOLDERS
from ..models.jobs import Downloads, user_catalog
from ..models.lora import LoraInfo, LoraPlan, check_family, effective_strength, read_lora
from ..models.progress import Row, State
from . import host

_log = logging.getLogger("hyper_sd")


def model_folders(kind: str) -> list[Path]:
    """Returns the host's folders for a kind of file such as "loras", the one to download into first."""
    options = shared.cmd_opts  # a folder that the host was started with takes the place of its own, or stands beside it
    moved = {
        "Lora": [getattr(options, "lora_dir", None)],
        "Stable-diffusion": [sd_models.model_path, getattr(options, "ckpt_dir", None)],
    }
    folders = []
    for name in HOST_FOLDERS[host.kind()][kind]:
        folders += [folder for folder in moved.get(name, []) if folder] or [Path(paths_internal.models_path, name)]
    return list(dict.fromkeys(Path(folder).resolve() for folder in folders))


def lora_names() -> dict[str, Any]:
    """Returns the host's LoRAs by name and alias, none where its LoRA extension is off."""
    networks = sys.modules.get("networks")
    return dict(getattr(networks, "available_networks", {})) | dict(getattr(networks, "available_network_aliases", {}))


def refresh_lists() -> None:
    """Makes the host list what has been downloaded."""
    networks = sys.modules.get("networks")
    if networks is not None:
        networks.list_available_networks()
    sd_models.list_models()


def _notify(row: Row) -> None:
    if row.state is State.READY:
        try:
            refresh_lists()
        except Exception:  # whatever the host's own lists fail on, the download has succeeded
            _log.exception("the host could not list its models again; press its refresh button")


DOWNLOADS = Downloads(model_folders, user_catalog(paths_internal.data_path), _notify, endings=HOST_ENDINGS[host.kind()])


def listed_lora(entry_id: str) -> tuple[str, Path] | None:
    """Returns the host's name and the path of a catalogue entry's file, None where it is not there.

    It looks for the file's own name first, which touches no disk, then for a copy that the downloads know under another name.
    """
    entry = load_catalog().get(entry_id)
    found = _listed(lambda path: path.name.lower() == entry.name.lower() and path.is_file())
    if found:
        return found
    row = DOWNLOADS.row(entry_id)
    if row.state is not State.READY:
        return None
    copies = {folder / row.file for folder in model_folders(entry.folder)}
    found = _listed(lambda path: path.resolve() in copies)
    if found is None:  # copied there by hand after the host had looked
        refresh_lists()
        found = _listed(lambda path: path.resolve() in copies)
    return found


def _listed(fits: Callable[[Path], bool]) -> tuple[str, Path] | None:
    paths = ((name, Path(on_disk.filename)) for name, on_disk in lora_names().items())
    return next(((name, path) for name, path in paths if fits(path)), None)


@lru_cache(maxsize=32)
def _read(path: Path, stamp: int) -> LoraInfo:
    return read_lora(path)


def strength_of(path: Path, plan: LoraPlan) -> float:
    """Returns the strength at which the host applies the file as strongly as the plan means it.

    Raises: UnsupportedModelError for a damaged file, and one of another family.
    """
    info = _read(path, path.stat().st_mtime_ns)
    check_family(info, plan.family)
    return effective_strength(info, plan)
