"""The node that collects pictures in pairs, which the tab "Hyper-SD votes" shows blind."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import folder_paths
import numpy as np
from comfy_api.latest import io
from PIL import Image

from ..errors import EvaluationError
from ..evaluation import collected
from ..rewards.ranking import prompts_of
from .schema import CATEGORY, found_as, lasting_text
from .score import as_pictures

DEFAULT = "my taste"
MOST_ARMS = 4


def comparisons_folder() -> Path:
    """Returns where this host keeps its comparisons, below the folder of its user."""
    return Path(folder_paths.get_user_directory(), "hyper_sd", "comparisons")


def as_files(images) -> list[Image.Image]:
    """Returns the host's IMAGE, float [count, height, width, 3 or 4] from 0 to 1, as pictures in red, green and blue.

    Raises: RewardError for anything that is no batch of pictures.
    """
    pixels = as_pictures(images).movedim(1, -1).clamp(0, 1).mul(255).round().byte().cpu()
    return [Image.fromarray(np.ascontiguousarray(picture)) for picture in pixels.numpy()]


INPUTS = [
    io.Image.Input(
        "images_1",
        tooltip="The first way's pictures, from VAE Decode. Alone, they are compared with each other, two at a time: draw an "
        "even number of one prompt.",
    ),
    *(
        io.Image.Input(
            f"images_{number}",
            optional=True,
            tooltip=f"The pictures of way {number}, as many as the first way has, of the same prompts and seeds.",
        )
        for number in range(2, MOST_ARMS + 1)
    ),
    io.String.Input(
        "labels",
        multiline=True,
        default="",
        optional=True,
        tooltip="What each way is called in the results, a line for each, such as 4 steps. Empty calls them way 1, way 2 and "
        "so on. Nothing of it is shown while you vote.",
    ),
    io.String.Input(
        "prompt",
        multiline=True,
        default="",
        optional=True,
        tooltip="What was asked for: one line for all pictures, or a line for each. It is shown below the pairs.",
    ),
    io.String.Input(
        "comparison",
        default=DEFAULT,
        optional=True,
        tooltip="The collection that the pairs are added to. Take another name for another question: votes on different "
        "questions should not be mixed.",
    ),
]


def labels_of(text: str, count: int) -> list[str]:
    """Returns what each way is called.

    Args:
        text: a line for each way; an empty text, line or missing line gives "way 1" and so on.
        count: of the ways that are wired in.
    Raises: EvaluationError for more lines than ways, and for one label twice.
    """
    lines = [line.strip() for line in text.strip().splitlines()]
    if len(lines) > count:
        raise EvaluationError(f"labels has {len(lines)} lines for {count} ways; write one line for each images input in use.")
    named = [(lines[n] if n < len(lines) else "") or f"way {n + 1}" for n in range(count)]
    if len(set(named)) < count:
        raise EvaluationError(f"Two ways have the same label: {', '.join(named)}. Give each its own.")
    return named


def prompts_of_batches(texts: Sequence[str], counts: Sequence[int]) -> list[str]:
    """Returns a prompt for each picture of several batches.

    Args:
        texts: one for each batch, or one for all; each as prompts_of takes it.
        counts: the batches' pictures.
    Raises: EvaluationError for another number of texts; RewardError as prompts_of.
    """
    if len(texts) not in (1, len(counts)):
        raise EvaluationError(f"There are {len(texts)} prompts for {len(counts)} batches of pictures; wire both from one list.")
    each = list(texts) * (len(counts) if len(texts) == 1 else 1)
    return [prompt for text, count in zip(each, counts, strict=True) for prompt in prompts_of(text, count)]


class HyperSDVote(io.ComfyNode):
    """Pictures of several ways, collected in pairs for a blind vote."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperSDVote",
            display_name="Hyper-SD Vote",
            category=CATEGORY,
            **found_as("blind test", "compare", "A/B", "preference", "user study", "rate images", "taste"),
            description="Collects pairs of pictures. The tab Hyper-SD votes shows them without names and keeps your choices.",
            inputs=INPUTS,
            outputs=[io.String.Output("collected", "comparison", tooltip="The collection's name, for Hyper-SD Learn Taste.")],
            is_output_node=True,
            is_input_list=True,  # several prompts of one run are collected, shuffled and told together
        )

    @classmethod
    def execute(
        cls, images_1, images_2=None, images_3=None, images_4=None, labels=("",), prompt=("",), comparison=(DEFAULT,)
    ) -> io.NodeOutput:
        ways = [[as_files(batch) for batch in images] for images in (images_1, images_2, images_3, images_4) if images]
        prompts = prompts_of_batches(prompt, [len(batch) for batch in ways[0]])
        for batch in ways[0] if len(ways) == 1 else ():
            collected.require_even(len(batch))  # of every prompt, so that no pair mixes two
        batches = [
            (label, list(chain.from_iterable(way))) for label, way in zip(labels_of(labels[0], len(ways)), ways, strict=True)
        ]
        folder = collected.folder_of(comparisons_folder(), comparison[0])
        added = collected.add_pairs(folder, batches, prompts)
        shown = collected.next_pair(folder)
        count = "1 pair" if added == 1 else f"{added} pairs"
        text = f"{count} added to {folder.name!r}, {shown.voted} of {shown.pairs} voted on: open the tab Hyper-SD votes."
        return io.NodeOutput(folder.name, ui=lasting_text(text))


NODES = [HyperSDVote]
