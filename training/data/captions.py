"""Captions as people keep them: a file beside each picture, or a table for many."""

import csv
import io
import json
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath

from .files import Source, is_picture, suffixes
from .remarks import Remark

SIDECARS = (".txt", ".caption", ".json")  # the first that is not blank
METADATA = ("metadata.csv", "metadata.jsonl")  # as the imagefolder of Hugging Face datasets
UNREADABLE = "its caption cannot be read ({}); save it as UTF-8 text"
NO_TEXT = 'holds no "text" or "caption"'


def nfc(name: str) -> str:
    """Composes letters and accents, which macOS may hand out apart where a metadata file holds them together."""
    return unicodedata.normalize("NFC", name)


def _key(name: str) -> str:
    """Returns a name that does not depend on how letters are composed, nor on the case of its ending."""
    path = PurePosixPath(nfc(name))
    return path.with_suffix(path.suffix.lower()).as_posix()


class Sidecars:
    """The files of a folder or a shard that hold the caption of one picture each: x.txt or x.png.txt for x.png.

    Args:
        files: all that there are, by their names with / between folders.
        notes: takes what is to be said of them.
    """

    def __init__(self, files: Mapping[str, Source], notes: list[Remark]):
        self._notes, self._used = notes, set()
        self._files: dict[tuple[str, str], tuple[str, Source]] = {}
        for name, source in files.items():
            path = PurePosixPath(name)
            if path.suffix.lower() in SIDECARS:
                place = _key(path.with_suffix("").as_posix()), path.suffix.lower()
                if place in self._files:
                    notes.append(Remark(name, f"is not used, {self._files[place][0]} has the same name"))
                else:
                    self._files[place] = name, source

    def caption(self, picture: str) -> str:
        """Returns the caption of a picture, blank where it has none.

        Raises: OSError, ValueError and RecursionError for a file that cannot be read.
        """
        for ending in SIDECARS:
            for key in _keys(picture):
                name, source = self._files.get((key, ending), ("", None))
                text = self._read(name, source, ending) if source else ""
                if text.strip():
                    return text
        return ""

    def _read(self, name: str, source: Source, ending: str) -> str:
        self._used.add(name)
        text = source.read_text(name, self._notes)
        if ending != ".json" or not text.strip():
            return text
        table = json.loads(text)
        text = (table.get("text") or table.get("caption") or "") if isinstance(table, dict) else ""
        if not isinstance(text, str) or not text.strip():
            self._notes.append(Remark(name, NO_TEXT))
            return ""
        return text

    def note_unused(self, names: Iterable[str]) -> None:
        """Notes the files that were not read; those of a picture that cannot be read are told of with that picture.

        Args:
            names: of all files.
        """
        read, unread = set(), set()
        for name in filter(is_picture, names):
            (read if name.lower().endswith(suffixes()) else unread).update(_keys(name))
        for (key, _), (name, _) in self._files.items():
            if name not in self._used and (key in read or key not in unread):
                reason = "is not used, its picture's caption stands elsewhere" if key in read else "belongs to no picture"
                self._notes.append(Remark(name, reason))


def _keys(picture: str) -> tuple[str, str]:
    return _key(picture), _key(PurePosixPath(picture).with_suffix("").as_posix())


def is_table(name: str) -> bool:
    """Returns whether a file is a table of captions by its name."""
    return posixpath.basename(name).lower() in METADATA


def table_captions(files: Mapping[str, Source], images: set[str], skipped: list[Remark], notes: list[Remark]) -> dict[str, str]:
    """Returns the captions of all tables by the image's name; a deeper table's caption replaces a shallower one's.

    Args:
        files: all of a folder, by their names.
        images: names of the images that can be read, as nfc() returns them.
        skipped: takes rows that cannot be used.
        notes: takes what else is to be said.
    """
    captions: dict[str, str] = {}
    pictures = {nfc(name) for name in files if is_picture(name)}
    for table in sorted(filter(is_table, files), key=lambda name: (name.count("/"), name)):
        try:
            for number, row in _rows(files[table].read_text(table, notes), table.lower().endswith(".csv")):
                file_name, text = row.get("file_name"), row.get("text") or row.get("caption") or ""
                if not isinstance(file_name, str) or not isinstance(text, str):
                    skipped.append(Remark(f"{table}, row {number}", "needs file_name and text (or caption), both strings"))
                    continue
                name = nfc(posixpath.normpath(posixpath.join(posixpath.dirname(table), file_name.replace("\\", "/"))))
                if name in images:
                    captions[name] = text
                elif name not in pictures:  # what is there and cannot be read is told of elsewhere
                    skipped.append(Remark(name, f"row {number} of {table} names it, but the folder has no such image"))
        except (OSError, UnicodeError, csv.Error) as error:
            skipped.append(Remark(table, f"cannot be read as text ({error}); save it as UTF-8"))
    return captions


def _rows(text: str, is_csv: bool) -> Iterator[tuple[int, Mapping]]:
    """Yields (number counted from 1, row) for a table's rows; a line that is not a JSON object gives an empty row."""
    if is_csv:
        yield from enumerate(csv.DictReader(io.StringIO(text, newline="")), 1)
        return
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would also cut at U+2028, which JSON may hold
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            yield number, row if isinstance(row, dict) else {}
