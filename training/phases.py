"""One training of one or two phases in a folder of its own, which a later call continues where an earlier one ended."""

import contextlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import disk
from ..errors import TrainingError
from .checkpoint import CheckpointError
from .config import Stage
from .data.examples import Examples
from .denoiser import Denoiser
from .engine import LocalEngine
from .loop import TrainingState, train
from .lora_layers import EXCLUDED, STUDENT, TEACHER, LoraLayers, adaptable_layers
from .lora_tensors import Rename, concatenated, lora_state_dict, set_from_tensors
from .losses import LossLog
from .presets import Phase
from .run import CHECKPOINT

logger = logging.getLogger("hyper_sd")
LOSSES, SETTINGS = "losses.txt", "settings.json"
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Trainee:
    """The network that is trained, of whichever host.

    Args:
        denoiser: the network, its noise schedule and how it is called.
        engine: what runs a step; the same one serves all phases.
        family: a key of models.families.FAMILIES.
        is_embedded: whether it is the model that ships with the pack, which has its own presets.
        precision: of the arithmetic, as TrainingConfig.precision.
        lora_name: a module of the network -> its name in a LoRA file.
        layer_order: as LoraLayers takes it.
    """

    denoiser: Denoiser
    engine: LocalEngine
    family: str
    is_embedded: bool
    precision: str
    lora_name: Rename
    layer_order: Callable[[str], Any] | None = None

    def layers(self, rank: int, lora_alpha: float | None, excluded: tuple[str, ...]) -> LoraLayers:
        """Returns new adapter layers on the network; the arguments are those of LoraLayers."""
        return LoraLayers(self.denoiser.network, rank, lora_alpha, excluded, order=self.layer_order)


