"""One run of one or more phases in a folder of its own: what is trained from what, what is kept, and how it goes on later."""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..disk import format_bytes
from ..errors import TrainingError
from ..models.transfer import SPARE
from .checkpoint import CheckpointError
from .config import Stage
from .data.examples import GroupedExamples
from .export import concatenated, lora_state_dict, set_from_tensors
from .loop import CHECKPOINT, TrainingState, train
from .lora_layers import EXCLUDED, STUDENT, TEACHER, LoraLayers, adaptable_layers
from .presets import Phase

logger = logging.getLogger("hyper_sd")
LOSSES = "losses.txt"


@dataclass(frozen=True)
class Job:
    """Everything that decides what a run learns, and where it is kept.

    Args:
        phases: in order; a distillation after a style distils the network with that style.
        start: tensors under kohya's names that the only phase, or a distillation after a style, starts from; may be empty.
        excluded: patterns of layers that are left alone.
        heads: weights of a discriminator's heads, which the last phase's checkpoint holds as well.
    """

    host: Any
    examples: GroupedExamples
    phases: tuple[Phase, ...]
    start: Mapping[str, torch.Tensor]
    folder: Path
    excluded: tuple[str, ...] = EXCLUDED
    heads: int = 0

    @property
    def total_steps(self) -> int:
        return sum(phase.config.total_steps for phase in self.phases)

    def phase_folder(self, number: int) -> Path:
        """Returns where the phase of this number, counted from 0, keeps its checkpoint and losses."""
        return self.folder / f"phase_{number + 1}"

    @property
    def begun(self) -> int:
        """How many phases have a checkpoint."""
        return sum((self.phase_folder(number) / CHECKPOINT).is_file() for number in range(len(self.phases)))


@dataclass(frozen=True)
class Moment:
    """What is known after a step. Args: done: steps of all phases; layers: with the set "student"; losses: of this phase."""

    job: Job
    phase: Phase
    state: TrainingState
    done: int
    layers: LoraLayers
    losses: list[float]


