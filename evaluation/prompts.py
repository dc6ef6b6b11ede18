"""The prompts that pictures are drawn of: the demo model's held-out labels, a text file, or the captions of COCO."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from ..errors import EvaluationError
from ..models.embedded import LABELS

EVERY = 8  # the demo model's LoRAs of human feedback leave every eighth label out
COCO = '{"images": [...], "annotations": [{"image_id": .., "caption": ".."}, ..]}, such as captions_val2017.json'
Thing = TypeVar("Thing")


def all_labels() -> list[str]:
    """Returns the names of all things that the demo model has learnt to draw."""
    return LABELS.read_text(encoding="utf-8").split("\n")[:-1]


def held_out_labels(count: int | None = None) -> list[str]:
    """Returns every eighth label of the demo model, which trainings from human feedback do not see.

    Args: count: how many, spread evenly over all of them; None takes all.
    """
    return spread(all_labels()[::EVERY], count)


def spread(things: Sequence[Thing], count: int | None) -> list[Thing]:
    """Returns so many of the things, evenly from the first to the last; None, or more than there are, takes all."""
    if count is None or count >= len(things):
        return list(things)
    return [things[number * len(things) // count] for number in range(count)]


def read_prompts(path: Path, limit: int | None = None) -> list[str]:
    """Returns the prompts of a file, in its order.

    Args:
        path: a .json file is COCO's captions as they are published, of which each image's first caption is taken; any other
            file is text with a prompt a line, where empty lines and those that begin with # are left out.
        limit: the first so many; None takes all.
    Raises: EvaluationError for a file that cannot be read or that holds no prompt.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(
            f"The prompts {path} cannot be read ({error}); give a text file with one prompt a line."
        ) from error
    if path.suffix.lower() == ".json":
        prompts = _first_captions(text, path)
    else:
        lines = (line.strip() for line in text.splitlines())
        prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise EvaluationError(f"The file {path} holds no prompt; write one a line, or give COCO's {COCO}.")
    return prompts[:limit]


def _first_captions(text: str, path: Path) -> list[str]:
    """Returns the first caption of every image, in the order of "images"."""
    try:
        content = json.loads(text)
        order = [image["id"] for image in content["images"]]
        first: dict = {}
        for annotation in content["annotations"]:
            first.setdefault(annotation["image_id"], " ".join(annotation["caption"].split()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        found = f"{type(error).__name__}: {error}"
        raise EvaluationError(f"{path} is not a file of COCO captions ({found}); it has to be {COCO}.") from error
    return [first[image] for image in order if first.get(image)]