@dataclass(frozen=True)
class Job:
    """Everything that decides what a training learns, and where it is kept.

    Args:
        trainee: the network.
        examples: what it learns from.
        phases: in order. A distillation after a style distils the network with that style.
        start: tensors in kohya's names that the only phase, or a distillation after a style, starts from; may be empty.
        folder: of the checkpoints, the losses and the sheets of samples.
        excluded: patterns of layers that are left alone.
        settings: what decides the folder's name, as JSON values.
        heads: weights of a discriminator's heads, which the last phase's checkpoint holds as well.
    """

    trainee: Trainee
    examples: Examples
    phases: tuple[Phase, ...]
    start: Mapping[str, torch.Tensor]
    folder: Path
    excluded: tuple[str, ...] = EXCLUDED
    settings: Mapping[str, Any] = field(default_factory=dict)
    heads: int = 0

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all phases."""
        return sum(phase.config.total_steps for phase in self.phases)

    def phase_folder(self, number: int) -> Path:
        """Returns where the phase of this number, counted from 0, keeps its checkpoint and losses."""
        return self.folder / f"phase_{number + 1}"

    @property
    def begun(self) -> int:
        """How many phases have a checkpoint."""
        return sum((self.phase_folder(number) / CHECKPOINT).is_file() for number in range(len(self.phases)))


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
        tensors: the LoRA in kohya's names, float32.
        rank: of the LoRA.
        losses: of every step.
        stages: "title" and "first_step" of each, for a chart.
        warning: a text for the person, often empty.
        is_finished: whether it came to its end; False where it was stopped.
        steps_taken: in this call, fewer than all where an earlier call had taken some.
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    rank: int = 0
    losses: list[float] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    warning: str = ""
    is_finished: bool = True
    steps_taken: int = 0


OnStep = Callable[[StepReport], None]
AtEnd = Callable[[Phase, LoraLayers], None]


def run_job(job: Job, on_step: OnStep, at_end: AtEnd, stop: Callable[[], bool] = lambda: False) -> Outcome:
    """Trains phase after phase, from where an earlier call of the same job ended, and returns the last one's LoRA.

    Args:
        job: what to train.
        on_step: called after every step. When it raises, a checkpoint is saved and the exception passed on.
        at_end: called with the trained set after the last phase.
        stop: asked after every step; True saves a checkpoint and ends the training.
    Raises: TrainingError as train(), and where the disk has no room for the checkpoints.
    """
    _require_room(job)
    outcome, style = Outcome(), {}
    for number, phase in enumerate(job.phases):
        layers = job.trainee.layers(phase.config.rank, phase.config.lora_alpha, job.excluded)
        try:
            _add_starting_sets(job, layers, number, style)
            outcome.is_finished = _train_phase(job, number, layers, on_step, outcome, stop)
            style = outcome.tensors = lora_state_dict(layers, STUDENT, torch.float32, job.trainee.lora_name)
            if not outcome.is_finished:
                break
            if number == len(job.phases) - 1:
                at_end(phase, layers)
        finally:
            layers.detach()
    outcome.rank = job.phases[-1].config.rank
    return outcome


def stage_title(phase: Phase, stage: Stage) -> str:
    """Returns what a stage is called: by its segments in a distillation, else as its phase."""
    if phase.config.objective == "finetune":
        return phase.title
    return f"{stage.num_segments} segment{'s' if stage.num_segments > 1 else ''}"


def stage_in_words(phase: Phase, stage: Stage) -> str:
    """Returns what a stage does, such as "distillation (4 segments)"."""
    title = stage_title(phase, stage)
    return title if title == phase.title else f"{phase.title} ({title})"


def _add_starting_sets(job: Job, layers: LoraLayers, number: int, style: Mapping[str, torch.Tensor]) -> None:
    """Gives the layers what a phase starts from, and the teacher where a style was learnt before."""
    rename = job.trainee.lora_name
    last = number == len(job.phases) - 1  # a style that is distilled later is learnt from nothing
    first = concatenated(style, job.start) if style and job.start and last else style or (job.start if last else {})
    if first:
        set_from_tensors(first, layers, STUDENT, rename=rename, source="The LoRA in start_from", partial=True)
    if number and style:
        set_from_tensors(style, layers, TEACHER, rename=rename)


def _train_phase(
    job: Job, number: int, layers: LoraLayers, on_step: OnStep, outcome: Outcome, stop: Callable[[], bool]
) -> bool:
    """Trains one phase, adds its losses to the outcome, and returns whether it came to its end."""
    phase, before, folder = job.phases[number], len(outcome.losses), job.phase_folder(number)
    config, trainee = phase.config, job.trainee
    log, state = LossLog(folder / LOSSES, config.total_steps, writes=trainee.engine.rank == 0), None
    run = train(config, trainee.denoiser, layers, job.examples, folder=folder, engine=trainee.engine, stop=stop)
    try:
        with contextlib.closing(run) as states:
            for state in states:
                # The discriminator's part goes up and down as both sides learn, and does not show how far the LoRA is.
                log.add(state.step, state.losses["distance"])
                outcome.steps_taken += 1
                on_step(StepReport(phase, state, before + state.step, layers, log.values))
    except CheckpointError as error:
        if state is None or state.step < state.total_steps:
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
    return not stop() if state is None else state.step == state.total_steps


def _require_room(job: Job) -> None:
    """Refuses a training whose checkpoints the disk has no room for.

    Raises: TrainingError naming what is needed and what is free.
    """
    layers = adaptable_layers(job.trainee.denoiser.network, job.excluded)
    widths = sum(len(layer.weight) + layer.weight[0].numel() for layer in layers.values())
    needed = judges = job.heads * 3 * FLOAT32_BYTES  # with their two moments
    for number, phase in enumerate(job.phases):
        copies = 3 + phase.config.has_target + bool(number)  # student, two moments of the optimizer, its average; the teacher
        needed += widths * phase.config.rank * copies * FLOAT32_BYTES
    # The largest checkpoint stands beside the old one for a moment, then takes its name.
    needed += max(phase.config.rank for phase in job.phases) * widths * 5 * FLOAT32_BYTES + judges
    free = disk.free_bytes(job.folder)
    if free < needed + disk.SPARE:
        raise TrainingError(
            f"The checkpoints of this training take up to {disk.format_bytes(needed + disk.SPARE)}, and the disk of "
            f"{job.folder} has {disk.format_bytes(free)} left; make room, or choose a lower rank."
        )


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
