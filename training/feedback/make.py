"""Who looks at the pictures of a training: scorers and the network of the perceptual term, read from their files."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ...errors import RewardError
from ...models.embedded import SCORERS as EMBEDDED_FILE
from ...rewards.instances import InstanceNet, load_instances
from ...rewards.mask_rcnn import FILE, URL, MaskRCNN
from ...rewards.scorer import Scorer
from ...rewards.table import find_files, load, scorer_kind
from .choice import EMBEDDED_REWARDS, WATCHERS
from .judge import Decode, Judge
from .settings import FeedbackSettings

logger = logging.getLogger("hyper_sd")


def ready_scorers(folders: Sequence[Path]) -> list[str]:
    """Returns the ids of the scorers that can watch a training by themselves and whose files are there.

    Args:
        folders: where the scorers' files lie.
    """
    needed = {name: scorer_kind(name).files for name in (*EMBEDDED_REWARDS, *WATCHERS)}
    _, problems = find_files({entry_id for files in needed.values() for entry_id in files}, folders)
    return [name for name, files in needed.items() if not problems.keys() & set(files)]


def make_judge(
    settings: FeedbackSettings,
    decode: Decode,
    decoder: nn.Module,
    *,
    folders: Sequence[Path],
    device: torch.device,
    is_embedded: bool,
) -> Judge:
    """Returns who looks at the pictures of a training.

    Args:
        settings: of the feedback.
        decode: as Judge takes it.
        decoder: as Judge takes it.
        folders: where the scorers' files lie.
        device: that trains.
        is_embedded: whether the model that ships with the pack is trained.
    Raises: RewardError naming every file that is missing or damaged, and how it is had; for a scorer that is too unsure.
    """
    wanted = (*settings.rewards, *filter(None, [settings.held_out]))
    scorers = {name: _sure(load(name, folders, device), is_embedded) for name in wanted}
    instances = _instances(folders, device, is_embedded) if settings.instance_weight else None
    return Judge(decode, scorers, instances, decoder)


def _sure(scorer: Scorer, is_embedded: bool) -> Scorer:
    """Returns a scorer that a training may depend on, and says what has to be known of it on another model's pictures.

    Raises: RewardError saying why it may not.
    """
    if scorer.unfit:
        raise RewardError(scorer.unfit)
    if scorer.notice and not is_embedded:
        logger.warning("%s", scorer.notice)
    return scorer


def _instances(folders: Sequence[Path], device: torch.device, is_embedded: bool) -> InstanceNet | MaskRCNN:
    """Returns the network that sees things in pictures: of the embedded model's world, else of photos."""
    if is_embedded:
        return load_instances(EMBEDDED_FILE).to(device)
    path = next((path for folder in folders for path in Path(folder).glob(f"**/{FILE}")), None)
    if path is None:
        places = " or ".join(map(str, folders))
        raise RewardError(
            f"The perceptual term needs {FILE}, which is not in {places}; get it from {URL} and put it there, or set "
            "perceptual_weight to 0."
        )
    return MaskRCNN.load(path, device)
