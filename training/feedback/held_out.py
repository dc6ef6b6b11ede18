"""How good a student's pictures are by every scorer, of the same prompts and noise, before it learns and after."""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

from ..config import TrainingConfig
from ..data.examples import Examples
from ..denoiser import Denoiser
from ..engine import LocalEngine
from ..lora_layers import APPROVED, DISTILLED, STUDENT, LoraLayers
from ..objectives.feedback import Reward
from ..sampling import sample_latents
from .judge import Judge

logger = logging.getLogger("hyper_sd")
LEAST_DEVIATION = 1e-6  # of scores: pictures that all have one score say nothing of its scale
SURE = 2.0  # standard errors that a fall must have to count as one


class HeldOut:
    """Looks at a student now and then, and ends its run where a reward that it does not learn from falls.

    The first look is at the student without the feedback. It gives the rewards their scale, and what later looks are compared
    with, picture by picture. A fall is one of more than two standard errors of these differences.

    Args:
        config: of the run, with settings of feedback.
        denoiser: the network.
        layers: with the set "student"; the set "approved" is added where there is a held-out reward.
        examples: whose prompts are drawn: the first of the largest bucket.
        judge: decodes and scores.
        engine: of the run; what is decided is the same in all of its processes.
        context: returns what each call of the network runs in, for example autocast.
    Attributes:
        ended: whether the run is over, as the reward has fallen.
    """

    def __init__(
        self,
        config: TrainingConfig,
        denoiser: Denoiser,
        layers: LoraLayers,
        examples: Examples,
        judge: Judge,
        engine: LocalEngine,
        context: Callable[[], AbstractContextManager],
    ):
        self.config, self.settings = config, config.feedback
        self.denoiser, self.layers, self.examples, self.judge = denoiser, layers, examples, judge
        self.engine, self.context = engine, context
        self.first: dict[str, torch.Tensor] = {}  # scores before the run, by the scorer's id
        self.seen, self.falls, self.ended = 0, 0, False  # the last step that was looked at, and falls in a row
        if self.settings.held_out:
            layers.add(APPROVED, copy_of=STUDENT).requires_grad_(False)

    def begin(self, state: Mapping[str, Any] | None) -> dict[str, Reward]:
        """Takes the first look, or what a checkpoint kept of it, and returns the rewards by the scorers' ids.

        Args:
            state: as state() gave it; None for a new run.
        Raises: RewardError as Scorer.score().
        """
        if state is None:
            self.first = self._look(DISTILLED if DISTILLED in self.layers.sets else None)
        else:
            self.first = {name: torch.tensor(scores) for name, scores in state["first"].items()}
            self.seen, self.falls, self.ended = state["seen"], state["falls"], state["ended"]
        return {name: self._reward(name) for name in self.settings.rewards}

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps, as JSON values."""
        first = {name: scores.tolist() for name, scores in self.first.items()}
        return {"first": first, "seen": self.seen, "falls": self.falls, "ended": self.ended}

    def is_due(self, step: int) -> bool:
        """Returns whether the student of so many steps is to be looked at and has not been."""
        is_time = step % self.settings.check_every == 0 or step == self.config.total_steps
        return bool(self.settings.held_out) and is_time and step > self.seen and not self.ended

    def look(self, step: int) -> None:
        """Looks at the student after so many steps; where its reward has fallen too often, it becomes what it was before.

        At the last step a fall always counts.

        Raises: RewardError as Scorer.score().
        """
        name, is_last = self.settings.held_out, step == self.config.total_steps
        now = self._look(*self.layers.drawing)[name]
        change = now - self.first[name]
        error = float(change.std() / len(change) ** 0.5)
        has_fallen = float(change.mean()) < -SURE * error
        falls = self.falls + 1 if has_fallen else 0
        ends = has_fallen and (is_last or falls >= self.settings.patience)
        logger.info("Step %d: held-out %s %.4g, %.4g before", step, name, now.mean(), self.first[name].mean())
        if ends:
            logger.warning(
                "%s, which nothing is learnt from, has fallen: the run ends after %d steps with what it approved last.",
                name, step,
            )  # fmt: skip
            self.layers.sets[STUDENT].copy_from(self.layers.sets[APPROVED])
        elif not has_fallen:
            self.layers.sets[APPROVED].copy_from(self.layers.sets[STUDENT])
        self.seen, self.falls, self.ended = step, falls, ends  # at the end: an interrupted look is taken again

    def _look(self, *sets: str | None) -> dict[str, torch.Tensor]:
        """Returns the scores of every picture by the scorer's id, the pictures drawn with these sets."""
        settings, found = self.settings, []
        with self.context(), self.layers.using(*sets):
            for steps in settings.steps:
                start = {"start_timestep": settings.start_timestep} if steps == 1 else {}
                for number, seed in self._drawn():
                    # one by one, so that it is the same picture however a batch is split
                    batch = self.examples.batch([number], 0).to(self.engine.device)
                    latents = sample_latents(
                        self.denoiser, batch.conditioning, {}, batch.latents.shape, steps=steps, eta=settings.eta,
                        num_segments=settings.num_segments, seed=seed, **start,
                    )  # fmt: skip
                    found.append(self.judge.scores(latents, batch.prompts or [""]))
        scores = {name: torch.cat([scores[name] for scores in found]) for name in self.judge.scorers}
        return {name: self.engine.mean(own.to(self.engine.device)).cpu() for name, own in scores.items()}

    def _drawn(self) -> list[tuple[int, int]]:
        """Returns the example and the seed of every picture; too few prompts are drawn again, from other noise."""
        bucket, count = max(self.examples.buckets, key=len), sum(map(len, self.examples.buckets))
        places = [divmod(place, len(bucket)) for place in range(self.settings.check_prompts)]
        return [(bucket[own], self.config.seed + bucket[own] + again * count) for again, own in places]

    def _reward(self, name: str) -> Reward:
        scores = self.first[name]
        deviation = max(float(scores.std()), LEAST_DEVIATION)
        enough = float(scores.mean()) + self.settings.reach * deviation
        logger.info("%s: %.4g before, %.4g is good enough", name, scores.mean(), enough)
        return Reward(self.judge.scorers[name], enough, 1 / deviation)
