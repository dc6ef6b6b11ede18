"""Small image files for tests, red left of blue so that turning and cropping can be seen, and tar files of them."""

import io
import tarfile
from pathlib import Path

from PIL import Image

RED, BLUE = (255, 0, 0), (0, 0, 255)


def picture(size=(96, 96), left=RED, right=BLUE):
    """An image whose left half has one colour, its right half another."""
    image = Image.new("RGB", size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def encoded(image, suffix=".png", **options):
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, Image.registered_extensions()[suffix], **options)
    return buffer.getvalue()


def write(folder: Path, name: str, content: bytes | str | Image.Image, **options) -> Path:
    """Writes a file, an image in the format of its suffix."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Image.Image):
        content = encoded(content, path.suffix.lower(), **options)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def shard(path, members, form=tarfile.PAX_FORMAT):
    """Writes a tar of (name, bytes, text or a special member's type)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if content in {tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE}:
                member.type, member.linkname = content, "/etc/hostname"
                archive.addfile(member)
                continue
            data = content.encode() if isinstance(content, str) else content
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path
