"""Finding files of the catalogue by a few words, as the panel, the tab and the command line offer it."""

import re

from .catalog import HEADINGS
from .entry import Entry

MORE = "More few-step LoRAs"  # over the files of other methods, below Hyper-SD's own
SIZE_UNKNOWN = "size is asked at the download"
LONGEST = 200  # characters that are looked at
_STEPS = re.compile(r"(?<!\S)([0-9]+)[ -]*(?:steps?|步)(?!\S)")


def names_its_method(entry: Entry) -> bool:
    """Whether an entry's title has every word of its method's name, so that lists need not add it."""
    return all(word in entry.title for word in re.split("[ ,]+", entry.method))


def is_found(entry: Entry, asked: str) -> bool:
    """Whether every word fits an entry: "lightning 4", "sd15 pcm". No word at all fits each.

    A whole number is a number of steps that the file is used at, or a word of a scorer's file. Any other word stands in the
    file's title, method, family, name or id. web/model_search.js says the same to ComfyUI's page.

    Args:
        entry: of the catalogue.
        asked: what a person typed, in any case.
    """
    texts = (entry.title, entry.method, entry.family, HEADINGS[entry.family], entry.name, entry.id)
    said, (fewest, most) = " ".join(texts).lower(), entry.step_range
    words = _STEPS.sub(r"\1", asked[:LONGEST].lower()).split()
    return all(_fits(word, said, fewest, most) for word in words)


def _fits(word: str, said: str, fewest: int, most: int) -> bool:
    if not re.fullmatch("[0-9]+", word):
        return word in said
    return fewest <= int(word) <= most if most else bool(re.search(rf"(?<![\w.]){word}(?![\w.])", said))
