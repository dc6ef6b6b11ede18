"""Images and prompts encoded once to disk: one safetensors file per image and per distinct caption, found again by content."""

import hashlib
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from ...errors import TrainingError
from ..checkpoint import save_atomically
from .examples import Batch, Conditioning, rows
from .images import ImageItem, load_pixels

FORMAT = "hyper_sd cache 1"  # part of every name: files of another format are not found


class Captioned(Protocol):
    """What the cache needs to know of an item's text."""

    caption: str


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
        eta_seconds: None until something was made.
    """

    done: int
    total: int
    eta_seconds: float | None


class Clock:
    """Turns what was made of the missing files into Progress.

    Args:
        total: files of the share.
        missing: of them, those that were not there at the start.
    """

    def __init__(self, total: int, missing: int):
        self.total, self.missing, self.start = total, missing, time.monotonic()

    def progress(self, made: float) -> Progress:
        """Returns the progress after so many of the missing files; a part of one counts for the time alone."""
        left = (time.monotonic() - self.start) / made * (self.missing - made) if made else None
        return Progress(self.total - self.missing + int(made), self.total, left)


def latents_path(folder: Path | str, fingerprint: str, item: ImageItem) -> Path:
    """Returns where the latents of these image bytes in this bucket are kept."""
    return _path(folder, "image", fingerprint, item.digest, "{}x{}".format(*item.bucket))


def prompt_path(folder: Path | str, fingerprint: str, prompt: str) -> Path:
    """Returns where the conditioning of a prompt is kept; "" is that of Batch.unconditional."""
    return _path(folder, "prompt", fingerprint, prompt)


def _path(folder: Path | str, *content: str) -> Path:
    key = hashlib.sha256("\0".join((FORMAT, *content)).encode()).hexdigest()
    return Path(folder, key[:2], f"{key}.safetensors")


def encode(
    items: Sequence[ImageItem],
    encoders: Encoders,
    folder: Path | str,
    batch_size: int = 8,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Progress]:
    """Encodes what `folder` lacks, or holds damaged, and yields before the first batch and after each.

    Prompts come before images, so that one model is needed at a time. Every file is written whole or not at all: a run that was
    stopped goes on where it was, a new image costs itself, a new caption its prompt.

    Args:
        items: the images with their captions.
        encoders: what encodes them.
        folder: of the cache.
        batch_size: images, or prompts, encoded together.
        share: (rank, world); of `world` processes this one does every world-th file, no file is done by two.
    Raises: TrainingError for images that changed since the scan, values that are not finite, and a folder that is full.
    """
    images = {latents_path(folder, encoders.fingerprint, item): item for item in items}
    yield from _encode([_prompt_files(items, encoders, folder), images], encoders, batch_size, share)


def encode_prompts(
    items: Sequence[Captioned], encoders: Encoders, folder: Path | str, batch_size: int = 8, share: tuple[int, int] = (0, 1)
) -> Iterator[Progress]:
    """Encodes the captions that the cache lacks, and the empty one; all else is as in encode()."""
    yield from _encode([_prompt_files(items, encoders, folder)], encoders, batch_size, share)


def _prompt_files(items: Sequence[Captioned], encoders: Encoders, folder: Path | str) -> dict[Path, str]:
    return {prompt_path(folder, encoders.fingerprint, text): text for text in ("", *(item.caption for item in items))}


def _encode(
    kinds: Sequence[Mapping[Path, Any]], encoders: Encoders, batch_size: int, share: tuple[int, int]
) -> Iterator[Progress]:
    """Encodes the missing files of this share, one kind after the other."""
    if batch_size < 1 or not 0 <= share[0] < share[1]:
        raise TrainingError(f"Encoding needs a batch_size of 1 or more and 0 <= rank < world, got {batch_size} and {share}.")
    shares = [missing_files(files, share) for files in kinds]
    batches = [batch for _, missing in shares for batch in _batches(missing, batch_size)]
    clock, made = Clock(sum(count for count, _ in shares), sum(map(len, batches))), 0
    yield clock.progress(0)
    for batch in batches:
        save_rows(list(batch), _encoded(list(batch.values()), encoders))
        made += len(batch)
        yield clock.progress(made)


def missing_files(files: Mapping[Path, Any], share: tuple[int, int]) -> tuple[int, dict[Path, Any]]:
    """Returns how many files a process is to look after, and those of them that are not there or damaged.

    Args:
        files: of all processes, with what each is made from.
        share: (rank, world), as for encode.
    """
    own = dict(islice(files.items(), share[0], None, share[1]))
    return len(own), {path: entry for path, entry in own.items() if _shapes(path) is None}


def _batches(files: Mapping[Path, Any], batch_size: int) -> list[dict[Path, Any]]:
    """Cuts the files into batches of prompts, or of images of one size."""
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


def save_rows(paths: Sequence[Path], tensors: Conditioning) -> None:
    """Writes each row of tensors [batch, ...] into a file of its own.

    Raises: TrainingError as save_atomically.
    """
    for number, path in enumerate(paths):
        save_atomically(path, rows(tensors, slice(number, number + 1)), {"format": FORMAT})


def _shapes(path: Path) -> dict[str, tuple[int, ...]] | None:
    """Returns the shapes in a file that is whole, else None."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError):
        return None


class CachedExamples:
    """Encoded examples, read from disk batch by batch.

    Args:
        items: as given to encode.
        folder: of the cache.
        fingerprint: of the encoders.
    Raises: TrainingError when there are none, some are not encoded, or prompts differ in shape.
    """

    def __init__(self, items: Sequence[ImageItem], folder: Path | str, fingerprint: str):
        self._latents = [latents_path(folder, fingerprint, item) for item in items]
        self._prompts = [prompt_path(folder, fingerprint, item.caption) for item in items]
        empty = prompt_path(folder, fingerprint, "")
        shapes = {path: _shapes(path) for path in {empty, *self._latents, *self._prompts}}
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
            groups.setdefault(shapes[path]["latents"], []).append(number)
        self._buckets, self._unconditional = list(groups.values()), load_rows([empty])

    @property
    def buckets(self) -> list[list[int]]:
        return self._buckets

    def fingerprint(self) -> str:
        """Returns a hash over everything that is trained on: the files' names stand for their content."""
        names = (path.stem for path in (*self._latents, *self._prompts))
        return hashlib.sha256(" ".join(names).encode()).hexdigest()

    def batch(self, numbers: Sequence[int], draw: int) -> Batch:
        unconditional = {name: t.expand(len(numbers), *t.shape[1:]) for name, t in self._unconditional.items()}
        latents = load_rows([self._latents[number] for number in numbers])["latents"]
        return Batch(latents, load_rows([self._prompts[number] for number in numbers]), unconditional)


def load_rows(paths: Sequence[Path], device: torch.device | str = "cpu") -> Conditioning:
    """Returns the tensors of files of equal shapes, joined along the batch.

    Raises: TrainingError for a file that is missing or damaged.
    """
    try:
        parts = [load_file(path) for path in paths]
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"The cache lacks a file, or it is damaged ({error}); encode again.") from error
    return {name: torch.cat([part[name] for part in parts]).to(device) for name in parts[0]}
