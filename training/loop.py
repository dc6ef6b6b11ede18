"""The training loop: a generator of per-step states, so that a node, a terminal and a test drive the same one."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from .. import disk
from .config import Stage, TrainingConfig
from .data.examples import Examples
from .denoiser import Denoiser
from .engine import LocalEngine
from .feedback.judge import Judge
from .lora_layers import LoraLayers
from .optimizers import require_optimizer
from .out_of_memory import explaining_memory
from .recompute import recomputing
from .run import Run


@dataclass(frozen=True)
class TrainingState:
    """What is known after a step.

    Args:
        step: optimizer steps done.
        total_steps: optimizer steps of the whole run.
        stage: that the step belonged to.
        stage_finished: whether the step was the last of its stage.
        is_last: whether it was the last of the run, which may end before all steps are done; see HeldOut.
        losses: means over the batch: "loss", "distance", in adversarial stages "adversarial" and "discriminator", in
            stages for one step "score", "pairs" and "fake", with feedback the scores, as far as they count.
        learning_rate: of the student.
        rate: steps a second over the last 50.
        eta_seconds: to the end of the run at that rate.
    """

    step: int
    total_steps: int
    stage: Stage
    stage_finished: bool
    is_last: bool
    losses: dict[str, float]
    learning_rate: float
    rate: float
    eta_seconds: float


def train(
    config: TrainingConfig,
    denoiser: Denoiser,
    layers: LoraLayers,
    examples: Examples,
    *,
    folder: Path | None = None,
    engine: LocalEngine | None = None,
    stop: Callable[[], bool] = lambda: False,
    judge: Judge | None = None,
) -> Iterator[TrainingState]:
    """Trains the adapter set "student" of `layers` and yields after every step.

    The result is in layers.sets["student"]; an existing set of that name is where training starts from. Closing the generator,
    Ctrl-C, or `stop` returning True saves a checkpoint and ends the run; the same call continues it, to the bit. The weights of
    the network are never written; their requires_grad flags are cleared meanwhile and put back.

    A checkpoint that cannot be written on the way is logged and tried again at the next one. When the generator is closed or
    Ctrl-C pressed, it is only logged, so that the run ends for the reason it had.

    Args:
        config: of the run.
        denoiser: the network.
        layers: on denoiser.network, with the rank of the config. A set "teacher" is what "tscd" distils, a set "distilled"
            what "feedback" is learnt on top of; they stay as they are.
        examples: what is learnt from.
        folder: where checkpoint.safetensors is kept; None keeps none.
        engine: what runs a step; None takes one process on the network's device.
        stop: asked after every step.
        judge: of the objective "feedback"; the others need none.
    Raises: TrainingError for an optimizer that is not there, a checkpoint of other settings, a loss that is not finite, and
        memory that does not suffice. RewardError for a score that is not a number.
        CheckpointError where the last checkpoint cannot be written; the trained weights are in `layers` all the same.
    """
    device = next(denoiser.network.parameters()).device
    engine = engine or LocalEngine(device, config.precision)
    require_optimizer(config, engine.device)
    if folder and not engine.rank:
        disk.clear_parts(folder, deep=True)
    with ExitStack() as stack:
        stack.enter_context(denoiser.frozen())
        if config.gradient_checkpointing:
            stack.enter_context(recomputing(denoiser.network, layers))
        with explaining_memory(config):
            run = Run(config, denoiser, layers, examples, engine, folder, judge)
        clock = _Clock(run.step)
        try:
            goes_on = run.goes_on()
            while goes_on and not stop():
                losses = run.advance()
                goes_on = run.goes_on()
                yield clock.state(config, run.step, losses, is_last=not goes_on)
                if run.step % config.checkpoint_every == 0 or config.ends_stage(run.step):
                    run.try_save()
        except (GeneratorExit, KeyboardInterrupt):
            run.try_save()
            raise
        run.save()


class _Clock:
    """Measures the rate over the last 50 steps."""

    def __init__(self, step: int):
        self.times = deque([(step, time.monotonic())], maxlen=50)

    def state(self, config: TrainingConfig, step: int, losses: dict[str, float], is_last: bool) -> TrainingState:
        self.times.append((step, time.monotonic()))
        (first, began), (last, now) = self.times[0], self.times[-1]
        rate = (last - first) / max(now - began, 1e-9)
        return TrainingState(
            step=step,
            total_steps=config.total_steps,
            stage=config.stages[config.stage_at(step - 1)[0]],
            stage_finished=config.ends_stage(step) or is_last,
            is_last=is_last,
            losses=losses,
            learning_rate=config.learning_rate * config.rate_at(step - 1),
            rate=rate,
            eta_seconds=(config.total_steps - step) / rate,
        )
