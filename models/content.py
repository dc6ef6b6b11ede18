"""Whether a file is of the kind that its name says, told by a look that runs nothing of it."""

import json
import zipfile
from pathlib import Path

from ..disk import open_file
from ..errors import UnsupportedModelError
from .header import read_header

LARGEST_TOKENIZER = 64 * 2**20  # bytes
# The number at the start of a checkpoint that torch wrote before its release 1.6, as it is pickled there.
_OLD_CHECKPOINT = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")


def require_content(path: Path, ending: str) -> None:
    """Refuses a damaged or a truncated file, and one of another kind.

    Args:
        path: of the file.
        ending: of the name that it shall have: ".safetensors"; ".pt" or ".bin", a checkpoint of torch; ".json", a tokenizer.
    Raises: UnsupportedModelError saying what is wrong; OSError of the system.
    """
    if ending == ".json":
        _require_tokenizer(path)
    elif ending in (".pt", ".bin"):
        _require_checkpoint(path)
    else:
        read_header(path)


def _require_tokenizer(path: Path) -> None:
    with open_file(path) as file:
        content = file.read(LARGEST_TOKENIZER + 1)
    if len(content) > LARGEST_TOKENIZER:
        raise UnsupportedModelError(f"{path} is too large for a tokenizer; download it again.")
    try:
        vocabulary = json.loads(content)["model"]["vocab"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnsupportedModelError(f"{path} is no tokenizer, or it is cut off ({error}); download it again.") from error
    if not vocabulary or not isinstance(vocabulary, dict):
        raise UnsupportedModelError(f"{path} is a tokenizer without words; download it again.")


def _require_checkpoint(path: Path) -> None:
    """Looks at the list of contents, which stands at the end of the file; an old checkpoint has none."""
    with open_file(path) as file:
        if file.read(len(_OLD_CHECKPOINT)) == _OLD_CHECKPOINT:
            return
        try:
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile as error:
            raise UnsupportedModelError(
                f"{path} is no checkpoint of torch, or it is cut off ({error}); download it again."
            ) from error
    if not any(name.endswith("/data.pkl") for name in names):
        raise UnsupportedModelError(f"{path} is an archive without a checkpoint of torch; download it again.")
