"""One training of one phase or more in a folder of its own, which a later call continues where an earlier one ended."""

import contextlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .. import disk
from ..errors import TrainingError
from .checkpoint import CheckpointError
from .config import Stage
from .job import Job
from .loop import TrainingState, train
from .lora_layers import DISTILLED, STUDENT, TEACHER, LoraLayers
from .lora_tensors import concatenated, lora_state_dict, rank_of, set_from_tensors
from .losses import LossLog
from .presets import ONE_STEP, Phase
from .room import require_room
from .stage_files import stage_path, write_stage
from .words import FEEDBACK

logger = logging.getLogger("hyper_sd")
LOSSES, SETTINGS = "losses.txt", "settings.json"


@dataclass(frozen=True)
class StepReport:
    """What is known after a step.

    Args:
        phase: that the step belongs to.
        state: of that phase's run.
        steps_done: of all phases.
        layers: with the set "student".
        losses: of this phase, one for each step.
    """

    phase: Phase
    state: TrainingState
    steps_done: int
    layers: LoraLayers
    losses: list[float]


@dataclass
class Outcome:
    """What a training leaves behind.

    Args:
        loras: of every phase that was trained, by its title, in kohya's names, float32. The last one of a training that was
            stopped is unfinished.
        rank: of the last phase's LoRA.
        losses: of every step.
        stages: "title" and "first_step" of each, for a chart.
        warning: a text for the person, often empty.
        is_finished: whether it came to its end; False where it was stopped.
        steps_taken: in this call, fewer than all where an earlier call had taken some.
    """

    loras: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    rank: int = 0
    losses: list[float] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    warning: str = ""
    is_finished: bool = True
    steps_taken: int = 0

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The LoRA for any number of steps: that of the last phase, but for one that is for one step; empty before any."""
        return next((lora for title, lora in reversed(self.loras.items()) if title != ONE_STEP), {})

    @property
    def one_step(self) -> dict[str, torch.Tensor]:
        """The LoRA for exactly one step; empty where no phase makes one."""
        return self.loras.get(ONE_STEP, {})

    @property
    def feedback(self) -> dict[str, torch.Tensor]:
        """What human feedback has added to the LoRA it was learnt on top of; empty for the other objectives."""
        return self.loras.get(FEEDBACK, {})


OnStep = Callable[[StepReport], None]
AtEnd = Callable[[Phase, LoraLayers], None]


def run_job(job: Job, on_step: OnStep, at_end: AtEnd, stop: Callable[[], bool] = lambda: False) -> Outcome:
    """Trains phase after phase, from where an earlier call of the same job ended, and returns their LoRAs.

    As a stage of a distillation ends, its LoRA is written into the job's folder, for example as 4-segments.safetensors.

    Args:
        job: what to train.
        on_step: called after every step. When it raises, a checkpoint is saved and the exception passed on.
        at_end: called with the trained set after the last phase.
        stop: asked after every step; True saves a checkpoint and ends the training.
    Raises: TrainingError as train(), and where the disk has no room for the checkpoints.
    """
    if not job.trainee.engine.rank:
        disk.clear_parts(job.folder, deep=True)
    require_room(job)
    outcome, learnt = Outcome(), {}
    for number, phase in enumerate(job.phases):
        layers = job.trainee.layers(phase.config.rank, phase.config.lora_alpha, job.excluded)
        try:
            _add_starting_sets(job, layers, number, learnt)
            outcome.is_finished = _train_phase(job, number, layers, on_step, outcome, stop)
            learnt = outcome.loras[phase.title] = lora_state_dict(layers, STUDENT, torch.float32, job.trainee.lora_name)
            if not outcome.is_finished:
                break
            if number == len(job.phases) - 1:
                at_end(phase, layers)
        finally:
            layers.detach()
    outcome.rank = job.phases[-1].config.rank
    return outcome


def stage_title(phase: Phase, stage: Stage) -> str:
    """Returns what a stage is called: by its segments in a distillation, "one step" where it is for that, else as its phase."""
    if phase.config.objective != "tscd":
        return phase.title
    if stage.is_one_step:
        return ONE_STEP
    return f"{stage.num_segments} segment{'s' if stage.num_segments > 1 else ''}"


def stage_in_words(phase: Phase, stage: Stage) -> str:
    """Returns what a stage does, such as "distillation (4 segments)"."""
    title = stage_title(phase, stage)
    return title if title == phase.title else f"{phase.title} ({title})"


def _add_starting_sets(job: Job, layers: LoraLayers, number: int, learnt: Mapping[str, torch.Tensor]) -> None:
    """Gives the layers what a phase starts from, and the teacher where a style was learnt before."""
    rename = job.trainee.lora_name
    if job.phases[number].config.feedback is not None:  # it is learnt on top of the LoRA, and not into it
        if job.start:
            source = {"source": "The LoRA in start_from", "rank": rank_of(job.start)}
            set_from_tensors(job.start, layers, DISTILLED, rename=rename, partial=True, **source)
        return
    start = job.start if number == job.starting else {}
    first = concatenated(learnt, start) if learnt and start else learnt or start
    if first:
        set_from_tensors(first, layers, STUDENT, rename=rename, source="The LoRA in start_from", partial=True)
    if number and number == job.starting:
        set_from_tensors(learnt, layers, TEACHER, rename=rename)


def _train_phase(
    job: Job, number: int, layers: LoraLayers, on_step: OnStep, outcome: Outcome, stop: Callable[[], bool]
) -> bool:
    """Trains one phase, adds its losses to the outcome, and returns whether it came to its end."""
    phase, before, folder = job.phases[number], len(outcome.losses), job.phase_folder(number)
    config, trainee = phase.config, job.trainee
    log, state = LossLog(folder / LOSSES, config.total_steps, writes=trainee.engine.rank == 0), None
    given = {"folder": folder, "engine": trainee.engine, "stop": stop, "judge": job.judge}
    run, shown = train(config, trainee.denoiser, layers, job.examples, **given), "loss" if config.feedback else "distance"
    try:
        with contextlib.closing(run) as states:
            for state in states:
                # The discriminator's part goes up and down as both sides learn, and does not show how far the LoRA is.
                log.add(state.step, state.losses[shown])
                outcome.steps_taken += 1
                if state.stage_finished:
                    _write_stage(job, phase, config.stage_at(state.step - 1)[0], layers)
                on_step(StepReport(phase, state, before + state.step, layers, log.values))
    except CheckpointError as error:
        if state is None or not state.is_last:
            raise
        outcome.warning = f"{error} The result is whole, but would be lost with this program's memory: save it now."
        logger.warning(outcome.warning)
    finally:
        log.close()
    first = before
    for stage in config.stages:
        outcome.stages.append({"title": stage_title(phase, stage), "first_step": first})
        first += stage.steps
    outcome.losses += log.values
    last = len(config.stages) - 1
    if state is None and not stop() and not stage_path(job.folder, stage_title(phase, config.stages[last])).is_file():
        _write_stage(job, phase, last, layers)  # it had ended before, and its file is gone
    return not stop() if state is None else state.is_last


def _write_stage(job: Job, phase: Phase, index: int, layers: LoraLayers) -> None:
    """Writes the LoRA of a distillation's stage into the job's folder, from the first process."""
    trainee, config = job.trainee, phase.config
    if config.objective == "tscd" and trainee.engine.rank == 0:
        path = stage_path(job.folder, stage_title(phase, config.stages[index]))
        write_stage(path, layers, config, index, trainee.family, trainee.lora_name)


def write_settings(job: Job, name: str) -> None:
    """Writes what decides the training into its folder, for people to read.

    Args:
        job: the training.
        name: that a person gave it.
    Raises: TrainingError where the folder cannot be written.
    """
    path = job.folder / SETTINGS
    try:
        disk.write_whole(path, json.dumps({"name": name, **job.settings}, indent=1).encode())
    except OSError as error:
        raise TrainingError(f"The training did not start: {disk.explain(error, job.folder)}.") from error
