"""Trajectory segmented consistency distillation: a pure function of (batch, draws), so that tests and several processes can
repeat it."""

import torch
from torch import nn

from ..config import Stage, TrainingConfig
from ..data.examples import Batch
from ..denoiser import Denoiser
from ..lora_layers import BACKBONE, STUDENT, TARGET, TEACHER, LoraLayers
from .discriminator import Features, Heads, discriminator_loss, generator_loss
from .draws import Draws, distance


class Tscd(nn.Module):
    """Trajectory segmented consistency distillation.

    loss = d(Psi(x_tn, student, t_end), Psi(x_tprev, target, t_end)) + adversarial loss, where x_tprev is one DDIM step of the
    guided teacher away from x_tn. Gradients reach the student, and the discriminator's own weights, only. The teacher is the
    bare network, or the network with the set "teacher" where there is one: then a style learnt before is distilled.

    Source: Hyper-SD, arXiv 2404.13686, Eq. 11-12 and algorithm 1. The solver is not named there; DDIM is that of LCM and TCD.
    Args:
        config: of the run.
        denoiser: the network.
        layers: with the sets "student" and "target", and "teacher" if there is one.
        heads: of the discriminator, for stages with an adversarial weight.
    """

    def __init__(self, config: TrainingConfig, denoiser: Denoiser, layers: LoraLayers, heads: Heads | None = None):
        super().__init__()
        self.config, self.layers, self.heads = config, layers, heads
        self.student = layers.sets[STUDENT]
        self.backbone = layers.sets.get(BACKBONE)
        object.__setattr__(self, "denoiser", denoiser)  # not a part of this module: its weights are not trained
        self.features = Features(denoiser, layers, BACKBONE if self.backbone is not None else None) if heads else None

    def forward(self, batch: Batch, draws: Draws, stage: Stage) -> dict[str, torch.Tensor]:
        """Returns {"loss", "distance"} and, in adversarial stages, {"adversarial", "discriminator"}."""
        x_n, point, target = self._points(batch, draws)
        apart = distance(point, target, self.config.distance, self.config.huber_c)
        losses = {"loss": stage.distance_weight * apart, "distance": apart.detach()}
        if stage.adversarial_weight and self.heads is not None:
            real = target
            if self.config.adversarial_real == "data":
                real = self.denoiser.diffusion.add_noise(batch.latents, draws.noise, draws.t_end)
            generator, discriminator = self.judged((x_n, draws.t_n), point, real, draws.t_end, batch)
            losses["loss"] = losses["loss"] + stage.adversarial_weight * generator + discriminator
            losses |= {"adversarial": generator.detach(), "discriminator": discriminator.detach()}
        return losses

    def distance(self, batch: Batch, draws: Draws) -> torch.Tensor:
        """Returns the distance of both points alone, a scalar."""
        _, point, target = self._points(batch, draws)
        return distance(point, target, self.config.distance, self.config.huber_c)

    def _points(self, batch: Batch, draws: Draws) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns the noisy latents, where the student leads from there, and where it should."""
        x_n = self.denoiser.diffusion.add_noise(batch.latents, draws.noise, draws.t_n)
        target = self.target_point(x_n, batch, draws)
        with self.layers.using(STUDENT):
            prediction = self.denoiser.predict(x_n, draws.t_n, batch.conditioning)
        return x_n, self.denoiser.diffusion.jump(x_n, prediction, draws.t_n, draws.t_end), target

    @torch.no_grad()
    def target_point(self, x_n: torch.Tensor, batch: Batch, draws: Draws) -> torch.Tensor:
        """Returns where the teacher's solver step and the target's jump lead from x_n: the student's goal at t_end."""
        jump, predict = self.denoiser.diffusion.jump, self.denoiser.predict
        unconditional = batch.unconditional if self.config.is_guided else {}
        with self.layers.using(TEACHER if TEACHER in self.layers.sets else None):
            taught = self.denoiser.guided(x_n, draws.t_n, batch.conditioning, unconditional, draws.guidance_scale)
        x_prev = jump(x_n, taught, draws.t_n, draws.t_prev)
        with self.layers.using(TARGET):
            prediction = predict(x_prev, draws.t_prev, batch.conditioning)
        return jump(x_prev, prediction, draws.t_prev, draws.t_end)

    def judged(
        self,
        start: tuple[torch.Tensor, torch.Tensor],
        point: torch.Tensor,
        real_point: torch.Tensor,
        t: torch.Tensor,
        batch: Batch,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the student's and the discriminator's hinge losses; each reaches only its own weights.

        Args:
            start: where both points come from: latents [batch, ...] and their timesteps [batch].
            point: the student's, [batch, ...].
            real_point: what counts as real, [batch, ...].
            t: timesteps of both points, [batch].
            batch: whose conditioning they have.
        """
        first = self.features(*start, batch.conditioning) if self.backbone is not None else None
        with torch.no_grad():
            first_fixed = self.features(*start, batch.conditioning) if first is None else [f.detach() for f in first]
        fake = self.features(point, t, batch.conditioning, frozen=True)
        generator = generator_loss(self.heads.judge_frozen(fake, first_fixed))
        if self.backbone is None:
            with torch.no_grad():
                real = self.features(real_point, t, batch.conditioning)
            fake, first = [f.detach() for f in fake], first_fixed
        else:
            real = self.features(real_point, t, batch.conditioning)
            fake = self.features(point.detach(), t, batch.conditioning)
        return generator, discriminator_loss(self.heads(real, first), self.heads(fake, first))
