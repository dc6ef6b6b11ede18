"""A blind comparison as one page that works from the disk: no name, no metadata and no order in it tells an arm."""

import base64
import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageCms, ImageOps

from ..disk import explain, whole_file
from ..errors import EvaluationError
from .comparison import Comparison, Picture

SOURCE = Path(__file__).with_name("compare_page")
SCRIPTS = ("texts.js", "sha256.js", "page.js")
PAGE, PICTURES = "compare.html", "pictures"
LOSSLESS = 24_000_000  # pixels of all pictures together, up to which they are written without loss
INSIDE = 48 * 2**20  # bytes of all pictures together, up to which they are put into the page itself
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class BlindPage:
    """A page that was written.

    Args:
        file: the page.
        inside: whether it holds the pictures itself; else they lie beside it in the folder PICTURES.
        lossless: whether the pictures are PNG; else they are JPEG of high quality.
        size: bytes of the page and of what lies beside it.
    """

    file: Path
    inside: bool
    lossless: bool
    size: int


def write_page(
    comparison: Comparison,
    folder: Path,
    question: str = "",
    inside: bool | None = None,
    longest: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> BlindPage:
    """Writes a comparison's page, with its pictures in it or beside it, and nothing that names an arm.

    Every picture is written anew in one format with one setting, without metadata, under its random id, and those of one name
    in one size. What the pictures look like is all that is left of their arms.

    Args:
        comparison: its pairs and pictures.
        folder: where the page goes; what has these names there is replaced.
        question: what is asked, "" for which picture is liked better.
        inside: whether the pictures go into the page; None decides by their size.
        longest: the longest side that a picture may have, in pixels; larger ones are scaled down. None keeps them.
        progress: is told after each picture how many are done, and of how many.
    Raises: EvaluationError for a picture that cannot be read and a folder that cannot be written.
    """
    folder = Path(folder)
    sides = _common_sides(comparison.pictures, longest)
    lossless = sum(side**2 for side in sides.values()) <= LOSSLESS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".", suffix=".part") as work:
            for done, (key, picture) in enumerate(sorted(comparison.pictures.items()), 1):
                content = encode(read_plain(picture.path, sides[key]), lossless)
                Path(work, f"{key}.{_ending(lossless)}").write_bytes(content)
                progress(done, len(comparison.pictures))
            files = sorted(Path(work).iterdir())
            size = sum(path.stat().st_size for path in files)
            inside = size <= INSIDE if inside is None else inside
            if not inside:
                _place_beside(Path(work), folder / PICTURES)
            with whole_file(folder / PAGE) as partial, partial.open("wb") as page:
                page.writelines(_parts(_data(comparison, question, inside, lossless), files if inside else []))
    except OSError as error:
        raise EvaluationError(f"The page was not written: {explain(error, folder)}.") from error
    size = (folder / PAGE).stat().st_size + (0 if inside else size)
    return BlindPage(folder / PAGE, inside, lossless, size)


def uneven_arms(comparison: Comparison) -> dict[str, int]:
    """Returns the longest side of a picture of each arm, where pictures of one name differ in it; else nothing.

    The page shows them in one size, but a picture that was scaled up looks softer.

    Raises: EvaluationError for a picture that cannot be read.
    """
    sides = {key: max(_size_of(picture.path)) for key, picture in comparison.pictures.items()}
    if all(sides[pair.left] == sides[pair.right] for pair in comparison.pairs):
        return {}
    return {arm: max(sides[key] for key, p in comparison.pictures.items() if p.arm == arm) for arm in comparison.arms}


