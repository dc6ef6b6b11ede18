"""The node that collects pictures in pairs, which the tab "Hyper-SD votes" shows blind."""

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


def _arm_inputs() -> list[io.Input]:
    inputs: list[io.Input] = []
    for number in range(1, MOST_ARMS + 1):
        is_first = number == 1
        tooltip = (
            "The first way's pictures, from VAE Decode. Alone, they are compared with each other, two at a time: draw an even "
            "number of one prompt."
            if is_first
            else f"The pictures of way {number}, as many as the first way has, of the same prompts and seeds."
        )
        inputs.append(io.Image.Input(f"images_{number}", optional=not is_first, tooltip=tooltip))
    labels = [
        io.String.Input(
            f"label_{number}",
            default=f"way {number}",
            optional=True,
            tooltip=f"What way {number} is called in the results. It is not shown while you vote.",
        )
        for number in range(1, MOST_ARMS + 1)
    ]
    return inputs + labels


INPUTS = [
    *_arm_inputs(),
    io.String.Input(
        "comparison",
        default=DEFAULT,
        tooltip="The collection that the pairs are added to. Take another name for another question: votes on different "
        "questions should not be mixed.",
    ),
    io.String.Input(
        "prompt",
        multiline=True,
        default="",
        optional=True,
        tooltip="What was asked for: one line for all pictures, or a line for each. It is shown below the pairs.",
    ),
]


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
            outputs=[io.String.Output("comparison", "comparison", tooltip="The collection's name, for Hyper-SD Learn Taste.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images_1, comparison: str = DEFAULT, prompt: str = "", **others) -> io.NodeOutput:
        batches = []
        for number, images in enumerate([images_1, *(others.get(f"images_{n}") for n in range(2, MOST_ARMS + 1))], 1):
            if images is not None:
                batches.append((str(others.get(f"label_{number}") or "").strip() or f"way {number}", as_files(images)))
        labels = [label for label, _ in batches]
        if len(set(labels)) < len(labels):
            raise EvaluationError(f"Two ways have the same label: {', '.join(labels)}. Give each its own.")
        folder = collected.folder_of(comparisons_folder(), comparison)
        added = collected.add_pairs(folder, batches, prompts_of(prompt, len(batches[0][1])))
        shown = collected.next_pair(folder)
        text = f"{added} pairs added to {folder.name!r}, {shown.voted} of {shown.pairs} voted on: open the tab Hyper-SD votes."
        return io.NodeOutput(folder.name, ui=lasting_text(text))


NODES = [HyperSDVote]
