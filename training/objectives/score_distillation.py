"""Score distillation for one step: a pure function of (batch, draws), on top of the consistency distillation.

The student's one step is drawn towards where the guided teacher's score and the score of what the student draws, the "fake"
score, differ. Student and fake score are adapter sets on the network that is the teacher, so no second network is held.
"""

from dataclasses import dataclass

import torch
from torch import nn

from ...samplers.schedule import TRAIN_TIMESTEPS
from ..config import Stage, TrainingConfig
from ..data.examples import Batch, rows, seeded
from ..data.teacher_pairs import Pairs
from ..denoiser import Denoiser
from ..lora_layers import FAKE, STUDENT, TEACHER, LoraLayers
from .discriminator import Heads
from .draws import Draws, distance
from .tscd import Tscd

SCORED = (20, 980)  # the timesteps of the gradient, both ends included; source: DMD2, arXiv 2405.14867, as released
SCORE_DRAW = 2  # what tells the random numbers of a step's scores from its other ones


@dataclass(frozen=True)
class ScoreDraws:
    """All randomness of one score: what the student draws its picture from, and how that picture is noised again.

    Args:
        start: noise of deviation 1 that the student's one step starts from, [batch, ...].
        t: timesteps that the picture is noised to, int [batch].
        noise: of deviation 1 that it is noised with, [batch, ...].
        guidance_scale: of the teacher, [batch].
    """

    start: torch.Tensor
    t: torch.Tensor
    noise: torch.Tensor
    guidance_scale: torch.Tensor

    def part(self, rows_: slice) -> "ScoreDraws":
        """Returns the draws of some rows of the batch."""
        return ScoreDraws(**rows(self.__dict__, rows_))

    def to(self, like: torch.Tensor) -> "ScoreDraws":
        """Returns the draws on the device of `like`, noises in its dtype, or float32 where that is less exact."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        moved = {k: v.to(like.device, non_blocking=True) for k, v in self.__dict__.items()}
        return ScoreDraws(**moved | {name: moved[name].to(dtype) for name in ("start", "noise")})


def draw_score(config: TrainingConfig, shape: tuple[int, ...], step: int, update: int) -> ScoreDraws:
    """Returns the draws of one update, a function of the config's seed, the step and the update alone.

    Args:
        config: of the run.
        shape: of the whole batch's latents, [batch, channels, ...].
        step: counted from 0 over the whole run.
        update: 0 is the student's, 1 and above are the fake score's.
    """
    generator, batch = seeded(config.seed, step, SCORE_DRAW, update), shape[0]
    low, high = (0, TRAIN_TIMESTEPS - 1) if update else SCORED
    start, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    t = torch.randint(low, high + 1, (batch,), generator=generator)
    least, most = config.guidance_scale
    return ScoreDraws(start, t, noise, least + (most - least) * torch.rand(batch, generator=generator))


def draw_once(denoiser: Denoiser, start: torch.Tensor, timestep: int, batch: Batch) -> torch.Tensor:
    """Returns the picture x0 [batch, ...] that the active adapter set draws in one step.

    Args:
        denoiser: the network.
        start: noise of deviation 1, [batch, ...].
        timestep: that the network is told the noise has.
        batch: whose conditioning is drawn.
    """
    t = torch.full((len(start),), timestep, device=start.device)
    return denoiser.diffusion.pred_x0(start, denoiser.predict(start, t, batch.conditioning), t)


def matching_gradient(x: torch.Tensor, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Returns the direction that a picture is to move against, [batch, ...].

    g = ((x - real) - (x - fake)) / mean|x - real|, the mean over all but the batch; 0 where that is no number.

    Source: Yin et al., DMD, arXiv 2311.18828, Eq. 7 and 8; DMD2, arXiv 2405.14867.
    Args:
        x: what the student drew, [batch, ...].
        real: x0 by the teacher, of x noised again, [batch, ...].
        fake: x0 by the fake score, of the same, [batch, ...].
    """
    away = x - real
    size = away.abs().mean(tuple(range(1, x.ndim)), keepdim=True)
    return torch.nan_to_num((away - (x - fake)) / size, posinf=0.0, neginf=0.0)


class FakeScore(nn.Module):
    """Plain denoising of what the student draws, learnt by the set "fake" alone."""

    def __init__(self, config: TrainingConfig, denoiser: Denoiser, layers: LoraLayers):
        super().__init__()
        self.config, self.layers = config, layers
        self.fake = layers.sets[FAKE]
        object.__setattr__(self, "denoiser", denoiser)  # not a part of this module: its weights are not trained

    def forward(self, batch: Batch, draws: ScoreDraws) -> dict[str, torch.Tensor]:
        """Returns {"loss"}, the mean squared error of the prediction."""
        diffusion = self.denoiser.diffusion
        with torch.no_grad(), self.layers.using(STUDENT):
            x = draw_once(self.denoiser, draws.start, self.config.start_timestep, batch)
        noisy = diffusion.add_noise(x, draws.noise, draws.t)
        with self.layers.using(FAKE):
            prediction = self.denoiser.predict(noisy, draws.t, batch.conditioning)
        target = diffusion.training_target(x, draws.noise, draws.t)
        return {"loss": distance(prediction, target, "mse", self.config.huber_c)}


