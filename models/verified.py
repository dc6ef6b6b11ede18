"""What the hub itself said of files whose SHA-256 the catalogue does not know, kept for a person from their downloads."""

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..disk import open_file, write_whole
from ..errors import HyperSDError
from .catalog import Catalog
from .entry import Entry

NAME = "verified.json"  # beside the person's own catalogue
_SHA256 = re.compile(r"[0-9a-f]{64}")
_log = logging.getLogger("hyper_sd")


def remember(path: Path, entry: Entry, size: int, sha256: str) -> None:
    """Keeps what the hub said of a file that was fetched, so that it is known by its content from now on, under any name.

    A record that cannot be written is said in the log: the file is whole, and only its name tells it later.

    Args:
        path: of the record, made if need be.
        entry: without a hash of its own.
        size: in bytes.
        sha256: 64 hex digits, from the hub and no mirror.
    """
    told = {"repo": entry.repo, "file": entry.file, "size": size, "sha256": sha256}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps({**_read(path), entry.id: told}, indent=1).encode())
    except (OSError, HyperSDError) as error:
        _log.warning("%s could not be written (%s); %s will be known by its name alone.", path, error, entry.name)


def with_verified(catalog: Catalog, path: Path) -> Catalog:
    """Returns a catalogue whose entries without a hash have the one that was kept for the same file of the hub.

    Args:
        catalog: the pack's and the person's own.
        path: of the record, which need not exist.
    """
    told = _read(path)
    return replace(catalog, entries=tuple(_completed(entry, told.get(entry.id)) for entry in catalog))


def _completed(entry: Entry, told: Any) -> Entry:
    if entry.sha256 or not isinstance(told, dict) or (told.get("repo"), told.get("file")) != (entry.repo, entry.file):
        return entry
    size, sha256 = told.get("size"), told.get("sha256")
    is_whole = type(size) is int and size > 0 and isinstance(sha256, str) and _SHA256.fullmatch(sha256)
    return replace(entry, size=size, sha256=sha256) if is_whole else entry


def _read(path: Path) -> dict[str, Any]:
    try:
        with open_file(path) as file:
            told = json.loads(file.read())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        _log.warning("%s cannot be read (%s); files of other methods are told by their names until it is mended.", path, error)
        return {}
    return told if isinstance(told, dict) else {}
