"""A folder of images with captions as training items."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from ...errors import TrainingError
from .captions import SIDECARS, UNREADABLE, Sidecars, is_table, nfc, table_captions
from .files import Source, is_picture, suffixes
from .images import Candidate, ImageRules, ImageSet, OnProgress, examine
from .remarks import Remark

UNREAD_PICTURE = "is a kind of picture that is not read here; save it as .png or .jpg"
NO_DATA = "is neither a picture nor a caption, and is not read"
LINK = "is a link to another folder, and is not followed"
SPECIAL = "is a pipe, a socket or a device and no file, and is not read"
ABOUT = re.compile(r"(readme|licen[cs]e|thumbs|desktop)(\..*)?", re.IGNORECASE)  # lie in many folders and are no data


def scan_folder(folder: Path | str, rules: ImageRules | None = None, progress: OnProgress | None = None) -> ImageSet:
    """Returns the images of a folder and its sub-folders, each decoded once to be sure of it.

    A caption is the text of the image's row in the nearest metadata.jsonl or metadata.csv (columns file_name, relative to that
    file, and text or caption). Where that is missing or blank, it is that of a file beside the image, as Sidecars says. Hidden
    files are left out, and whatever else is not read is noted.

    Args:
        folder: that holds the images and their captions.
        rules: which images are taken; None is ImageRules().
        progress: as OnProgress says.
    Raises: TrainingError when the folder cannot be read or holds nothing usable.
    """
    folder, skipped, notes = Path(folder), [], []
    if not folder.is_dir():
        raise TrainingError(f"{folder} is not a folder; give one that holds images and their captions.")
    files = _walk(folder, skipped, notes)
    images = [name for name in files if name.lower().endswith(suffixes())]
    captions = table_captions(files, {nfc(name) for name in images}, skipped, notes)
    sidecars, candidates = Sidecars(files, notes), []
    for name in images:
        try:
            text = captions.get(nfc(name), "").strip() or sidecars.caption(name)
            candidates.append(Candidate(name, files[name], text))
        except (OSError, ValueError, RecursionError) as error:
            skipped.append(Remark(name, UNREADABLE.format(error)))
    sidecars.note_unused(files)
    note_unread(files, skipped, notes)
    return examine(candidates, rules or ImageRules(), skipped, notes, str(folder), progress)


def folder_state(folder: Path) -> Iterable[str]:
    """Yields what changes when a file in a folder is added or removed, or an image, a caption or a table changes."""
    for name, source in _walk(folder, [], []).items():
        yield name
        if (name.lower().endswith((*suffixes(), *SIDECARS)) or is_table(name)) and source.path.exists():
            status = source.path.stat()
            yield f"{status.st_size} {status.st_mtime_ns}"


def note_unread(files: Iterable[str], skipped: list[Remark], notes: list[Remark]) -> None:
    """Adds to `skipped` the pictures that cannot be read here, and to `notes` what is neither picture, caption nor table."""
    for name in files:
        path = PurePosixPath(name)
        if path.suffix.lower() in (*suffixes(), *SIDECARS) or is_table(name):
            continue
        if is_picture(name):
            skipped.append(Remark(name, UNREAD_PICTURE))
        elif not ABOUT.fullmatch(path.name):
            notes.append(Remark(name, NO_DATA))


def _walk(folder: Path, skipped: list[Remark], notes: list[Remark]) -> Mapping[str, Source]:
    """Returns the files that are not hidden, sorted, by their names relative to the folder."""

    def unreadable(error: OSError) -> None:
        skipped.append(Remark(str(error.filename), f"cannot be read ({error.strerror})"))

    files = {}
    for parent, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        linked = [path for path in (Path(parent, name) for name in folders) if path.is_symlink()]
        notes += [Remark(path.relative_to(folder).as_posix(), LINK) for path in linked]
        for path in (Path(parent, name) for name in names if not name.startswith(".")):
            name = path.relative_to(folder).as_posix()
            if os.path.isfile(path) or not os.path.exists(path):  # what is gone, or a link to nowhere, is told where it is read
                files[name] = Source(path)
            else:
                skipped.append(Remark(name, SPECIAL))
    return dict(sorted(files.items(), key=lambda entry: (nfc(entry[0]), entry[0])))
