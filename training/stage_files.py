"""The LoRA of each stage of a distillation, written into the training's own folder as the stage ends."""

import logging
from pathlib import Path

from ..errors import TrainingError
from .config import TrainingConfig
from .export import SUFFIX, save_lora
from .lora_layers import STUDENT, LoraLayers
from .lora_tensors import Rename

logger = logging.getLogger("hyper_sd")


def stage_path(folder: Path, title: str) -> Path:
    """Returns where the LoRA of a stage is kept, such as 4-segments.safetensors; a later stage of the same title replaces it.

    Args:
        folder: of the training.
        title: of the stage.
    """
    return folder / f"{title.replace(' ', '-')}{SUFFIX}"


def stage_metadata(config: TrainingConfig, index: int, family: str) -> dict[str, str]:
    """Returns what the file of a stage says of its training; from it the LoRA's steps and its start are recognised.

    Args:
        config: of the run.
        index: of the stage in the run, counted from 0.
        family: of the network.
    """
    stage = config.stages[index]
    metadata = {
        "hyper_sd_base": family,
        "hyper_sd_stages": "-".join(str(one.num_segments) for one in config.stages[: index + 1]),
        "hyper_sd_steps": str(sum(one.steps for one in config.stages[: index + 1])),
        "num_segments": str(stage.num_segments),
    }
    return metadata | ({"hyper_sd_start_timestep": str(config.start_timestep)} if stage.is_one_step else {})


def write_stage(path: Path, layers: LoraLayers, config: TrainingConfig, index: int, family: str, rename: Rename) -> None:
    """Writes the student's LoRA as float16 in kohya's names, whole or not at all, and logs where.

    A file that cannot be written is logged and does not end the training: the checkpoints hold the same weights.

    Args:
        path: of the file; an older one is replaced.
        layers: with the set "student".
        config: of the run.
        index: of the stage in the run, counted from 0.
        family: of the network.
        rename: a module of the network -> its name in a LoRA file.
    """
    try:
        save_lora(path, layers, STUDENT, metadata={"title": path.stem, **stage_metadata(config, index, family)}, rename=rename)
        logger.info("The LoRA of this stage is %s", path)
    except TrainingError as error:
        logger.warning("The LoRA of this stage is not kept, and the training goes on: %s", error)
