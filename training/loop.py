"""The training loop: a generator of per-step states, so that a node, a terminal and a test drive the same one."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import TrainingError
from .checkpoint import CheckpointError, flatten_optimizer, load_checkpoint, restore_optimizer, save_checkpoint
from .config import Stage, TrainingConfig, to_plain
from .data.examples import BatchOrder, Examples
from .denoiser import Denoiser
from .engine import LocalEngine
from .lora_layers import BACKBONE, STUDENT, TARGET, TEACHER, LoraLayers
from .objectives.discriminator import Features, Heads
from .objectives.draws import draw_step
from .objectives.finetune import Finetune
from .objectives.tscd import Tscd
from .recompute import recomputing

logger = logging.getLogger("hyper_sd")

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class TrainingState:
    """What is known after a step.

    Args:
        step: optimizer steps done.
        total_steps: optimizer steps of the whole run.
        stage: that the step belonged to.
        stage_finished: whether the step was the last of its stage.
        losses: means over the batch: "loss", "distance", in adversarial stages "adversarial" and "discriminator".
        learning_rate: of the student.
        rate: steps a second over the last 50.
        eta_seconds: to the end of the run at that rate.
    """

    step: int
    total_steps: int
    stage: Stage
    stage_finished: bool
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
        layers: on denoiser.network, with the rank of the config. A set "teacher" is what "tscd" distils, and stays as it is.
        examples: what is learnt from.
        folder: where checkpoint.safetensors is kept; None keeps none.
        engine: what runs a step; None takes one process on the network's device.
        stop: asked after every step.
    Raises: TrainingError for a checkpoint of other settings, a loss that is not finite, and memory that does not suffice.
        CheckpointError where the last checkpoint cannot be written; the trained weights are in `layers` all the same.
    """
    device = next(denoiser.network.parameters()).device
    engine = engine or LocalEngine(device, config.precision)
    with ExitStack() as stack:
        stack.enter_context(denoiser.frozen())
        if config.gradient_checkpointing:
            stack.enter_context(recomputing(denoiser.network, layers))
        run = Run(config, denoiser, layers, examples, engine, folder)
        clock = _Clock(run.step)
        try:
            while run.step < config.total_steps and not stop():
                losses = run.advance()
                yield clock.state(config, run.step, losses)
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

    def state(self, config: TrainingConfig, step: int, losses: dict[str, float]) -> TrainingState:
        self.times.append((step, time.monotonic()))
        (first, began), (last, now) = self.times[0], self.times[-1]
        rate = (last - first) / max(now - began, 1e-9)
        return TrainingState(
            step=step,
            total_steps=config.total_steps,
            stage=config.stages[config.stage_at(step - 1)[0]],
            stage_finished=config.ends_stage(step),
            losses=losses,
            learning_rate=config.learning_rate * config.rate_at(step - 1),
            rate=rate,
            eta_seconds=(config.total_steps - step) / rate,
        )


