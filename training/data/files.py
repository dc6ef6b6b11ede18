"""Pictures and texts as people have them on disk: which formats and encodings are read, and how."""

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from PIL import Image, ImageFile, features

from ...disk import open_file
from ...errors import TrainingError
from .buckets import Size
from .remarks import Remark

ENDINGS = {  # of every format that a file may reach a decoder of, whatever its name says
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif"),  # where another program has given Pillow a decoder
}
CODECS = {"AVIF": "avif", "WEBP": "webp"}  # formats that Pillow knows also where it was built without their decoder
UNKNOWN_TO_PILLOW = (".jxl", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw")
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I", "I;16", "I;16B", "I;16L"}
SEVERAL = ("GIF", "PNG", "WEBP", "TIFF", "AVIF")  # may hold several pictures; a JPEG's others are previews
ORIENTATION = 0x0112  # EXIF tag; values above 4 turn the image on its side
MARKS = {  # of byte order; the first four bytes of UTF-32 begin like UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
GUESSED = "is not UTF-8 and was read as Windows-1252; save it as UTF-8 where letters are wrong"


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
        """Returns the bytes.

        Raises: OSError of the system, and for a pipe, a socket or a device.
        """
        with open_file(self.path) as file:
            file.seek(self.offset)
            return file.read(self.size)

    def read_text(self, name: str, notes: list[Remark]) -> str:
        """Returns the bytes as text: by their byte order mark, else UTF-8, else Windows-1252.

        Args:
            name: of the file, for the note.
            notes: takes a note where the encoding is a guess.
        Raises: OSError; ValueError for bytes that are no text in any of these.
        """
        data = self.read()
        encoding = next((encoding for mark, encoding in MARKS.items() if data.startswith(mark)), "utf-8")
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            if encoding != "utf-8" or b"\0" in data:
                raise
        text = data.decode("cp1252")
        notes.append(Remark(name, GUESSED))
        return text


@lru_cache(maxsize=1)
def formats() -> tuple[str, ...]:
    """Returns the formats of ENDINGS that Pillow can read here."""
    Image.init()
    lacking = {name for name, codec in CODECS.items() if codec in features.modules and not features.check(codec)}
    return tuple(name for name in ENDINGS if name in Image.OPEN and name not in lacking)


def suffixes() -> tuple[str, ...]:
    """Returns the endings, in lower case, of pictures that can be read here."""
    return tuple(ending for name in formats() for ending in ENDINGS[name])


def is_picture(name: str) -> bool:
    """Returns whether a file's ending is that of a picture, also of one that cannot be read here."""
    ending = PurePosixPath(name).suffix.lower()
    known = (*(ending for endings in ENDINGS.values() for ending in endings), *UNKNOWN_TO_PILLOW)
    return ending in known or ending in Image.registered_extensions()


def open_picture(data: bytes) -> Image.Image:
    """Returns a picture whose pixels are not decoded yet.

    Raises: UnidentifiedImageError for other formats, and whatever Pillow raises for damaged ones.
    """
    return Image.open(io.BytesIO(data), formats=formats())


def checked(data: bytes) -> tuple[Size, int]:
    """Decodes a picture, a JPEG at an eighth of its size, which reads all bytes too; returns its upright size and its frames.

    Raises: UnidentifiedImageError for other formats, TrainingError for pixels that cannot become RGB, and whatever Pillow's
        decoders raise for damaged bytes.
    """
    image = open_picture(data)
    width, height = image.size
    frames = getattr(image, "n_frames", 1) if image.format in SEVERAL else 1
    image.draft("RGB", (1, 1))
    image.load()
    if image.format == "TIFF":  # Pillow has turned it upright
        width, height = image.size
    if image.mode not in MODES or (image.mode == "I" and image.format == "TIFF"):
        raise TrainingError(f"its pixels are of the kind {image.mode}; save it as RGB with 8 bits")
    turned = image.getexif().get(ORIENTATION, 1) > 4
    return ((height, width) if turned else (width, height)), frames


@contextmanager
def truncation_is_an_error() -> Iterator[None]:
    """Makes Pillow refuse images that end early; hosts may have told it to fill them up with grey, which must not be learnt."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
