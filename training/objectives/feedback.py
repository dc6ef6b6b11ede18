"""Human feedback on a few-step student: a pure function of (batch, draws) that asks for pictures people like better.

What is learnt is an adapter set of its own on top of the distilled student, so that it can be taken at any strength.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from ...errors import TrainingError
from ...rewards.instances import Instances
from ...rewards.scorer import Scorer
from ...samplers.timesteps import LAST_TIMESTEP, hyper_sd_sigmas, hyper_sd_timesteps
from ..data.examples import Batch, seeded
from ..denoiser import Denoiser
from ..feedback.judge import Judge, in_full
from ..feedback.settings import FeedbackSettings
from ..lora_layers import DISTILLED, STUDENT, LoraLayers
from ..sampling import schedule_of_diffusion, walk
from .draws import distance

FEEDBACK_DRAW = 5  # what tells the random numbers of this objective from a run's other ones


@dataclass(frozen=True)
class Reward:
    """What pictures are judged by, and from where on that is enough.

    Args:
        scorer: a frozen scorer; a higher score is a better picture.
        enough: the score from which on no more is asked for. A value too high burns pictures.
        weight: of what is missing to that.
    """

    scorer: Scorer
    enough: float
    weight: float = 1.0


@dataclass(frozen=True)
class FeedbackDraws:
    """All randomness of a step.

    Args:
        steps: that the student draws with.
        stop: the step that learns, counted from 0; those before it run without a gradient.
        start: noise of deviation 1, [batch, ...].
        between: the same that the steps before the one that learns add, [stop, batch, ...].
        views: how each picture is scaled, moved right and down, from -1 to 1, [batch, 3].
        t: timesteps that real pictures are noised to, int [batch].
        noise: that these are noised with, [batch, ...].
    """

    steps: int
    stop: int
    start: torch.Tensor
    between: torch.Tensor
    views: torch.Tensor
    t: torch.Tensor
    noise: torch.Tensor

    def part(self, rows: slice) -> "FeedbackDraws":
        """Returns the draws of some rows of the batch."""
        own = {name: getattr(self, name)[rows] for name in ("start", "views", "t", "noise")}
        return replace(self, between=self.between[:, rows], **own)

    def to(self, like: torch.Tensor) -> "FeedbackDraws":
        """Returns the draws on the device of `like`, noise in its dtype."""
        noise = {name: getattr(self, name).to(like) for name in ("start", "between", "views", "noise")}
        return replace(self, t=self.t.to(like.device), **noise)


def draw_feedback(settings: FeedbackSettings, seed: int, shape: tuple[int, ...], step: int) -> FeedbackDraws:
    """Returns a step's draws, a function of the seed and of the step alone.

    Args:
        settings: of the feedback.
        seed: of the run.
        shape: of the whole batch's latents, [batch, channels, ...].
        step: counted from 0.
    """
    generator = seeded(seed, step, FEEDBACK_DRAW)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    steps = settings.steps[draw(0, len(settings.steps) - 1)]
    stop = draw(0, steps - 1)
    start, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    t = torch.randint(settings.noised_to[0], settings.noised_to[1] + 1, (shape[0],), generator=generator)
    between, views = torch.randn((stop, *shape), generator=generator), torch.rand(shape[0], 3, generator=generator)
    return FeedbackDraws(steps, stop, start, between, 2 * views - 1, t, noise)


class Feedback(nn.Module):
    """Reward feedback learning for few-step students.

    loss = sum over rewards of weight * mean relu(enough - score(picture)) + brake_weight * d(x0, x0 without the feedback)
    + instance_weight * SOLO's loss of a real picture that was noised part of the way. The student runs to a random step of its
    own grid without a gradient; the gradient goes back through that one step alone, and through the decoder.

    Source: ReFL, arXiv 2304.05977, algorithm 1; the hinge and the perceptual term: UniFL, arXiv 2404.05595, Eq. 3 and
    algorithm 1; for a LoRA of its own and no further loss: Hyper-SD, arXiv 2404.13686, section 3.3, and its author's word.
    Args:
        settings: of the feedback.
        denoiser: the network.
        layers: with the set "student", what is learnt, on top of "distilled", the student as it was; without that one the
            network by itself is the student as it was.
        judge: decodes pictures, and sees things in them for an instance_weight.
        rewards: by name.
    """

    def __init__(
        self,
        settings: FeedbackSettings,
        denoiser: Denoiser,
        layers: LoraLayers,
        judge: Judge,
        rewards: Mapping[str, Reward],
    ):
        super().__init__()
        if settings.instance_weight and judge.instances is None:
            raise TrainingError("An instance_weight needs a network that sees instances; set it to 0, or give one.")
        self.settings, self.layers, self.student = settings, layers, layers.sets[STUDENT]
        # not parts of this module: their weights are not trained
        for name, value in {"denoiser": denoiser, "judge": judge, "rewards": rewards}.items():
            object.__setattr__(self, name, value)

    def forward(self, batch: Batch, draws: FeedbackDraws, labels: Sequence[Instances] | None = None) -> dict[str, torch.Tensor]:
        """Returns {"loss", "distance"}, the scores by the names of the rewards, and "instances" where that counts.

        Args:
            batch: whose prompts are drawn, and whose latents are the real pictures of the perceptual term.
            draws: of the step.
            labels: of the real pictures; None asks the network that sees instances.
        Raises: RewardError as Scorer.score().
        """
        prompts = batch.prompts or [""] * len(batch.latents)
        x, t = self.reached(batch, draws)
        x0, before = self._predicted(x, t, batch), self._predicted(x, t, batch, feedback=False)
        brake = distance(x0, before, "mse", 0.0)
        loss, found = self.settings.brake_weight * brake, {"distance": brake.detach()}
        if self.rewards:
            pictures = moved(self.judge.pictures(x0), self.settings.jitter * draws.views)
            for name, reward in self.rewards.items():
                with in_full(x0):
                    scores = reward.scorer.score(pictures, prompts)
                loss = loss + reward.weight * (reward.enough - scores).relu().mean()
                found[name] = scores.detach().mean()
        if self.settings.instance_weight:
            seen = self._instances(batch, draws, labels)
            loss, found["instances"] = loss + self.settings.instance_weight * seen, seen.detach()
        return {"loss": loss, **found}

    @torch.no_grad()
    def reached(self, batch: Batch, draws: FeedbackDraws) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the latents [batch, ...] at the step that learns, and its timestep, int [batch]."""
        settings, diffusion = self.settings, self.denoiser.diffusion
        first = settings.start_timestep if draws.steps == 1 else LAST_TIMESTEP
        grid = draws.steps, settings.num_segments
        timestep = hyper_sd_timesteps(*grid, start_timestep=first)[draws.stop]
        sigmas = hyper_sd_sigmas(schedule_of_diffusion(diffusion), *grid, start_timestep=first)[: draws.stop + 1]

        def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            with self.layers.using(*self.layers.drawing):
                return self.denoiser.predict(x, t, batch.conditioning)

        between = iter(draws.between)
        options = {"eta": settings.eta, "num_segments": settings.num_segments}
        x = walk(diffusion, predict, draws.start, sigmas, noise_sampler=lambda *levels: next(between), **options)
        return x, torch.full((len(x),), timestep, device=x.device)

    def _predicted(self, x: torch.Tensor, t: torch.Tensor, batch: Batch, feedback: bool = True) -> torch.Tensor:
        """Returns the x0 [batch, ...] that the student sees from x at t; without the feedback, also without a gradient."""
        sets = [name for name in self.layers.drawing if feedback or name == DISTILLED]
        with torch.set_grad_enabled(feedback and torch.is_grad_enabled()), self.layers.using(*sets):
            return self.denoiser.diffusion.pred_x0(x, self.denoiser.predict(x, t, batch.conditioning), t)

    def _instances(self, batch: Batch, draws: FeedbackDraws, labels: Sequence[Instances] | None) -> torch.Tensor:
        """Returns SOLO's loss of real pictures that were noised part of the way and cleaned in one step."""
        if labels is None:
            with torch.no_grad():
                labels = self.judge.instances.labels(self.judge.pictures(batch.latents))
        noisy = self.denoiser.diffusion.add_noise(batch.latents, draws.noise, draws.t)
        cleaned = self._predicted(noisy, draws.t, batch)
        pictures = self.judge.pictures(cleaned)
        with in_full(cleaned):
            return self.judge.instances.loss(pictures, labels)


def moved(pictures: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
    """Returns pictures [batch, 3, height, width] scaled and moved, each in its own way; what comes in is what lies at the edge.

    Args:
        pictures: of any size.
        views: by how much each is made larger, and moved right and down, as shares of a side, [batch, 3]; zeros change nothing.
    """
    if not bool(views.any()):
        return pictures
    theta = pictures.new_zeros(len(pictures), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / (1 + views[:, 0])
    theta[:, :, 2] = -2 * views[:, 1:]  # the grid goes from -1 to 1
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