def read_plain(path: Path, side: int | None = None) -> Image.Image:
    """Returns a picture as RGB without any metadata: turned as it says, in sRGB, on white where it is transparent.

    Args:
        path: its file.
        side: the length in pixels that its longest side gets; None keeps its size.
    Raises: EvaluationError where it cannot be read.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16 bits in one channel
                image = image.convert("I").point(lambda value: value / 256).convert("L")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, (*WHITE, 255)), image)
            image = _in_srgb(image, opened.info.get("icc_profile"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise EvaluationError(f"The picture {path} cannot be read ({error}); remove it or write it again.") from error
    if side and max(image.size) != side:
        scale = side / max(image.size)
        image = image.resize([max(round(length * scale), 1) for length in image.size], Image.Resampling.LANCZOS)
    return Image.frombytes("RGB", image.size, image.tobytes())  # nothing but pixels


def encode(image: Image.Image, lossless: bool) -> bytes:
    """Returns an RGB picture as PNG, or as JPEG with colours in full resolution, always with the same settings."""
    content = io.BytesIO()
    if lossless:
        image.save(content, "PNG", compress_level=6)
    else:
        image.save(content, "JPEG", quality=95, subsampling=0, optimize=True)
    return content.getvalue()


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile and image.mode in {"RGB", "RGBA", "L", "CMYK"}:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            image = image.convert("RGB") if image.mode == "RGBA" else image
            return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            pass  # browsers show a picture with a profile that is none as sRGB as well
    return image.convert("RGB")


def _size_of(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise EvaluationError(f"The picture {path} cannot be read ({error}); remove it or write it again.") from error


def _common_sides(pictures: dict[str, Picture], longest: int | None) -> dict[str, int]:
    """Returns the longest side of each picture on the page, by id: that of the largest picture of its name."""
    if longest is not None and longest < 16:
        raise EvaluationError(f"longest must be at least 16 pixels, got {longest}; leave it out to keep the pictures' sizes.")
    largest: dict[str, int] = {}
    for picture in pictures.values():
        largest[picture.name] = max(largest.get(picture.name, 0), *_size_of(picture.path))
    return {key: min(largest[picture.name], longest or largest[picture.name]) for key, picture in pictures.items()}


def _ending(lossless: bool) -> str:
    return "png" if lossless else "jpg"


def _place_beside(work: Path, target: Path) -> None:
    """Moves the pictures of a work folder beside the page, in place of those of an earlier one."""
    if target.exists():
        shutil.rmtree(target)
    target.mkdir()
    for path in work.iterdir():
        path.replace(target / path.name)


def _data(comparison: Comparison, question: str, inside: bool, lossless: bool) -> dict:
    pairs = comparison.pairs
    return {
        "comparison": comparison.id,
        "question": question,
        "pairs": [[pair.left, pair.right] for pair in pairs],
        "prompts": [comparison.pictures[pair.left].prompt for pair in pairs],
        "type": "image/png" if lossless else "image/jpeg",
        "ending": _ending(lossless),
        "folder": "" if inside else PICTURES,
    }


def _source(name: str) -> str:
    return (SOURCE / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def _parts(data: dict, files: list[Path]) -> Iterator[bytes]:
    """Yields the page piece by piece, so that no more than one picture is in memory.

    Its policy lets the browser load nothing but the page's own style, script and pictures, and send nothing to anybody.

    Args:
        data: what the script reads.
        files: the pictures that go into the page, none where they lie beside it.
    """
    style, script = _source("page.css"), "\n".join(map(_source, SCRIPTS))
    pictures = "img-src data: 'self' file:" if data["folder"] else "img-src data:"
    rules = ("default-src 'none'", f"style-src {_hash(style)}", f"script-src {_hash(script)}", pictures)
    filled = {
        "policy": "; ".join([*rules, "base-uri 'none'", "form-action 'none'"]),
        "style": style,
        "script": script,
        "data": json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),
    }
    before, after = _source("page.html").split("{{pictures}}")
    yield _filled(before, filled)
    for path in files:
        yield f'<script type="text/plain" id="p-{path.stem}">'.encode()
        yield base64.b64encode(path.read_bytes())
        yield b"</script>\n"
    yield _filled(after, filled)


def _filled(text: str, parts: dict[str, str]) -> bytes:
    first, *rest = text.split("{{")
    pieces = [first]
    for piece in rest:
        name, following = piece.split("}}", 1)
        pieces += [parts[name], following]
    return "".join(pieces).encode()
