"""Human feedback on a few-step student: a pure function of (batch, draws) that asks for pictures people like better.

What is learnt is an adapter set of its own on top of the distilled student, so that it can be taken at any strength.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ...errors import TrainingError
from ...rewards.instances import InstanceNet, Instances
from ...rewards.scorer import Scorer
from ...samplers.timesteps import LAST_TIMESTEP, hyper_sd_sigmas, hyper_sd_timesteps
from ..data.examples import Batch, seeded
from ..denoiser import Denoiser
from ..lora_layers import DISTILLED, STUDENT, LoraLayers
from ..sampling import schedule_of_diffusion, walk
from .draws import distance

FEEDBACK_DRAW = 5  # what tells the random numbers of this objective from a run's other ones
Decode = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Reward:
    """What pictures are judged by, and from where on that is enough.

    Args:
        scorer: a frozen scorer; a higher score is a better picture.
        enough: the score from which on no more is asked for: about the mean of pictures that people like. A value too high
            burns pictures.
        weight: of what is missing to that.
    """

    scorer: Scorer
    enough: float
    weight: float = 1.0


@dataclass(frozen=True)
class FeedbackSettings:
    """How a student is asked for better pictures.

    Args:
        steps: numbers of steps that the student is drawn with; one of them is drawn each time.
        num_segments: that the student was distilled on.
        start_timestep: of a single step, from noise of deviation 1.
        eta: of the steps, as samplers.tcd.sample_tcd() takes it.
        brake_weight: of the distance to what the student draws without the feedback.
        instance_weight: of the perceptual term.
        noised_to: (lowest, highest) timestep that a real picture is noised to for the perceptual term.
    Raises: TrainingError for numbers that are not allowed.
    """

    steps: tuple[int, ...] = (1, 2, 4, 8)
    num_segments: int = 1
    start_timestep: int = LAST_TIMESTEP
    eta: float = 0.3
    brake_weight: float = 1.0
    instance_weight: float = 0.0
    noised_to: tuple[int, int] = (100, 400)

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 1:
            raise TrainingError(f"The steps of feedback must be 1 or more each, got {self.steps}; (1, 2, 4, 8) is usual.")
        if min(self.brake_weight, self.instance_weight) < 0:
            raise TrainingError(
                f"Weights of feedback must be 0 or more, got brake {self.brake_weight:g} and instances "
                f"{self.instance_weight:g}; 1 and 0 are usual."
            )
        low, high = self.noised_to
        if not 0 <= low <= high <= LAST_TIMESTEP:
            raise TrainingError(f"noised_to must be (lowest, highest) of 0 to {LAST_TIMESTEP}, got {self.noised_to}.")


@dataclass(frozen=True)
class FeedbackDraws:
    """All randomness of a step.

    Args:
        steps: that the student draws with.
        stop: the step that learns, counted from 0; those before it run without a gradient.
        start: noise of deviation 1, [batch, ...].
        seed: of the noise between the steps.
        t: timesteps that real pictures are noised to, int [batch].
        noise: that these are noised with, [batch, ...].
    """

    steps: int
    stop: int
    start: torch.Tensor
    seed: int
    t: torch.Tensor
    noise: torch.Tensor


def draw_feedback(settings: FeedbackSettings, seed: int, shape: tuple[int, ...], step: int) -> FeedbackDraws:
    """Returns a step's draws, a function of the seed and of the step alone.

    Args:
        settings: of the feedback.
        seed: of the run.
        shape: of the latents, [batch, channels, ...].
        step: counted from 0.
    """
    generator = seeded(seed, step, FEEDBACK_DRAW)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    steps = settings.steps[draw(0, len(settings.steps) - 1)]
    stop, between = draw(0, steps - 1), draw(0, 2**31)
    start, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    t = torch.randint(settings.noised_to[0], settings.noised_to[1] + 1, (shape[0],), generator=generator)
    return FeedbackDraws(steps, stop, start, between, t, noise)


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
        layers: with the sets "distilled", the student as it was, and "student", what is learnt on top of it.
        decode: latents [batch, ...] as the network sees them -> pictures [batch, 3, height, width] of about 0 to 1, with a
            gradient.
        rewards: by name.
        instances: sees things in pictures, for an instance_weight.
    """

    def __init__(
        self,
        settings: FeedbackSettings,
        denoiser: Denoiser,
        layers: LoraLayers,
        decode: Decode,
        rewards: Mapping[str, Reward],
        instances: InstanceNet | None = None,
    ):
        super().__init__()
        if not rewards and not settings.instance_weight:
            raise TrainingError("Feedback needs a reward, or an instance_weight above 0; name a scorer.")
        if settings.instance_weight and instances is None:
            raise TrainingError("An instance_weight needs a network that sees instances; set it to 0, or give one.")
        self.settings, self.layers, self.student = settings, layers, layers.sets[STUDENT]
        # not parts of this module: their weights are not trained
        held = {"denoiser": denoiser, "decode": decode, "rewards": dict(rewards), "instances": instances}
        for name, value in held.items():
            object.__setattr__(self, name, value)

    def forward(
        self, batch: Batch, prompts: Sequence[str], draws: FeedbackDraws, labels: Sequence[Instances] | None = None
    ) -> dict[str, torch.Tensor]:
        """Returns {"loss", "distance"}, the scores by the names of the rewards, and "instances" where that counts.

        Args:
            batch: whose conditioning is drawn, and whose latents are the real pictures of the perceptual term.
            prompts: of the batch, for the scorers.
            draws: of the step.
            labels: of the real pictures; None asks the network that sees instances.
        Raises: RewardError as Scorer.score().
        """
        x, t = self.reached(batch, draws)
        x0, before = self._predicted(x, t, batch), self._predicted(x, t, batch, feedback=False)
        brake = distance(x0, before, "mse", 0.0)
        loss, found = self.settings.brake_weight * brake, {"distance": brake.detach()}
        if self.rewards:
            pictures = self.pictures(x0)
            for name, reward in self.rewards.items():
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
            with self.layers.using(DISTILLED, STUDENT):
                return self.denoiser.predict(x, t, batch.conditioning)

        options = {"seed": draws.seed, "eta": settings.eta, "num_segments": settings.num_segments}
        x = walk(diffusion, predict, draws.start.to(batch.latents), sigmas, **options)
        return x, torch.full((len(x),), timestep, device=x.device)

    def _predicted(self, x: torch.Tensor, t: torch.Tensor, batch: Batch, feedback: bool = True) -> torch.Tensor:
        """Returns the x0 [batch, ...] that the student sees from x at t; without the feedback, also without a gradient."""
        sets = (DISTILLED, STUDENT) if feedback else (DISTILLED,)
        with torch.set_grad_enabled(feedback and torch.is_grad_enabled()), self.layers.using(*sets):
            return self.denoiser.diffusion.pred_x0(x, self.denoiser.predict(x, t, batch.conditioning), t)

    def pictures(self, latents: torch.Tensor) -> torch.Tensor:
        """Returns pictures [batch, 3, height, width] from 0 to 1; what the decoder computes is computed again going back."""
        return checkpoint(self.decode, latents, use_reentrant=False, preserve_rng_state=False).clamp(0, 1)

    def _instances(self, batch: Batch, draws: FeedbackDraws, labels: Sequence[Instances] | None) -> torch.Tensor:
        """Returns SOLO's loss of real pictures that were noised part of the way and cleaned in one step."""
        if labels is None:
            with torch.no_grad():
                labels = self.instances.labels(self.decode(batch.latents).clamp(0, 1))
        t = draws.t.to(batch.latents.device)
        noisy = self.denoiser.diffusion.add_noise(batch.latents, draws.noise.to(batch.latents), t)
        return self.instances.loss(self.pictures(self._predicted(noisy, t, batch)), labels)
