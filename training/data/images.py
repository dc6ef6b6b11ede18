"""A folder of images as training items, each with its caption and its aspect bucket."""

import csv
import hashlib
import io
import json
import os
import posixpath
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image, ImageFile, UnidentifiedImageError

from ...errors import TrainingError
from .buckets import Item, Size, aspect_buckets, nearest_bucket

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # the only decoders a file may reach, whatever its name says
METADATA = ("metadata.csv", "metadata.jsonl")  # as the imagefolder of Hugging Face datasets
ORIENTATION = 0x0112  # EXIF tag; values above 4 turn the image on its side

OnProgress = Callable[[int, int], None]  # (images done, images in all), after every image; it may raise to stop


@dataclass(frozen=True)
class ImageRules:
    """Which images are taken, and to what sizes they are brought.

    Args:
        resolution: side in pixels of the square whose area no bucket exceeds.
        step: sides are multiples of it, usually 64 pixels or 8 times the autoencoder's factor.
        max_aspect: of the longest bucket; longer images are cropped to it.
        min_side: images with a shorter side in pixels are skipped; None is half the resolution.
        default_caption: of images without a caption; None skips them.
    Raises: TrainingError naming the value, what is allowed and what to use.
    """

    resolution: int = 512
    step: int = 64
    max_aspect: float = 2.0
    min_side: int | None = None
    default_caption: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.step <= self.resolution:
            raise TrainingError(f"resolution must be at least one step, got {self.resolution} and {self.step}; use 512 and 64.")
        if not 1 <= self.max_aspect <= 16:
            raise TrainingError(f"max_aspect must lie in [1, 16], got {self.max_aspect}; 2 is usual, 1 makes squares only.")
        if self.min_side is not None and self.min_side < 1:
            raise TrainingError(f"min_side must be at least 1 pixel, got {self.min_side}; None is half the resolution.")

    @property
    def buckets(self) -> tuple[Size, ...]:
        """The sizes that images are brought to."""
        return aspect_buckets(self.resolution, self.step, self.max_aspect)

    @property
    def smallest(self) -> int:
        """The shortest side in pixels that an image may have."""
        return self.resolution // 2 if self.min_side is None else self.min_side


@dataclass(frozen=True)
class Source:
    """Bytes on disk.

    Args:
        path: of the file.
        offset: of the first byte.
        size: how many bytes; -1 is to the file's end.
    """

    path: Path
    offset: int = 0
    size: int = -1

    def read(self) -> bytes:
        """Returns the bytes."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def read_text(self) -> str:
        """Returns the bytes as UTF-8 text."""
        return self.read().decode("utf-8-sig")


@dataclass(frozen=True)
class Candidate:
    """An image that has not been looked into.

    Args:
        name: for messages.
        source: its bytes.
        caption: its text, blank where it has none.
    """

    name: str
    source: Source
    caption: str


@dataclass(frozen=True)
class ImageItem(Item):
    """An image that can be read; its digest is the sha256 of its bytes.

    Args:
        source: its bytes.
    """

    source: Source


@dataclass(frozen=True)
class Skipped:
    """A file that is not used, by its name for messages, and the reason as the rest of a sentence about it."""

    name: str
    reason: str


@dataclass(frozen=True)
class ImageSet:
    """The images that are used and the files that are not, in an order that depends on names only."""

    items: tuple[ImageItem, ...]
    skipped: tuple[Skipped, ...]


def scan_folder(folder: Path | str, rules: ImageRules | None = None, progress: OnProgress | None = None) -> ImageSet:
    """Returns the images of a folder and its sub-folders, each decoded once to be sure of it.

    A caption is the text of the image's row in the nearest metadata.jsonl or metadata.csv (columns file_name, relative to that
    file, and text or caption). Where that is missing or blank, it is the .txt of the same name. Hidden files and linked folders
    are left out.

    Args:
        folder: that holds the images and their captions.
        rules: which images are taken; None is ImageRules().
        progress: as OnProgress says.
    Raises: TrainingError when the folder cannot be read or holds nothing usable.
    """
    folder, skipped = Path(folder), []
    if not folder.is_dir():
        raise TrainingError(f"{folder} is not a folder; give one that holds images and their captions.")
    files = _walk(folder, skipped)
    images = [name for name in files if name.lower().endswith(SUFFIXES)]
    texts = {_stem(name): path for name, path in files.items() if name.lower().endswith(".txt")}
    captions = _metadata(files, {_nfc(name) for name in images}, skipped)
    candidates = []
    for name in images:
        try:
            text = captions.get(_nfc(name), "").strip()
            if not text and _stem(name) in texts:
                text = Source(texts[_stem(name)]).read_text()
            candidates.append(Candidate(name, Source(files[name]), text))
        except (OSError, UnicodeDecodeError) as error:
            skipped.append(Skipped(name, f"its caption cannot be read as UTF-8 text ({error})"))
    return examine(candidates, rules or ImageRules(), skipped, str(folder), progress)


def _nfc(name: str) -> str:
    """Composes letters and accents, which macOS may hand out apart where a metadata file holds them together."""
    return unicodedata.normalize("NFC", name)


def _stem(name: str) -> str:
    return _nfc(PurePosixPath(name).with_suffix("").as_posix())


def _walk(folder: Path, skipped: list[Skipped]) -> dict[str, Path]:
    """Returns the files that are not hidden, sorted, by their names relative to the folder."""

    def unreadable(error: OSError) -> None:
        skipped.append(Skipped(str(error.filename), f"cannot be read ({error.strerror})"))

    files = {}
    for parent, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(parent, name) for name in names if not name.startswith(".")]
        files |= {path.relative_to(folder).as_posix(): path for path in paths}
    return dict(sorted(files.items(), key=lambda entry: (_nfc(entry[0]), entry[0])))


def _metadata(files: Mapping[str, Path], images: set[str], skipped: list[Skipped]) -> dict[str, str]:
    """Returns the captions of all metadata files by the image's name; a deeper file's caption replaces a shallower one's."""
    captions: dict[str, str] = {}
    tables = [name for name in files if posixpath.basename(name).lower() in METADATA]
    for table in sorted(tables, key=lambda name: (name.count("/"), name)):
        try:
            for number, row in _rows(Source(files[table]).read_text(), table.lower().endswith(".csv")):
                file_name, text = row.get("file_name"), row.get("text") or row.get("caption") or ""
                if not isinstance(file_name, str) or not isinstance(text, str):
                    skipped.append(Skipped(f"{table}, row {number}", "needs file_name and text (or caption), both strings"))
                    continue
                name = _nfc(posixpath.normpath(posixpath.join(posixpath.dirname(table), file_name.replace("\\", "/"))))
                if name in images:
                    captions[name] = text
                else:
                    skipped.append(Skipped(name, f"row {number} of {table} names it, but the folder has no such image"))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            skipped.append(Skipped(table, f"cannot be read as UTF-8 text ({error})"))
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