class Run:
    """The state of a run between two steps: adapter sets, heads, optimizer and the number of steps done; see train()."""

    def __init__(
        self,
        config: TrainingConfig,
        denoiser: Denoiser,
        layers: LoraLayers,
        examples: Examples,
        engine: LocalEngine,
        folder: Path | None,
    ):
        self.size = config.part_size(engine.world)
        self.config, self.denoiser, self.layers, self.examples, self.engine = config, denoiser, layers, examples, engine
        self.order = BatchOrder(examples.buckets, config.batch_size, config.seed)
        self.path = folder / CHECKPOINT if folder else None
        self.step, self.saved, self.whole = 0, -1, True
        self._make_sets()
        self.heads = self._make_heads() if config.is_adversarial else None
        distils = config.objective == "tscd"
        objective = Tscd(config, denoiser, layers, self.heads) if distils else Finetune(config, denoiser, layers)
        self.objective, self.optimizer = engine.prepare(objective, self._make_optimizer())
        if self.path and self.path.exists():
            self._load()

    def _make_sets(self) -> None:
        if STUDENT not in self.layers.sets:
            self.layers.add(STUDENT, seed=self.config.seed)
        if self.config.has_target:
            self.layers.add(TARGET, copy_of=STUDENT).requires_grad_(False)
        if TEACHER in self.layers.sets:
            self.layers.sets[TEACHER].requires_grad_(False)
        if self.config.train_backbone and self.config.is_adversarial:
            self.layers.add(BACKBONE, seed=self.config.seed + 1)

    def _make_heads(self) -> Heads:
        """Builds the heads for the widths that a trial run through the encoder shows."""
        batch = self.examples.batch(self.order.numbers(0)[:1], 0).to(self.engine.device)
        with torch.no_grad(), self.engine.autocast():
            features = Features(self.denoiser, self.layers)(
                batch.latents, torch.zeros(1, dtype=torch.long, device=self.engine.device), batch.conditioning
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            return Heads([f.shape[1] for f in features]).to(self.engine.device)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        groups = [{"params": list(self.layers.sets[STUDENT].parameters()), "lr": config.learning_rate}]
        if self.heads is not None:
            judges = [self.heads, *([self.layers.sets[BACKBONE]] if config.train_backbone else [])]
            parameters = [p for part in judges for p in part.parameters()]
            groups.append({"params": parameters, "lr": config.discriminator_learning_rate})
        for group in groups:
            group["base_lr"] = group["lr"]
        return torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=config.weight_decay)

    def advance(self) -> dict[str, float]:
        """Takes one optimizer step and returns the mean losses.

        Raises: TrainingError as train().
        """
        config, engine, step = self.config, self.engine, self.step
        factor = config.rate_at(step)
        for position, group in enumerate(self.optimizer.param_groups):
            group["lr"] = group["base_lr"] * (factor if position == 0 else 1.0)
        try:
            losses = self._accumulate(config.stages[config.stage_at(step)[0]])
            if not all(map(math.isfinite, losses.values())):
                raise TrainingError(self._not_finite("loss", losses))
            self.whole = False  # an interrupt in here leaves a state that must not be saved
            if not engine.update(self.optimizer, config.max_grad_norm):
                raise TrainingError(self._not_finite("gradient", losses))
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            raise TrainingError(_memory_advice(config, error)) from error
        if config.has_target:
            self.layers.sets[TARGET].move_towards(self.layers.sets[STUDENT], config.ema_decay)
        self.step += 1
        self.whole = True
        return losses

    def _accumulate(self, stage: Stage) -> dict[str, float]:
        """Adds up the gradients of this process's share of the batch and returns the mean losses of the whole."""
        config, engine = self.config, self.engine
        numbers, size = self.order.numbers(self.step), self.size
        draws, sums = None, {}
        for part in range(config.accumulation):
            first = (part * engine.world + engine.rank) * size
            own = slice(first, first + size)
            batch = self.examples.batch(numbers[own], self.step * config.batch_size + first).to(engine.device)
            if draws is None:  # for the whole batch, so that every split of it sees the same ones
                draws = draw_step(config, stage, (config.batch_size, *batch.latents.shape[1:]), self.step)
            with engine.accumulating(self.objective, last=part == config.accumulation - 1):
                with engine.autocast():
                    losses = self.objective(batch, draws.part(own).to(batch.latents), stage)
                engine.backward(losses["loss"] / config.accumulation)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach().float() / config.accumulation
        means = engine.mean(torch.stack(list(sums.values()))).tolist()
        return dict(zip(sums, means, strict=True))

    def _not_finite(self, what: str, losses: dict[str, float]) -> str:
        saved = "No checkpoint was saved before" if self.saved < 0 else f"The last checkpoint, step {self.saved}, is kept"
        values = ", ".join(f"{name} {value:g}" for name, value in losses.items())
        return (
            f"The {what} is not a number any more at step {self.step + 1} ({values}). {saved}. Lower the learning rate "
            f"(now {self.config.learning_rate:g}), use precision bf16 or fp32, or check the data for broken latents."
        )

    def save(self) -> None:
        """Writes the checkpoint in the main process, unless this step is saved already.

        Raises: CheckpointError where it cannot be written.
        """
        if self.path is None or self.step == self.saved or self.engine.rank or not self.whole:
            return
        parts = {name: dict(adapters.named_parameters()) for name, adapters in self.layers.sets.items()}
        parts["optimizer"] = flatten_optimizer(self.optimizer)
        if self.heads is not None:
            parts["heads"] = self.heads.state_dict()
        values = {"step": self.step, "config": to_plain(self.config), "scaler": self.engine.scaler_state()}
        save_checkpoint(self.path, parts, values)
        self.saved = self.step

    def try_save(self) -> None:
        """Saves; an error is logged and does not end the run."""
        try:
            self.save()
        except CheckpointError as error:
            logger.warning("Step %d is not saved: %s", self.step, error)

    def _load(self) -> None:
        parts, values = load_checkpoint(self.path)
        changed = self.config.differences(values["config"])
        if (TEACHER in parts) != (TEACHER in self.layers.sets):
            changed.append("teacher: a LoRA then, none now" if TEACHER in parts else "teacher: none then, a LoRA now")
        if changed:
            raise TrainingError(
                f"{self.path} belongs to a run with other settings ({'; '.join(changed)}). Use those again, or another folder."
            )
        for name, adapters in self.layers.sets.items():
            adapters.load_state_dict(parts[name])
        if self.heads is not None:
            self.heads.load_state_dict(parts["heads"])
        restore_optimizer(self.optimizer, parts.get("optimizer", {}))
        self.engine.load_scaler_state(values["scaler"])
        self.step = self.saved = values["step"]


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "allocate memory" in str(error).lower()


def _memory_advice(config: TrainingConfig, error: BaseException) -> str:
    at_once = config.batch_size // config.accumulation
    steps = [] if config.gradient_checkpointing else ["turn on gradient_checkpointing"]
    steps += [f"raise accumulation (now {config.accumulation}, {at_once} examples at a time)"] if at_once > 1 else []
    steps += [f"lower rank (now {config.rank})", "use smaller images"]
    return f"Not enough memory for this training ({error}). What helps, best first: {'; '.join(steps)}."
