"""Images and prompts encoded once to disk: one safetensors file per image and per distinct caption, found again by content."""

import hashlib
import logging
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from ... import disk
from ...errors import TrainingError, UnsupportedModelError
from ...models.header import METADATA, read_header
from .buckets import Item
from .examples import Batch, Conditioning, repeated, rows
from .files import open_picture
from .images import ImageItem
from .sealed import FORMAT, is_whole, load_sealed, save_sealed

logger = logging.getLogger("hyper_sd")


@dataclass(frozen=True)
class Encoders:
    """What turns images and prompts into what the network sees.

    Args:
        images: float32 [batch, 3, height, width] in [-1, 1] on the CPU -> scaled latents [batch, ...].
        prompts: texts -> conditioning, tensors [batch, ...] of the same shape for every text.
        fingerprint: names the encoders' weights and settings; files of another fingerprint are not used.
    """

    images: Callable[[torch.Tensor], torch.Tensor]
    prompts: Callable[[list[str]], Conditioning]
    fingerprint: str


@dataclass(frozen=True)
class Progress:
    """How far a process is with its share of the files.

    Args:
        done: files that are there.
        total: files of the share.
        eta_seconds: seconds that are left, None until the first file was written.
    """

    done: int
    total: int
    eta_seconds: float | None


class Clock:
    """Measures how fast the missing files of a share are written.

    Args:
        total: files of the share.
        missing: how many of them were not there at the start.
    """

    def __init__(self, total: int, missing: int):
        self.total, self.missing, self.start = total, missing, time.monotonic()

    def progress(self, written: float) -> Progress:
        """Returns the progress after so many of the missing files; a fraction of a file only counts for the time."""
        left = (time.monotonic() - self.start) / written * (self.missing - written) if written else None
        return Progress(self.total - self.missing + int(written), self.total, left)


def latents_path(folder: Path | str, fingerprint: str, item: Item) -> Path:
    """Returns where an image's latents are kept, by what decides its pixels and by its bucket."""
    return _path(folder, "image", fingerprint, item.digest, "{}x{}".format(*item.bucket))


def prompt_path(folder: Path | str, fingerprint: str, prompt: str) -> Path:
    """Returns where the conditioning of a prompt is kept; "" is that of Batch.unconditional."""
    return _path(folder, "prompt", fingerprint, prompt)


def _path(folder: Path | str, *content: str) -> Path:
    key = hashlib.sha256("\0".join((FORMAT, *content)).encode()).hexdigest()
    return Path(folder, key[:2], f"{key}.safetensors")


def encode(
    items: Sequence[Item],
    encoders: Encoders,
    folder: Path | str,
    batch_size: int = 8,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Progress]:
    """Encodes what the cache lacks, or holds damaged, and yields before the first batch and after each.

    Every file that is there is read and held to its digest. Prompts come before images, so that one model is needed at a time.
    Every file is written whole or not at all, so a run that was stopped goes on where it was. A new image costs its own
    encoding, a new caption that of its prompt.

    Args:
        items: captions are encoded for all of them, and pixels for those that are ImageItems.
        encoders: what encodes them.
        folder: of the cache.
        batch_size: images, or prompts, encoded together.
        share: (rank, world); of `world` processes this one encodes every world-th file, so that none is encoded twice.
    Raises: TrainingError for images that changed since the scan, values that are not finite, and a folder that is full.
    """
    if batch_size < 1 or not 0 <= share[0] < share[1]:
        raise TrainingError(f"Encoding needs a batch_size of 1 or more and 0 <= rank < world, got {batch_size} and {share}.")
    if share[0] == 0:
        disk.clear_parts(Path(folder), deep=True)
    texts = ("", *(item.caption for item in items))
    prompts = {prompt_path(folder, encoders.fingerprint, text): text for text in texts}
    images = {latents_path(folder, encoders.fingerprint, item): item for item in items if isinstance(item, ImageItem)}
    shares = [missing_files(files, share) for files in (prompts, images)]
    todo = [batch for _, missing in shares for batch in batches(missing, batch_size)]
    clock, written = Clock(sum(count for count, _ in shares), sum(map(len, todo))), 0
    yield clock.progress(0)
    for batch in todo:
        save_rows(batch, _encoded(list(batch.values()), encoders))
        written += len(batch)
        yield clock.progress(written)


def missing_files(files: Mapping[Path, Any], share: tuple[int, int]) -> tuple[int, dict[Path, Any]]:
    """Returns how many files a process is to look after, and those of them that are not there or damaged, which is told.

    Args:
        files: of all processes, with what each is encoded from.
        share: (rank, world), as encode() takes it.
    """
    own = dict(islice(files.items(), share[0], None, share[1]))
    missing = {path: entry for path, entry in own.items() if not is_whole(path)}
    damaged = [path for path in missing if path.exists()]
    if damaged:
        logger.warning(
            "%d of %d files of the cache are damaged or of a version without digests, and are made anew, first %s.",
            len(damaged), len(own), damaged[0],
        )  # fmt: skip
    return len(own), missing


def batches(files: Mapping[Path, Any], batch_size: int) -> list[dict[Path, Any]]:
    """Returns the files in batches of prompts, or of images of one size."""
    groups: dict[Hashable, list[tuple[Path, Any]]] = {}
    for path, entry in files.items():
        groups.setdefault(getattr(entry, "bucket", None), []).append((path, entry))
    return [dict(group[i : i + batch_size]) for group in groups.values() for i in range(0, len(group), batch_size)]


