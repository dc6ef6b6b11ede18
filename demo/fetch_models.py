"""`python install.py download`: catalogue files for people without a browser, into the host's own folders."""

import argparse
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from ..disk import format_bytes
from ..models.catalog import HEADINGS, load_catalog, require_acknowledged
from ..models.entry import FOLDERS, Entry
from ..models.files import UNVERIFIED, index_folders, look
from ..models.host_folders import HOST_ENDINGS, HOST_FOLDERS, SAFETENSORS
from ..models.progress import Progress, State, format_duration
from ..models.search import MORE, SIZE_UNKNOWN, is_found, names_its_method
from .console import StatusLine, say, share_bar
from .errors import DemoError
from .host import find_comfyui
from .requirements import ROOT


def add_download_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `download` to a parser."""
    parser.add_argument("ids", nargs="*", metavar="ID", help="what to fetch, by its id in --list")
    parser.add_argument(
        "--list", action="store_true", help="show every file with its id, size and state, or those that fit the words given"
    )
    parser.add_argument("--into", type=Path, metavar="DIR", help="the folder to put it into; default: the host's own")
    parser.add_argument("--catalog", type=Path, metavar="FILE", help="a catalog.json of your own entries")
    parser.add_argument("--accept-licence", action="store_true", help="you have read the licence of the file and accept it")
    parser.add_argument("--set-aside", action="store_true", help="rename a corrupt file and download it again")


def find_host(*, root: Path = ROOT, home: Path | None = None) -> tuple[str, Path] | None:
    """Returns the host around this pack, or the ComfyUI it would find: its key in HOST_FOLDERS, and its folder of models.

    A WebUI that was started with other folders for its models is not asked for them: --into names one of those.

    Args:
        root: this pack's folder.
        home: the user's folder.
    Returns: None when there is no host.
    """
    around = root.parent.parent
    # Started with --data-dir, a WebUI keeps models and extensions away from its program.
    if root.parent.name == "extensions" and any((around / part).is_dir() for part in ("modules", "models/Stable-diffusion")):
        return "forge" if (around / "modules_forge").is_dir() else "a1111", around / "models"
    comfyui = find_comfyui(root=root, home=home)
    return ("comfyui", comfyui / "models") if comfyui else None


def model_folders(kind: str, into: Path | None = None, **where: Path) -> list[Path]:
    """Returns the folders for a kind of file, the one to download into first; none without a host.

    Args:
        kind: a key of HOST_FOLDERS' tables, such as "loras".
        into: the folder that takes their place.
        where: as find_host's.
    """
    if into:
        return [into]
    host, models = find_host(**where) or (None, None)
    return [models / folder for folder in HOST_FOLDERS[host][kind]] if host else []


def progress_line(entry: Entry, progress: Progress) -> str:
    """Returns "name [###...] 34 % of 787 MB  12 MB/s  43 s left", or what it waits for."""
    bar = share_bar(progress.bytes_done, progress.bytes_total)
    whole = f" of {format_bytes(progress.bytes_total)}" if progress.bytes_total else ""
    parts = [f"{entry.name} [{bar}] {progress.percent} %{whole}"]
    if progress.state is State.VERIFYING:
        parts.append("verifying")
    elif progress.rate and progress.eta_seconds is not None:
        parts += [f"{format_bytes(progress.rate)}/s", f"{format_duration(progress.eta_seconds)} left"]
    return "  ".join([*parts, progress.note]).rstrip()


def list_line(entry: Entry, state: str, note: str) -> str:
    """Returns an entry's line of the list: its id, size, state, title, method where it is another one, and a note."""
    size = format_bytes(entry.approximate_size) if entry.approximate_size else "?"
    method = "" if entry.recipe is None or names_its_method(entry) else f"({entry.method})"
    asked = "" if entry.approximate_size else SIZE_UNKNOWN
    told = " ".join(filter(None, [entry.title, method]))
    return "  ".join(filter(None, [f"  {entry.id:36} {size:>8}  {state:8} {told}", asked, note]))


def list_models(entries: Iterable[Entry], into: Path | None) -> None:
    """Writes every entry's id, size, state and title, by family, other methods' files below Hyper-SD's own.

    The state is "-" where there is no folder to look in.
    """
    entries = list(entries)
    folders = {kind: model_folders(kind, into) for kind in FOLDERS.values()}
    indexes = {kind: index_folders(listed) for kind, listed in folders.items() if listed}
    for key, heading in HEADINGS.items():
        listed = [entry for entry in entries if entry.family == key]
        own, others = ([e for e in listed if (e.recipe is None) is is_own] for is_own in (True, False))
        for title, group in ((heading, own), (f"{heading}, {MORE}", others)):
            if group:
                say(f"\n{title}")
            for entry in group:
                found = look(entry, indexes[entry.folder]) if entry.folder in indexes else None
                say(list_line(entry, *((found.state.value, found.note) if found else ("-", ""))))


def fetch(entry: Entry, into: Path | None, set_aside: bool) -> Path:
    """Downloads one entry with a progress line and returns the file.

    Raises: DemoError without a host and a folder; DownloadError.
    """
    from ..models.download import download  # needs what the host has installed

    folders = model_folders(entry.folder, into)
    if not folders:
        raise DemoError("Found no ComfyUI or A1111 around this folder; say where the file shall go: --into FOLDER.")
    line, host = StatusLine(), None if into else find_host()
    try:
        path = download(
            entry,
            folders[0],
            also=folders[1:],
            progress=lambda progress: line.update(progress_line(entry, progress)),
            set_aside=set_aside,
            endings=HOST_ENDINGS[host[0]] if host else SAFETENSORS,
        )
    except BaseException:
        line.close("")
        raise
    line.close(f"{entry.name}: {'whole and verified' if entry.sha256 else 'whole'}, {path}")
    if not entry.sha256:
        say(UNVERIFIED)
    return path


def run_download(options: argparse.Namespace) -> int:
    """Lists or downloads, and returns the exit code.

    Raises: DemoError, CatalogError, DownloadError.
    """
    catalog = load_catalog(options.catalog)
    if options.list:
        asked = " ".join(options.ids)
        found = [entry for entry in catalog if is_found(entry, asked)]
        if not found:
            raise DemoError(f"Nothing found for {asked!r}. Try fewer words, such as: download --list lightning 4")
        list_models(found, options.into)
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
