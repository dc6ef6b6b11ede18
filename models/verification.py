"""The last look at a downloaded file, before it gets its name."""

import logging
from pathlib import Path

from ..errors import ChecksumMismatch, UnsupportedModelError
from .content import require_content
from .entry import Entry
from .files import UNVERIFIED
from .model_check import require_model

_log = logging.getLogger("hyper_sd")


def verify(part: Path, entry: Entry, digest: str, sha256: str, is_hub: bool) -> None:
    """Removes a file of wrong content, since no download can mend it.

    Where the catalogue has no hash, its header has to fit as well; and a file that a mirror sent is not called verified.

    Args:
        part: the file, whole by its size.
        entry: whose file it shall be.
        digest: its own sha256.
        sha256: the one that it shall have.
        is_hub: whether the hub itself said so, and not a mirror.
    Raises: ChecksumMismatch when it is another file, or when nothing tells what a mirror has sent.
    """
    try:
        if digest != sha256:
            raise ChecksumMismatch(
                f"{entry.name} arrived with sha256 {digest}, expected {sha256}: it was changed on the way, or on the "
                "server. It was thrown away. Try again, without a mirror (HF_ENDPOINT) or proxy if you use one."
            )
        if entry.sha256:
            require_content(part, entry.ending)
        elif not require_model(part, entry) and not is_hub and not entry.approximate_size:
            raise ChecksumMismatch(
                f"The catalogue knows neither the sha256 nor the size of {entry.name}, and its header does not tell what it "
                "is. It was thrown away. Try without the mirror (HF_ENDPOINT)."
            )
    except ChecksumMismatch:
        part.unlink()
        raise
    except UnsupportedModelError as error:
        part.unlink()
        why = str(error).replace(part.name, entry.name)
        raise ChecksumMismatch(f"{entry.name} is not the file that it should be, and was thrown away: {why}") from error
    if not entry.sha256 and not is_hub:
        _log.warning("%s came from a mirror. %s", entry.name, UNVERIFIED)
