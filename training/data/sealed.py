"""Files of tensors that a cache keeps, each sealed by a digest: one that is damaged is made anew."""

from pathlib import Path

import torch

from ...errors import TrainingError, UnsupportedModelError
from ...models.tensor_file import load_tensors
from ..checkpoint import DIGEST, save_atomically
from ..digest import digest_of

FORMAT = "hyper_sd cache 1"


class CacheError(TrainingError):
    """A file of a cache that is missing, damaged, or without a digest."""


def save_sealed(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes tensors with their digest.

    Raises: TrainingError as save_atomically().
    """
    save_atomically(path, tensors, {}, sealed=FORMAT)  # one entry of metadata: their order differs from call to call


def load_sealed(path: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a file as they were written.

    Raises: CacheError for a file that is missing or damaged, and one of a version that wrote no digest.
    """
    try:
        tensors, metadata = load_tensors(path)
    except (OSError, UnsupportedModelError) as error:
        raise CacheError(f"The cache lacks a file, or it is damaged ({error}); start again, and it is made anew.") from error
    if metadata.get(DIGEST) != digest_of(tensors, FORMAT):
        raise CacheError(
            f"{path} does not hold what was written into it, or was written by a version without digests; start again, and it "
            "is made anew."
        )
    return tensors


def is_whole(path: Path) -> bool:
    """Whether a file can be read, and holds what was written into it."""
    try:
        load_sealed(path)
    except CacheError:
        return False
    return True