def _encoded(batch: list[str] | list[ImageItem], encoders: Encoders) -> Conditioning:
    with torch.no_grad():
        if isinstance(batch[0], str):
            tensors = dict(encoders.prompts(batch))
        else:
            tensors = {"latents": encoders.images(torch.stack([load_pixels(item) for item in batch]))}
    for name, tensor in tensors.items():
        if len(tensor) != len(batch):
            raise TrainingError(f"The encoder returned {len(tensor)} rows of {name} for a batch of {len(batch)}.")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            first = batch[0] if isinstance(batch[0], str) else batch[0].name
            raise TrainingError(
                f"Encoding the batch that starts with {first!r} gave values that are not finite in {name}; use an encoder in "
                "float32 or bfloat16."
            )
    return tensors


def load_pixels(item: ImageItem) -> torch.Tensor:
    """Returns the upright image on white, resized (Lanczos) and centre-cropped: float32 [3, height, width] in [-1, 1].

    Raises: TrainingError when the file is no longer the one that was scanned.
    """
    try:
        data = item.source.read()
    except OSError as error:
        raise TrainingError(f"{item.name} can no longer be read ({error}); scan the images again.") from error
    if hashlib.sha256(data).hexdigest() != item.digest:
        raise TrainingError(f"{item.name} changed after it was scanned; scan the images again.")
    image = _on_white(ImageOps.exif_transpose(open_picture(data)))
    pixels = np.array(ImageOps.fit(image, item.bucket, Image.Resampling.LANCZOS))
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div(127.5).sub(1).contiguous()


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def save_rows(paths: Iterable[Path], tensors: Conditioning) -> None:
    """Writes each row of tensors [batch, ...] into a file of its own.

    Raises: TrainingError as save_atomically().
    """
    for number, path in enumerate(paths):
        save_sealed(path, rows(tensors, slice(number, number + 1)))


def load_rows(paths: Sequence[Path], device: torch.device | str = "cpu") -> Conditioning:
    """Returns the tensors of files of equal shapes, joined along the batch.

    Raises: TrainingError for a file that is missing or damaged.
    """
    parts = [load_sealed(path) for path in paths]
    return {name: torch.cat([part[name] for part in parts]).to(device) for name in parts[0]}


def _shapes(path: Path) -> dict[str, tuple[int, ...]] | None:
    """Returns the shapes in a file whose head is whole, else None."""
    try:
        header = read_header(path)
    except (OSError, UnsupportedModelError):
        return None
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != METADATA}


class CachedExamples:
    """Encoded examples, read from disk batch by batch.

    Args:
        items: as encode() took them; the latents of other items than images are in the cache by now too.
        folder: of the cache.
        fingerprint: of the encoders.
        blank: [channels, height, width] of latents that are all zeros in place of those in the cache, for a training that draws
            all its pictures itself; None reads them.
    Raises: TrainingError when there are none, some are not encoded, or prompts differ in shape.
    """

    def __init__(self, items: Sequence[Item], folder: Path | str, fingerprint: str, blank: tuple[int, int, int] | None = None):
        self.blank = blank
        self._latents = [latents_path(folder, fingerprint, item) for item in items]
        self._prompts = [prompt_path(folder, fingerprint, item.caption) for item in items]
        self._texts = [item.caption for item in items]
        empty = prompt_path(folder, fingerprint, "")
        shapes = {path: _shapes(path) for path in {empty, *self._prompts, *(() if blank else self._latents)}}
        missing = sum(shape is None for shape in shapes.values())
        if missing or not items:
            raise TrainingError(
                f"{folder} lacks {missing} of the {len(shapes)} files of {len(items)} examples encoded by {fingerprint}; "
                "encode at least one image, and all of them, before training."
            )
        for item, path in zip(items, self._prompts, strict=True):
            if shapes[path] != shapes[empty]:
                raise TrainingError(
                    f"The caption of {item.name} was encoded to {shapes[path]}, the empty one to {shapes[empty]}; "
                    "use encoders that bring all prompts to one shape."
                )
        groups: dict[Hashable, list[int]] = {}
        for number, path in enumerate(self._latents):
            groups.setdefault(blank or shapes[path]["latents"], []).append(number)
        self.buckets, self._unconditional = list(groups.values()), load_rows([empty])

    def fingerprint(self) -> str:
        """Returns a hash over everything that is trained on; the files' names stand for their content."""
        names = (path.stem for path in (*self._latents, *self._prompts))
        return hashlib.sha256(" ".join(names).encode()).hexdigest()

    def batch(self, numbers: Sequence[int], draw: int) -> Batch:
        """Returns the examples of these numbers, as Examples.batch(); nothing is drawn anew."""
        if self.blank:
            latents = torch.zeros(len(numbers), *self.blank)
        else:
            latents = load_rows([self._latents[number] for number in numbers])["latents"]
        conditioning = load_rows([self._prompts[number] for number in numbers])
        prompts = tuple(self._texts[number] for number in numbers)
        return Batch(latents, conditioning, repeated(self._unconditional, len(numbers)), prompts)

    def largest(self) -> Batch:
        """Returns an example as Examples.largest(); all texts are of one length."""
        return max((self.batch(bucket[:1], 0) for bucket in self.buckets), key=lambda batch: batch.latents.numel())
