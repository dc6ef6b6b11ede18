"""What the lists of files say, in Chinese. A1111's translation has every such text, and the other lists ask there."""

import functools
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..disk import open_file
from .catalog import HEADINGS
from .entry import Entry
from .files import UNVERIFIED

TABLE = Path(__file__).parents[1] / "localizations" / "zh_CN.json"
_log = logging.getLogger("hyper_sd")


@functools.lru_cache(maxsize=1)
def _table(path: Path = TABLE) -> Mapping[str, str]:
    try:
        with open_file(path) as file:
            return json.loads(file.read().decode())
    except (OSError, ValueError) as error:
        _log.warning("The lists of files have no Chinese: %s cannot be read (%s). Install the pack again.", path, error)
        return {}


def in_chinese(text: str) -> str:
    """Returns a text of the catalogue in Chinese, the text itself where there is no other: names are the same everywhere."""
    return _table().get(text, text)


def translations(entries: Iterable[Entry]) -> dict[str, str]:
    """Returns what a list of entries says, each text with its Chinese where that is another: titles, licences, headings, notes.

    Args:
        entries: of the catalogue.
    """
    said = {text for entry in entries for text in (entry.title, entry.licence.title)} | {*HEADINGS.values(), UNVERIFIED}
    return {text: chinese for text in sorted(said) if (chinese := in_chinese(text)) != text}