@dataclass
class Outcome:
    """What a run leaves behind.

    Args: tensors: the LoRA in float32; rank: its own; losses: of every step; stages: titles with first steps; warning: a text.
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    rank: int = 0
    losses: list[float] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    warning: str = ""


Watch = Callable[[Moment], None]
AtEnd = Callable[[Phase, LoraLayers], None]


def run_job(job: Job, watch: Watch, at_end: AtEnd) -> Outcome:
    """Trains phase after phase, from where an earlier call of the same job ended, and returns the last one's LoRA.

    Args: watch: called after every step; at_end: with the trained set, after the last one.
    Raises: TrainingError as train(), and where the disk has no room for the checkpoints. What `watch` raises passes.
    """
    _require_room(job)
    outcome, style = Outcome(), {}
    for number, phase in enumerate(job.phases):
        layers = LoraLayers(job.host.network, phase.config.rank, phase.config.lora_alpha, job.excluded)
        try:
            _starting_sets(job, layers, number, style)
            _train_phase(job, number, layers, watch, outcome)
            rename = job.host.lora_name()
            style = outcome.tensors = lora_state_dict(layers, STUDENT, torch.float32, rename)
            if number == len(job.phases) - 1:
                at_end(phase, layers)
        finally:
            layers.detach()
    outcome.rank = job.phases[-1].config.rank
    return outcome


def stage_title(phase: Phase, stage: Stage) -> str:
    """Returns what a stage is called: of a distillation its segments, otherwise its phase."""
    if phase.config.objective == "finetune":
        return phase.title
    return f"{stage.num_segments} segment{'s' if stage.num_segments > 1 else ''}"


def worded(phase: Phase, stage: Stage) -> str:
    """Returns what is done in a stage, such as "distillation (4 segments)"."""
    title = stage_title(phase, stage)
    return title if title == phase.title else f"{phase.title} ({title})"


def _starting_sets(job: Job, layers: LoraLayers, number: int, style: Mapping[str, torch.Tensor]) -> None:
    """Gives the layers what a phase starts from, and the teacher where a style was learnt before."""
    rename = job.host.lora_name()
    last = number == len(job.phases) - 1  # a style that is distilled later is learnt from nothing
    begin = concatenated(style, job.start) if style and job.start and last else style or (job.start if last else {})
    if begin:
        set_from_tensors(begin, layers, STUDENT, rename=rename, source="The LoRA in start_from", partial=True)
    if number and style:
        set_from_tensors(style, layers, TEACHER, rename=rename)


def _train_phase(job: Job, number: int, layers: LoraLayers, watch: Watch, outcome: Outcome) -> None:
    phase, before = job.phases[number], len(outcome.losses)
    folder = job.phase_folder(number)
    log, state = LossLog(folder / LOSSES, phase.config.total_steps), None
    examples, engine = job.examples, job.host.engine()
    run = train(phase.config, job.host.denoiser, layers, examples, folder=folder, engine=engine)
    try:
        with contextlib.closing(run) as states:
            for state in states:
                # Without the discriminator's part, which swings as both sides learn and does not say how far the LoRA is.
                log.add(state.step, state.losses["distance"])
                watch(Moment(job, phase, state, before + state.step, layers, log.values))
    except CheckpointError as error:
        if state is None or state.step < state.total_steps:
            raise
        outcome.warning = f"{error} The result is whole, but would be lost with ComfyUI's memory: save it now."
        logger.warning(outcome.warning)
    finally:
        log.close()
    first = before
    for stage in phase.config.stages:
        outcome.stages.append({"title": stage_title(phase, stage), "first_step": first})
        first += stage.steps
    outcome.losses += log.values


class LossLog:
    """The losses of a phase, kept beside its checkpoint, a line each, so that a resumed run has them all.

    Args: total: steps of the phase; the log of a finished one is taken as it is.
    """

    def __init__(self, path: Path, total: int):
        self.path, self._file = path, None
        self.values = _numbers(path)[:total]

    def add(self, step: int, loss: float) -> None:
        """Notes the loss of a step, counted from 1; what stands there from an attempt further on is dropped."""
        goes_back = len(self.values) >= step
        del self.values[step - 1 :]
        new = [loss] * (step - len(self.values))  # more than one where lines were lost with a crash
        if self._file is None or goes_back:
            self.close()
            self._open()
        self.values += new
        self._write(new)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = None

    def _open(self) -> None:
        with contextlib.suppress(OSError):  # a full disk must not end a training; the checkpoint says so
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w", encoding="utf-8")
            self._write(self.values)

    def _write(self, values: list[float]) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.writelines(f"{value!r}\n" for value in values)
                self._file.flush()


def _numbers(path: Path) -> list[float]:
    try:
        return [float(line) for line in path.read_text(encoding="utf-8").split()]
    except (OSError, ValueError):
        return []


def _require_room(job: Job) -> None:
    """Raises: TrainingError where the disk would be full before the run ends."""
    layers = adaptable_layers(job.host.network, job.excluded)
    widths = sum(len(layer.weight) + layer.weight[0].numel() for layer in layers.values())
    needed = judges = job.heads * 3 * 4  # with their two moments
    for number, phase in enumerate(job.phases):
        copies = 3 + phase.config.has_target + bool(number)  # student, two moments of the optimizer, its average; the teacher
        needed += widths * phase.config.rank * copies * 4
    largest = max(phase.config.rank for phase in job.phases) * widths * 5 * 4 + judges  # beside the old one, then renamed
    existing = next(parent for parent in [job.folder, *job.folder.parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed + largest + SPARE:
        raise TrainingError(
            f"The checkpoints of this training take up to {format_bytes(needed + largest + SPARE)}, and the disk of {existing} "
            f"has {format_bytes(free)} left; make room, or choose a lower rank."
        )


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Leaves the settings in the run folder, for people."""
    partial = folder / f"settings.json.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(settings, indent=1), encoding="utf-8")
        partial.replace(folder / "settings.json")
    except OSError as error:
        raise TrainingError(f"{folder} cannot be written ({error}); make room or check it, then queue again.") from error
