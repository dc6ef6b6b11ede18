"""Finding files of the catalogue by a few words, as the panel, the tab and the command line offer it."""

import re

from .catalog import HEADINGS
from .chinese import in_chinese
from .entry import Entry

MORE = "More few-step models"  # over the files of other methods, below Hyper-SD's own
SIZE_UNKNOWN = "size is asked at the download"
LONGEST = 200  # characters that are looked at
_STEPS = re.compile(r"(?<!\S)([0-9]+)[ -]*(?:steps?|步)(?!\S)")
# Chinese has no spaces between words, and people write "4步LoRA" as well as "4 步 LoRA".
_BORDER = re.compile(
    r"(?<=[\u4e00-\u9fff])(?=[a-z0-9])|(?<=[a-z0-9])(?=[\u4e00-\u9fff])|[\u3001\u3002\uff08\uff09\uff0c\uff1a\uff1b]"
)


def names_its_method(entry: Entry) -> bool:
    """Whether an entry's title has every word of its method's name, so that lists need not add it."""
    return all(word in entry.title for word in re.split("[ ,]+", entry.method))


def is_found(entry: Entry, asked: str) -> bool:
    """Whether every word fits an entry: "lightning 4", "sd15 pcm", "4步 完整模型". No word at all fits each.

    A whole number is a number of steps that the file is used at, or a word of a scorer's file. Any other word stands in the
    file's title or family, in English or in Chinese, or in its method, name or id. web/model_search.js says the same to
    ComfyUI's page.

    Args:
        entry: of the catalogue.
        asked: what a person typed, in any case.
    """
    told = (entry.title, HEADINGS[entry.family])
    texts = (*told, *map(in_chinese, told), entry.method, entry.family, entry.name, entry.id)
    said, (fewest, most) = " ".join(texts).lower(), entry.step_range
    words = _STEPS.sub(r"\1", _BORDER.sub(" ", asked[:LONGEST].lower())).split()
    return all(_fits(word, said, fewest, most) for word in words)


def _fits(word: str, said: str, fewest: int, most: int) -> bool:
    if not re.fullmatch("[0-9]+", word):
        return word in said
    return fewest <= int(word) <= most if most else bool(re.search(rf"(?<![\w.]){word}(?![\w.])", said))
