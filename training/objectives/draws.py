"""All randomness of a training step, and the distance that a step minimises: what every objective shares."""

from dataclasses import dataclass

import torch

from ...samplers.schedule import TRAIN_TIMESTEPS
from ..config import Stage, TrainingConfig
from ..data.examples import rows, seeded
from ..diffusion import offset_noise
from ..segments import sample_timesteps, solver_grid


@dataclass(frozen=True)
class Draws:
    """All randomness of a step, drawn for the whole batch at once.

    Args:
        t_n: timesteps the student looks at, int [batch].
        t_prev: their lower neighbours on the solver's grid, int [batch].
        t_end: timesteps that both points are mapped to, int [batch].
        noise: of deviation 1, [batch, ...].
        guidance_scale: of the teacher, [batch].
    """

    t_n: torch.Tensor
    t_prev: torch.Tensor
    t_end: torch.Tensor
    noise: torch.Tensor
    guidance_scale: torch.Tensor

    def part(self, rows_: slice) -> "Draws":
        """Returns the draws of some rows of the batch."""
        return Draws(**rows(self.__dict__, rows_))

    def to(self, like: torch.Tensor) -> "Draws":
        """Returns the draws on the device of `like`, the noise in its dtype."""
        moved = {k: v.to(like.device, non_blocking=True) for k, v in self.__dict__.items()}
        return Draws(**moved | {"noise": moved["noise"].to(like.dtype)})


def draw_step(config: TrainingConfig, stage: Stage, shape: tuple[int, ...], step: int) -> Draws:
    """Returns a step's timesteps, noise and guidance, a function of the config's seed and of the step alone.

    Args:
        config: of the run.
        stage: whose number of segments bounds the jumps.
        shape: of the whole batch's latents, [batch, channels, ...].
        step: counted from 0 over the whole run.
    """
    generator, batch = seeded(config.seed, step, 1), shape[0]
    t_n, t_prev, t_end = _draw_timesteps(config, stage, batch, generator)
    noise = _draw_noise(config, shape, generator)
    return Draws(t_n, t_prev, t_end, noise, _draw_guidance(config, batch, generator))


def _draw_timesteps(
    config: TrainingConfig, stage: Stage, batch: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if config.objective == "finetune":
        t_n = torch.randint(TRAIN_TIMESTEPS, (batch,), generator=generator)
        return t_n, t_n, t_n
    # 0 in front: the pair (19, 0) ties the lowest timestep to the teacher too.
    grid = [0, *solver_grid(config.solver_steps)]
    t_n, t_prev, _, t_end = sample_timesteps(batch, stage.num_segments, grid, generator, config.endpoint)
    return t_n, t_prev, t_end


def _draw_noise(config: TrainingConfig, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(shape, generator=generator)
    shift = torch.randn(shape[:2], generator=generator)
    return offset_noise(noise, shift, config.offset_noise)


def _draw_guidance(config: TrainingConfig, batch: int, generator: torch.Generator) -> torch.Tensor:
    low, high = config.guidance_scale
    return low + (high - low) * torch.rand(batch, generator=generator)


def distance(a: torch.Tensor, b: torch.Tensor, kind: str, huber_c: float) -> torch.Tensor:
    """Returns the mean distance of two tensors as a scalar, computed in float32 or float64.

    Source of "huber": Song and Dhariwal, "Improved Techniques for Training Consistency Models", arXiv 2310.14189.

    Args:
        a: [batch, ...].
        b: [batch, ...].
        kind: "mse", the squared error, or "huber", sqrt(d^2 + c^2) - c.
        huber_c: c of "huber"; below this difference it is a square.
    """
    difference = (a - b).to(torch.promote_types(a.dtype, torch.float32))
    if kind == "mse":
        return difference.square().mean()
    return ((difference.square() + huber_c**2).sqrt() - huber_c).mean()