class ScoreDistillation(nn.Module):
    """The student's side of a stage for one step, and the consistency distillation of all others.

    loss = score_weight * 0.5 mse(x, fixed(x - g)) + pair_weight * d(x', teacher's picture) + distance_weight * TSCD
    + adversarial loss. x and x' are the student's one step from noise of deviation 1; g is matching_gradient().

    Source: Hyper-SD, arXiv 2404.13686, section 3.4, which names DMD and a mean squared error; no code of it is public. The
    pairs are DMD's regression term, arXiv 2311.18828, section 3.3.
    Args:
        config: of the run.
        denoiser: the network.
        layers: with the set "student", "target" where a stage has a consistency distillation, "fake" where one has a
            score_weight, and "teacher" if there is one.
        heads: of the discriminator, for stages with an adversarial weight.
    """

    def __init__(self, config: TrainingConfig, denoiser: Denoiser, layers: LoraLayers, heads: Heads | None = None):
        super().__init__()
        self.config, self.layers, self.tscd = config, layers, Tscd(config, denoiser, layers, heads)
        object.__setattr__(self, "denoiser", denoiser)  # not a part of this module: its weights are not trained

    def forward(
        self, batch: Batch, draws: Draws, stage: Stage, score: ScoreDraws | None = None, pairs: Pairs | None = None
    ) -> dict[str, torch.Tensor]:
        """Returns the losses of a step.

        Args:
            batch: of examples.
            draws: of the consistency distillation.
            stage: what counts how much.
            score: draws of the score, for a stage with a score_weight or an adversarial one for one step.
            pairs: noise and what the teacher made of it, for a stage with a pair_weight.
        Returns: "loss" and "distance"; those of Tscd, and "score" and "pairs" in stages that have them.
        """
        if not stage.is_one_step:
            return self.tscd(batch, draws, stage)
        parts = {}
        if stage.distance_weight:
            parts["distance"] = self.tscd.distance(batch, draws)
        if stage.pair_weight:
            with self.layers.using(STUDENT):
                x = draw_once(self.denoiser, pairs.start, self.config.start_timestep, pairs.batch)
            parts["pairs"] = distance(x, pairs.batch.latents, self.config.distance, self.config.huber_c)
        if stage.score_weight or self._judges(stage):
            parts |= self._scored(batch, score, stage)
        weights = {
            "distance": stage.distance_weight, "pairs": stage.pair_weight, "score": stage.score_weight,
            "adversarial": stage.adversarial_weight, "discriminator": 1.0,
        }  # fmt: skip
        losses = {name: part.detach() for name, part in parts.items()}
        shown = next(losses[name] for name in ("pairs", "distance", "score") if name in losses)
        return {"loss": sum(weights[name] * part for name, part in parts.items()), **losses, "distance": shown}

    def _judges(self, stage: Stage) -> bool:
        return bool(stage.adversarial_weight) and self.tscd.heads is not None

    def _scored(self, batch: Batch, draws: ScoreDraws, stage: Stage) -> dict[str, torch.Tensor]:
        """Returns the parts that look at one and the same picture of the student's."""
        with self.layers.using(STUDENT):
            x = draw_once(self.denoiser, draws.start, self.config.start_timestep, batch)
        noisy, parts = self.denoiser.diffusion.add_noise(x, draws.noise, draws.t), {}
        if stage.score_weight:
            towards = (x - self.gradient(x, noisy, batch, draws)).detach()
            parts["score"] = 0.5 * distance(x, towards, "mse", self.config.huber_c)
        if self._judges(stage):
            real = self.denoiser.diffusion.add_noise(batch.latents.to(x), draws.noise, draws.t)
            start = draws.start, torch.full_like(draws.t, self.config.start_timestep)
            parts["adversarial"], parts["discriminator"] = self.tscd.judged(start, noisy, real, draws.t, batch)
        return parts

    @torch.no_grad()
    def gradient(self, x: torch.Tensor, noisy: torch.Tensor, batch: Batch, draws: ScoreDraws) -> torch.Tensor:
        """Returns matching_gradient() of the student's picture x [batch, ...], noised to draws.t as `noisy`."""
        unconditional = batch.unconditional if self.config.is_guided else {}
        with self.layers.using(TEACHER if TEACHER in self.layers.sets else None):
            taught = self.denoiser.guided(noisy, draws.t, batch.conditioning, unconditional, draws.guidance_scale)
        with self.layers.using(FAKE):
            faked = self.denoiser.predict(noisy, draws.t, batch.conditioning)
        real, fake = (self.denoiser.diffusion.pred_x0(noisy, prediction, draws.t) for prediction in (taught, faked))
        return matching_gradient(x, real, fake)
