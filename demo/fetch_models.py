"""`python install.py download`: catalogue files for people without a browser, into the host's own folders."""

import argparse
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from ..disk import format_bytes
from ..models.catalog import FAMILIES, Entry, load_catalog, require_acknowledged
from ..models.files import Progress, State, index_folders, look
from .console import StatusLine, clock, say, share_bar
from .errors import DemoError
from .host import find_comfyui
from .requirements import ROOT

WEBUI_FOLDERS = {"loras": "Lora", "diffusion_models": "Stable-diffusion", "checkpoints": "Stable-diffusion"}


def add_download_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `download` to a parser."""
    parser.add_argument("ids", nargs="*", metavar="ID", help="what to fetch, by its id in --list")
    parser.add_argument("--list", action="store_true", help="show every file with its id, size and state")
    parser.add_argument("--into", type=Path, metavar="DIR", help="the folder to put it into; default: the host's own")
    parser.add_argument("--catalog", type=Path, metavar="FILE", help="a catalog.json of your own entries")
    parser.add_argument("--accept-licence", action="store_true", help="you have read the licence of the file and accept it")
    parser.add_argument("--set-aside", action="store_true", help="rename a corrupt file and download it again")


def models_folder(kind: str, *, root: Path = ROOT, home: Path | None = None) -> Path:
    """Returns the folder for a kind of file of the host around this pack, or of the ComfyUI it would find.

    Args: kind: "loras", "diffusion_models" or "checkpoints".
    Raises: DemoError when there is no host.
    """
    host = root.parent.parent
    if root.parent.name == "extensions" and (host / "modules").is_dir():
        return host / "models" / WEBUI_FOLDERS[kind]
    comfyui = find_comfyui(root=root, home=home)
    if comfyui is None:
        raise DemoError("Found no ComfyUI or A1111 around this folder; say where the file shall go: --into FOLDER.")
    return comfyui / "models" / kind


def progress_line(entry: Entry, progress: Progress) -> str:
    """Returns "name [###...] 34 % of 787 MB  12 MB/s  0:43 left", or what it waits for."""
    bar = share_bar(progress.bytes_done, progress.bytes_total)
    share = f"{100 * progress.bytes_done // max(progress.bytes_total, 1)} % of {format_bytes(progress.bytes_total)}"
    parts = [f"{entry.name} [{bar}] {share}"]
    if progress.state is State.VERIFYING:
        parts.append("verifying")
    elif progress.rate and progress.eta_seconds is not None:
        parts += [f"{format_bytes(progress.rate)}/s", f"{clock(progress.eta_seconds)} left"]
    return "  ".join([*parts, progress.note]).rstrip()


def list_models(entries: Iterable[Entry], into: Path | None) -> None:
    """Writes every entry's id, size, title and state, by family."""
    entries = list(entries)
    for family, title in FAMILIES.items():
        say(f"\n{title}")
        for entry in (entry for entry in entries if entry.family == family):
            found = look(entry, index_folders([into or models_folder(entry.folder)]))
            say(f"  {entry.id:36} {format_bytes(entry.approximate_size):>8}  {found.state.value:8} {entry.title}")


def fetch(entry: Entry, into: Path | None, set_aside: bool) -> Path:
    """Downloads one entry with a progress line and returns the file."""
    from ..models.download import download  # needs what the host has installed

    line = StatusLine()
    try:
        path = download(
            entry,
            into or models_folder(entry.folder),
            progress=lambda progress: line.update(progress_line(entry, progress)),
            set_aside=set_aside,
        )
    except BaseException:
        line.close("")
        raise
    line.close(f"{entry.name}: whole and verified, {path}")
    return path


def run_download(options: argparse.Namespace) -> int:
    """Lists or downloads, and returns the exit code.

    Raises: DemoError, CatalogError, DownloadError.
    """
    catalog = load_catalog(options.catalog)
    if options.list:
        list_models(catalog, options.into)
        return 0
    if not options.ids:
        raise DemoError("Say what to download, by its id: python install.py download --list shows them.")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise DemoError("This Python has no huggingface_hub. Use the host's own Python, or run `python install.py` first.")
    entries = [catalog.get(entry_id) for entry_id in options.ids]
    for entry in entries:
        require_acknowledged(entry, options.accept_licence)
    for entry in entries:
        fetch(entry, options.into, options.set_aside)
    return 0