def examine(
    candidates: Sequence[Candidate],
    rules: ImageRules,
    skipped: Sequence[Skipped],
    place: str,
    progress: OnProgress | None = None,
) -> ImageSet:
    """Returns the candidates that are whole, large enough and captioned as items, and the others as skipped.

    Args:
        candidates: the images.
        rules: which of them are taken.
        skipped: files that were skipped before.
        place: where the images come from, for the error.
        progress: as OnProgress says.
    Raises: TrainingError when none is left, with the first reasons.
    """
    items, skipped = [], list(skipped)
    with _truncation_is_an_error(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done, result in enumerate(pool.map(lambda candidate: _probe(candidate, rules), candidates), 1):
            (items if isinstance(result, ImageItem) else skipped).append(result)
            if progress:
                progress(done, len(candidates))
    if not items:
        reasons = "; ".join(f"{entry.name}: {entry.reason}" for entry in skipped[:5]) or "there is no image"
        raise TrainingError(
            f"No usable image in {place} ({reasons}). Training takes {', '.join(SUFFIXES)} with sides of {rules.smallest} "
            "pixels or more, each with a caption in a .txt of the same name or in a metadata table; or set default_caption."
        )
    return ImageSet(tuple(items), tuple(skipped))


@contextmanager
def _truncation_is_an_error() -> Iterator[None]:
    """Makes Pillow refuse images that end early; hosts may have told it to fill them up with grey, which must not be learnt."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _probe(candidate: Candidate, rules: ImageRules) -> ImageItem | Skipped:
    caption = candidate.caption.encode("utf-8", "replace").decode().strip()  # JSON may hold halves of a surrogate pair
    if not caption:
        if rules.default_caption is None:
            return Skipped(candidate.name, "has no caption; write one, or set default_caption")
        caption = rules.default_caption
    try:
        data = candidate.source.read()
        size = _checked_size(data)
    except UnidentifiedImageError:
        return Skipped(candidate.name, f"is not a {', '.join(FORMATS)} image")
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead them to; the reason is listed
        return Skipped(candidate.name, f"cannot be read ({error or type(error).__name__})")
    if min(size) < rules.smallest:
        return Skipped(candidate.name, f"is {size[0]} x {size[1]}, its shorter side less than {rules.smallest} pixels")
    bucket = nearest_bucket(size, rules.buckets)
    return ImageItem(candidate.name, caption, bucket, hashlib.sha256(data).hexdigest(), candidate.source)


def _checked_size(data: bytes) -> Size:
    """Decodes the image, a JPEG at an eighth of its size, which reads all bytes too, and returns the upright image's size."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    image.draft("RGB", (1, 1))
    image.load()
    return (height, width) if image.getexif().get(ORIENTATION, 1) > 4 else (width, height)
