"""What is trained: the network of whichever host, and everything that decides what it learns and where that is kept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .data.examples import Examples
from .denoiser import Denoiser
from .engine import LocalEngine
from .feedback.judge import Judge
from .lora_layers import EXCLUDED, LoraLayers
from .lora_tensors import Rename
from .presets import Phase
from .run import CHECKPOINT


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
        phases: in order. A distillation after a style distils the network with that style. A phase for one step goes on from
            the distillation before it, and is taught by the bare network.
        start: tensors in kohya's names that a distillation, or a style alone, starts from, and that human feedback is learnt
            on top of; may be empty.
        folder: of the checkpoints, the losses and the sheets of samples.
        excluded: patterns of layers that are left alone.
        settings: what decides the folder's name, as JSON values.
        heads: weights of a discriminator's heads, which the last phase's checkpoint holds as well.
        judge: of human feedback; None for the other objectives.
    """

    trainee: Trainee
    examples: Examples
    phases: tuple[Phase, ...]
    start: Mapping[str, torch.Tensor]
    folder: Path
    excluded: tuple[str, ...] = EXCLUDED
    settings: Mapping[str, Any] = field(default_factory=dict)
    heads: int = 0
    judge: Judge | None = None

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all phases."""
        return sum(phase.config.total_steps for phase in self.phases)

    def phase_folder(self, number: int) -> Path:
        """Returns where the phase of this number, counted from 0, keeps its checkpoint and losses."""
        return self.folder / f"phase_{number + 1}"

    @property
    def starting(self) -> int:
        """The number of the phase that the LoRA `start` comes in at: a style that is distilled later is learnt from nothing."""
        return next((n for n, phase in enumerate(self.phases) if phase.config.objective == "tscd"), 0)

    @property
    def taught(self) -> bool:
        """Whether a style is distilled, so that a phase has a set "teacher"."""
        return self.starting > 0

    @property
    def begun(self) -> int:
        """How many phases have a checkpoint."""
        return sum((self.phase_folder(number) / CHECKPOINT).is_file() for number in range(len(self.phases)))
