"""The state of a run between two steps, and the step itself."""

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import TrainingError
from .checkpoint import CheckpointError, flatten_optimizer, load_newest, restore_optimizer, save_checkpoint
from .config import Stage, TrainingConfig
from .data.examples import Batch, BatchOrder, Examples
from .data.teacher_pairs import TeacherPairs
from .denoiser import Denoiser
from .engine import LocalEngine
from .feedback.held_out import HeldOut
from .feedback.judge import Judge, require_judge
from .graphs import make_graphs
from .lora_layers import BACKBONE, DISTILLED, FAKE, STUDENT, TARGET, TEACHER, LoraLayers
from .memory import give_back
from .objectives.discriminator import Features, Heads
from .objectives.draws import draw_step
from .objectives.feedback import Feedback, draw_feedback
from .objectives.finetune import Finetune
from .objectives.score_distillation import FakeScore, ScoreDistillation, draw_score
from .optimizers import make_optimizer
from .out_of_memory import explaining_memory
from .plain_config import differences, to_plain

logger = logging.getLogger("hyper_sd")

CHECKPOINT = "checkpoint.safetensors"
Losses, Inputs = dict[str, torch.Tensor], dict[str, Any]  # of an objective, by name


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
        judge: Judge | None = None,
    ):
        self.size = config.part_size(engine.world)
        self.config, self.denoiser, self.layers, self.examples, self.engine = config, denoiser, layers, examples, engine
        self.order = BatchOrder(examples.buckets, config.batch_size, config.seed)
        self.path = folder / CHECKPOINT if folder else None
        self.step, self.saved, self.whole, self.damaged = 0, -1, True, False
        self._make_sets()
        self.heads = self._make_heads() if config.is_adversarial else None
        # Nothing refers back to the run, so that what it holds on a card is free as soon as it ends.
        autocast = partial(engine.autocast, denoiser)
        self.pairs = TeacherPairs(config, denoiser, layers, examples, engine.device, folder, autocast)
        self.judge, self.rewards, self.held_out = judge, {}, None
        if config.feedback:
            require_judge(config.feedback, judge, examples)
            self.held_out = HeldOut(config, denoiser, layers, examples, judge, engine, autocast)
        self._prepare()
        self.graphs = make_graphs(config, engine, layers.sets.values)
        saved = self._load() if self.path and self.path.exists() else {}
        if self.held_out:
            self.rewards.update(self.held_out.begin(saved.get("held_out")))

    def _context(self) -> AbstractContextManager:
        return self.engine.autocast(self.denoiser)

    def _make_sets(self) -> None:
        student = self.layers.sets.get(STUDENT) or self.layers.add(STUDENT, seed=self.config.seed)
        student.zero_grad()  # of a step in whose middle an earlier run was stopped
        if self.config.has_target:
            self.layers.add(TARGET, copy_of=STUDENT).requires_grad_(False)
        for name in {TEACHER, DISTILLED} & self.layers.sets.keys():
            self.layers.sets[name].requires_grad_(False)
        if self.config.train_backbone and self.config.is_adversarial:
            self.layers.add(BACKBONE, seed=self.config.seed + 1)
        if self.config.has_fake:
            self.layers.add(FAKE, copy_of=TEACHER if TEACHER in self.layers.sets else None, seed=self.config.seed + 2)

    def _prepare(self) -> None:
        """Makes the objective, the fake score's own where a stage has one, and their optimizers."""
        config, given = self.config, (self.config, self.denoiser, self.layers)
        if config.feedback is not None:
            objective = Feedback(config.feedback, self.denoiser, self.layers, self.judge, self.rewards)
        else:
            objective = ScoreDistillation(*given, self.heads) if config.objective == "tscd" else Finetune(*given)
        parts = [objective, self._make_optimizer()]
        if config.has_fake:
            groups = [{"params": list(self.layers.sets[FAKE].parameters()), "lr": config.fake_learning_rate}]
            parts += [FakeScore(*given), make_optimizer(groups, config)]
        self.objective, self.optimizer, *fake = self.engine.prepare(*parts)
        self.fake_objective, self.fake_optimizer = fake or (None, None)

    def _make_heads(self) -> Heads:
        """Builds the heads for the widths that a trial run through the encoder shows."""
        batch = self.examples.batch(self.order.numbers(0)[:1], 0).to(self.engine.device)
        with torch.no_grad(), self._context():
            features = Features(self.denoiser, self.layers)(
                batch.latents, torch.zeros(1, dtype=torch.long, device=self.engine.device), batch.conditioning
            )
        give_back(self.engine.device)
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
        return make_optimizer(groups, config)

    def advance(self) -> dict[str, float]:
        """Takes one optimizer step and returns the mean losses.

        Raises: TrainingError as train().
        """
        config, factor = self.config, self.config.rate_at(self.step)
        for position, group in enumerate(self.optimizer.param_groups):
            group["lr"] = group["base_lr"] * (factor if position == 0 else 1.0)
        index, inside = config.stage_at(self.step)
        stage = config.stages[index]
        with explaining_memory(config):
            losses = self._learn_fake() if stage.score_weight else {}
            rests = bool(stage.score_weight) and inside < config.fake_warmup
            losses |= self._learn_student(stage, rests)
        if config.has_target:
            self.layers.sets[TARGET].move_towards(self.layers.sets[STUDENT], config.ema_decay)
        self.step += 1
        self.whole = True
        return losses

    def goes_on(self) -> bool:
        """Returns whether steps are left, after a look at the held-out reward where one is due.

        Raises: TrainingError where memory does not suffice; RewardError as Scorer.score().
        """
        if self.held_out is not None and self.held_out.is_due(self.step):
            with explaining_memory(self.config):
                self.held_out.look(self.step)
            self.saved = min(self.saved, self.step - 1)  # what was found belongs into the checkpoint
        return self.step < self.config.total_steps and not (self.held_out is not None and self.held_out.ended)

    def _learn_fake(self) -> dict[str, float]:
        """Takes the fake score's optimizer steps, and returns the mean of its losses."""
        found = []
        for update in range(1, self.config.fake_updates + 1):

            def inputs_of(batch: Batch, own: slice, shape: tuple[int, ...], update: int = update) -> Inputs:
                return {"batch": batch, "draws": draw_score(self.config, shape, self.step, update).part(own).to(batch.latents)}

            found.append(self._accumulate(self.fake_objective, inputs_of)["loss"])
            self._update(self.fake_optimizer, {"fake": found[-1]})
        return {"fake": sum(found) / len(found)}

    def _learn_student(self, stage: Stage, rests: bool) -> dict[str, float]:
        """Takes the student's optimizer step and returns its losses; while it rests, only these.

        Args:
            stage: of the step.
            rests: whether no weight is to change.
        """

        def inputs_of(batch: Batch, own: slice, shape: tuple[int, ...]) -> Inputs:
            if self.config.feedback is not None:
                drawn = draw_feedback(self.config.feedback, self.config.seed, shape, self.step)
                return {"batch": batch, "draws": drawn.part(own).to(batch.latents)}
            draws = draw_step(self.config, stage, shape, self.step).part(own).to(batch.latents)
            inputs = {"batch": batch, "draws": draws, "stage": stage}
            if stage.is_one_step:
                inputs["score"] = draw_score(self.config, shape, self.step, 0).part(own).to(batch.latents)
            if stage.pair_weight:
                inputs["pairs"] = self.pairs.part(self.step, own)
            return inputs

        if rests:
            with torch.no_grad():
                return self._accumulate(self.objective, inputs_of, learns=False)
        losses = self._accumulate(self.objective, inputs_of)
        self._update(self.optimizer, losses)
        return losses

    def _update(self, optimizer: torch.optim.Optimizer, losses: dict[str, float]) -> None:
        """Lets an optimizer step.

        Raises: TrainingError where a loss or a gradient is not finite.
        """
        if not all(map(math.isfinite, losses.values())):
            raise TrainingError(self._not_finite("loss", losses))
        self.whole = False  # an interrupt in here leaves a state that must not be saved
        for adapters in self.layers.sets.values():
            adapters.forget()  # torch's fused kernels do not count the change they make
        if not self.engine.update(optimizer, self.config.max_grad_norm):
            raise TrainingError(self._not_finite("gradient", losses))

    def _accumulate(
        self, objective: nn.Module, inputs_of: Callable[[Batch, slice, tuple[int, ...]], Inputs], learns: bool = True
    ) -> dict[str, float]:
        """Adds up the gradients of this process's share of the batch and returns the mean losses of the whole.

        Args:
            objective: whose gradients processes exchange.
            inputs_of: (examples, which rows of the whole batch they are, shape of the whole batch's latents) -> what the
                objective is given by name. What it draws, it draws for the whole batch, so that every split sees the same.
            learns: whether gradients are wanted.
        """
        config, engine, sums = self.config, self.engine, {}
        numbers, size = self.order.numbers(self.step), self.size
        for part in range(config.accumulation):
            first = (part * engine.world + engine.rank) * size
            own = slice(first, first + size)
            batch = self.examples.batch(numbers[own], self.step * config.batch_size + first).to(engine.device)
            inputs = inputs_of(batch, own, (config.batch_size, *batch.latents.shape[1:]))
            with engine.accumulating(objective, last=part == config.accumulation - 1) if learns else nullcontext():
                losses = self._pass(objective, inputs, learns)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach().float() / config.accumulation
        means = engine.mean(torch.stack(list(sums.values()))).tolist()
        return dict(zip(sums, means, strict=True))

    def _pass(self, objective: nn.Module, inputs: Inputs, learns: bool) -> Losses:
        """Runs one part of a step, with its backward pass where gradients are wanted."""

        def run(inputs: Inputs) -> Losses:
            with self._context():
                losses = objective(**inputs)
            if learns:
                self.engine.backward(losses["loss"] / self.config.accumulation)
            return {name: value.detach() for name, value in losses.items()}

        if self.graphs is None or not learns:
            return run(inputs)
        return self.graphs.losses((id(objective), inputs.get("stage")), run, inputs, objective.parameters())

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
        if self.fake_optimizer is not None:
            parts["fake_optimizer"] = flatten_optimizer(self.fake_optimizer)
        if self.heads is not None:
            parts["heads"] = self.heads.state_dict()
        values = {"step": self.step, "config": to_plain(self.config), "scaler": self.engine.scaler_state()}
        if self.held_out is not None:
            values["held_out"] = self.held_out.state()
        save_checkpoint(self.path, parts, values, keep=not self.damaged)
        self.saved, self.damaged = self.step, False

    def try_save(self) -> None:
        """Saves; an error is logged and does not end the run."""
        try:
            self.save()
        except CheckpointError as error:
            logger.warning("Step %d is not saved: %s", self.step, error)

    def _load(self) -> dict[str, Any]:
        """Takes over the checkpoint, and returns the values in it."""
        parts, values, self.damaged = load_newest(self.path)
        changed = differences(self.config, values["config"])
        for name in (TEACHER, DISTILLED):
            if (name in parts) != (name in self.layers.sets):
                changed.append(f"{name}: a LoRA then, none now" if name in parts else f"{name}: none then, a LoRA now")
        if changed:
            raise TrainingError(
                f"{self.path} belongs to a run with other settings ({'; '.join(changed)}). Use those again, or another folder."
            )
        for name, adapters in self.layers.sets.items():
            adapters.load_state_dict(parts[name])
        if self.heads is not None:
            self.heads.load_state_dict(parts["heads"])
        restore_optimizer(self.optimizer, parts.get("optimizer", {}))
        if self.fake_optimizer is not None:
            restore_optimizer(self.fake_optimizer, parts.get("fake_optimizer", {}))
        self.engine.load_scaler_state(values["scaler"])
        self.step = self.saved = values["step"]
        return values
