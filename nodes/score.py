"""The node that scores a batch of pictures, sorts it, and keeps the best."""

from collections.abc import Sequence

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from comfy_api.latest import io

from ..errors import RewardError
from ..models.host_folders import REWARDS
from ..rewards.ranking import best_first, kept, prompts_of, ranking_text
from ..rewards.scorer import require_pictures, score_all
from ..rewards.table import BOTH, SCORERS, load, own_file, scorer_kind
from .model_downloads import model_folders
from .schema import CATEGORY, found_as, lasting_text, node_id_of

PART = 8  # pictures that are looked at together
MOST = 4096  # pictures that a batch of the host has
DEFAULT = "embedded_match"  # comes with the pack
_held: dict[tuple, comfy.model_patcher.ModelPatcher] = {}  # the last scorer, by its id and what its own file is now


def loaded_scorer(scorer_id: str) -> comfy.model_patcher.ModelPatcher:
    """Returns a scorer in the host's wrapper, by which the host can move it out of the card's memory.

    The last one stays in the processor's memory, and makes room for another.

    Args:
        scorer_id: a key of SCORERS.
    Raises: RewardError for an unknown id, and for files that are missing or damaged.
    """
    key = scorer_id, own_file(scorer_id, model_folders(REWARDS))
    if key not in _held:
        _held.clear()
        management = comfy.model_management
        device, offload = management.get_torch_device(), management.unet_offload_device()
        scorer = load(scorer_id, model_folders(REWARDS), offload)
        _held[key] = comfy.model_patcher.ModelPatcher(scorer, load_device=device, offload_device=offload)
    return _held[key]


def picture_scores(scorer_id: str, images: torch.Tensor, prompts: Sequence[str], node_id: str | None) -> torch.Tensor:
    """Returns the scores of pictures, float32 [count] on the processor, with the host's progress bar.

    Args:
        scorer_id: a key of SCORERS.
        images: [count, 3, height, width] from 0 to 1.
        prompts: a text for each picture.
        node_id: the node that shows how far it is, None for no node.
    Raises: RewardError as rewards.table.load() and Scorer.score(); the host's own exception when the run is interrupted.
    """
    patcher = loaded_scorer(scorer_id)
    comfy.model_management.load_models_gpu([patcher], force_full_load=True)
    scorer, bar, found = patcher.model.to(patcher.load_device), comfy.utils.ProgressBar(len(images), node_id), []
    for start in range(0, len(images), PART):
        comfy.model_management.throw_exception_if_processing_interrupted()
        part = slice(start, start + PART)
        found.append(score_all(scorer, images[part], prompts[part], PART))
        bar.update_absolute(min(start + PART, len(images)))
    return torch.cat(found)


def as_pictures(images: torch.Tensor) -> torch.Tensor:
    """Returns the host's IMAGE as scorers take it, [count, 3, height, width]; what says how see-through it is is left out.

    Raises: RewardError for anything that is no batch of pictures with red, green and blue.
    """
    if images.ndim != 4 or images.shape[-1] not in (3, 4):
        raise RewardError(
            f"images must be a batch of pictures in red, green and blue, got {list(images.shape)}; wire an IMAGE from VAE "
            "Decode or Load Image."
        )
    return images[..., :3].movedim(-1, 1)


INPUTS = [
    io.Image.Input("images", tooltip="The pictures to sort, as one batch: from VAE Decode, with batch_size 16 for example."),
    io.String.Input(
        "prompt",
        multiline=True,
        default="",
        tooltip="What was asked for: one line for all pictures, or a line for each. Scorers that look at the picture alone "
        "(aesthetic, embedded_quality, my_taste) do not read it.",
    ),
    io.Combo.Input(
        "scorer",
        options=list(SCORERS),
        default=DEFAULT,
        tooltip="What gives the scores. The two that begin with embedded come with the pack and know the demo model's "
        "drawings alone; for your own models get one of the others in the tab Hyper-SD models: image_reward, pick_score or "
        "hps for what people like, clip for what was asked for, aesthetic for looks. my_taste is what you have voted for, "
        "once Hyper-SD Learn Taste has learnt it.",
    ),
    io.Int.Input(
        "keep",
        default=4,
        min=0,
        max=MOST,
        tooltip="How many of the best pictures the output best has; 0 for all of them. Change it to keep fewer or more.",
    ),
]
OUTPUTS = [
    io.Image.Output("sorted", "sorted", tooltip="All pictures, the best first."),
    io.Image.Output("best", "best", tooltip="The best of them, as many as keep says."),
    io.String.Output("scores", "scores", tooltip="A line for each picture, the best first: place, number in the batch, score."),
    io.Float.Output("numbers", "numbers", is_output_list=True, tooltip="The scores as a list, the best first."),
]


class HyperSDScore(io.ComfyNode):
    """A batch of pictures, sorted by what a scorer thinks of them, and the best of it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperSDScore",
            display_name="Hyper-SD Score",
            category=CATEGORY,
            **found_as("rank images", "best of", "aesthetic", "ImageReward", "PickScore", "HPS", "CLIP score", "sort batch"),
            description="Scores a batch of pictures, sorts it with the best first, and keeps the best: draw 16, keep 4.",
            inputs=INPUTS,
            outputs=OUTPUTS,
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, scorer: str = DEFAULT, **inputs) -> str:
        return own_file(scorer, model_folders(REWARDS)) if scorer in SCORERS else ""

    @classmethod
    def execute(cls, images, prompt: str = "", scorer: str = DEFAULT, keep: int = 4) -> io.NodeOutput:
        pictures, count = as_pictures(images), len(images)
        many = kept(count, keep)
        prompts = prompts_of(prompt, count) if scorer_kind(scorer).reads == BOTH else [""] * count
        require_pictures(pictures, prompts)  # before a file is read
        scores = picture_scores(scorer, pictures, prompts, node_id_of(cls))
        order, values = best_first(scores), scores.tolist()
        notice = loaded_scorer(scorer).model.notice
        text = ranking_text(values, order, many) + (notice and f"\n\n{notice}")
        ordered = images[order]
        return io.NodeOutput(ordered, ordered[:many], text, [values[i] for i in order], ui=lasting_text(text))


NODES = [HyperSDScore]
