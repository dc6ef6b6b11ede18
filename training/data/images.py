"""Images as training items, each with its caption and its aspect bucket, wherever they lie."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import UnidentifiedImageError

from ...errors import TrainingError
from .buckets import Item, Size, aspect_buckets, nearest_bucket
from .files import Source, checked, formats, suffixes, truncation_is_an_error
from .remarks import Remark, in_words

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
class ImageSet:
    """The images of a folder or of shards, in an order that depends on names only.

    Args:
        items: those that are used.
        skipped: images and rows of tables that are not used, and why.
        notes: what else a person is to know: texts that were guessed, files that were not read.
    """

    items: tuple[ImageItem, ...]
    skipped: tuple[Remark, ...]
    notes: tuple[Remark, ...] = ()


def examine(
    candidates: Sequence[Candidate],
    rules: ImageRules,
    skipped: Sequence[Remark],
    notes: Sequence[Remark],
    place: str,
    progress: OnProgress | None = None,
) -> ImageSet:
    """Returns the candidates that are whole, large enough and captioned as items, and the others as skipped.

    Args:
        candidates: the images.
        rules: which of them are taken.
        skipped: files that were skipped before.
        notes: what was noted before.
        place: where the images come from, for the error.
        progress: as OnProgress says.
    Raises: TrainingError when none is left, with the first reasons.
    """
    items, skipped, notes = [], list(skipped), list(notes)
    with truncation_is_an_error(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done, (item, remarks) in enumerate(pool.map(lambda candidate: _probe(candidate, rules), candidates), 1):
            (skipped if item is None else notes).extend(remarks)
            items += [item] if item else []
            if progress:
                progress(done, len(candidates))
    if not items:
        reasons = "; ".join(in_words([*skipped, *notes])) or "there is no image"
        raise TrainingError(
            f"No usable image in {place} ({reasons}). Training takes {', '.join(suffixes())} with sides of {rules.smallest} "
            "pixels or more, each with a caption in a .txt of the same name or in a metadata table; or set default_caption."
        )
    return ImageSet(tuple(items), tuple(skipped), tuple(dict.fromkeys(notes)))


def _probe(candidate: Candidate, rules: ImageRules) -> tuple[ImageItem | None, list[Remark]]:
    """Returns the item, None where it is not used, and what is to be said of it."""

    def skipped(reason: str) -> tuple[None, list[Remark]]:
        return None, [Remark(candidate.name, reason)]

    caption = candidate.caption.encode("utf-8", "replace").decode().strip()  # JSON may hold halves of a surrogate pair
    if not caption and rules.default_caption is None:
        return skipped("has no caption; write one, or set default_caption")
    try:
        data = candidate.source.read()
        size, frames = checked(data)
    except UnidentifiedImageError:
        return skipped(f"is not a {', '.join(formats())} image")
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead them to; the reason is listed
        return skipped(f"cannot be read ({error or type(error).__name__})")
    if min(size) < rules.smallest:
        return skipped(f"is {size[0]} x {size[1]}, its shorter side less than {rules.smallest} pixels")
    said = ["has no caption of its own and takes default_caption"] * (not caption)
    said += ["holds several pictures, of which the first is used"] * (frames > 1)
    bucket, digest = nearest_bucket(size, rules.buckets), hashlib.sha256(data).hexdigest()
    item = ImageItem(candidate.name, caption or rules.default_caption, bucket, digest, candidate.source)
    return item, [Remark(candidate.name, reason) for reason in said]
