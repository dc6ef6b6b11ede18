"""A run whose file names every stage: the loop over them, and a LoRA written as each one ends."""

import logging
from collections.abc import Iterator
from contextlib import closing

from .. import loop
from ..config import TrainingConfig
from ..data.examples import Examples
from ..export import save_lora
from ..loop import TrainingState
from ..lora_layers import STUDENT, LoraLayers
from ..objectives.discriminator import encoder_stages
from ..optimizers import require_optimizer
from ..run import CHECKPOINT
from .diffusers_models import DiffusersModel
from .one_process import OneProcess
from .run_file import RunFile
from .step_log import StepLog

logger = logging.getLogger("hyper_sd")


def check(config: TrainingConfig, model: DiffusersModel, engine: OneProcess) -> None:
    """Refuses what cannot work, before hours of encoding.

    Raises: TrainingError for a batch that the processes cannot share and an optimizer that is not there; UnsupportedModelError
        for an adversarial stage on a network without an encoder.
    """
    config.part_size(engine.world)
    require_optimizer(config, engine.device)
    if config.is_adversarial:
        encoder_stages(model.network)


def train(file: RunFile, model: DiffusersModel, examples: Examples, engine: OneProcess) -> bool:
    """Trains, and returns whether the run came to its end.

    Args:
        file: the run.
        model: what is trained.
        examples: what it learns from.
        engine: of this process.
    Raises: TrainingError as loop.train(), and where machines do not see the same checkpoint.
    """
    checkpoint = file.output.checkpoint_folder / CHECKPOINT
    engine.require_shared([checkpoint], str(checkpoint))
    layers = LoraLayers(model.network, file.training.rank, file.training.lora_alpha, model.kind.excluded)
    try:
        steps = loop.train(
            file.training, model.denoiser, layers, examples,
            folder=file.output.checkpoint_folder, engine=engine, stop=lambda: engine.stopping,
        )  # fmt: skip
        with closing(steps):
            last = _follow(steps, file, layers, model, engine)
    finally:
        layers.detach()
    if engine.stopping and last is not None and last.step < last.total_steps:
        logger.info("Stopped after step %d of %d; the same command goes on from there.", last.step, last.total_steps)
        return False
    logger.info("Finished: the LoRAs are in %s%s", file.output.folder, "" if last else ", nothing was left to do")
    return True


def _follow(
    steps: Iterator[TrainingState], file: RunFile, layers: LoraLayers, model: DiffusersModel, engine: OneProcess
) -> TrainingState | None:
    """Runs through the training; the main process logs, and writes each stage's LoRA as the stage ends."""
    log, state = StepLog(), None
    for state in steps:
        if engine.rank:
            continue
        if state.stage_finished:
            _export(state, file, layers, model)
        log.write(state, now=state.stage_finished)
    return state


def _export(state: TrainingState, file: RunFile, layers: LoraLayers, model: DiffusersModel) -> None:
    segments = None if file.training.objective == "finetune" else state.stage.num_segments
    is_one_step = state.stage.is_one_step
    path = file.output.lora_path(segments, is_one_step)
    metadata = {"title": path.stem, "base_model": model.name, "trained_steps": str(state.step)}
    metadata |= {} if segments is None else {"num_segments": str(segments)}
    metadata |= {"hyper_sd_start_timestep": str(file.training.start_timestep)} if is_one_step else {}
    save_lora(path, layers, STUDENT, metadata=metadata, transformer=not model.is_unet)
    logger.info("wrote %s", path)
