"""Images drawn in between, to watch a training: the sampler of both hosts on the network that is being trained."""

from collections.abc import Sequence

import torch

from ..samplers.schedule import NoiseSchedule
from ..samplers.tcd import sample_tcd
from ..samplers.timesteps import hyper_sd_sigmas
from .data.examples import Conditioning
from .denoiser import Denoiser
from .diffusion import Diffusion


def schedule_of_diffusion(diffusion: Diffusion) -> NoiseSchedule:
    """Returns the sigma table that hosts sample this process with."""
    ratio = 1.0 if diffusion.prediction_type == "flow" else diffusion.alpha
    return NoiseSchedule.from_sigmas(diffusion.sigma / ratio)


@torch.no_grad()
def draw(
    denoiser: Denoiser,
    conditioning: Conditioning,
    unconditional: Conditioning,
    shape: Sequence[int],
    *,
    steps: int,
    num_segments: int = 1,
    eta: float = 0.3,
    guidance_scale: float = 1.0,
    seed: int = 0,
) -> torch.Tensor:
    """Returns latents [batch, ...] as the network sees them (scaled), drawn with whatever adapter set is active.

    The same seed gives the noise that ComfyUI gives, so that a preview and an image of its sampler node agree.

    Args:
        conditioning, unconditional: tensors [batch, ...] on the network's device; the latter is not used without guidance.
        shape: [batch, channels, height, width] of the latents.
        steps, num_segments: as samplers.timesteps.hyper_sd_timesteps; eta: as samplers.tcd.sample_tcd.
        guidance_scale: 1 = off.
        seed: of the starting noise and of what eta adds.
    Raises: ScheduleError where no such grid exists.
    """
    schedule = schedule_of_diffusion(denoiser.diffusion)
    sigmas = hyper_sd_sigmas(schedule, steps, num_segments)
    like = next(tensor for tensor in conditioning.values() if tensor.is_floating_point())
    noise = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))
    noise = noise.to(like.device, torch.promote_types(like.dtype, torch.float32))
    scale = noise.new_full((len(noise),), guidance_scale)
    guide = unconditional if guidance_scale != 1 else {}

    def model(x: torch.Tensor, sigma: torch.Tensor, seed: int) -> torch.Tensor:
        t = torch.full((len(x),), round(schedule.timestep(float(sigma[0]))), device=x.device)
        scaled = x if schedule.is_flow else x * denoiser.diffusion.levels(t, x)[0]
        return denoiser.diffusion.pred_x0(scaled, denoiser.guided(scaled, t, conditioning, guide, scale), t)

    start = noise * (sigmas[0] if schedule.is_flow else (1 + sigmas[0] ** 2).sqrt())
    return sample_tcd(model, start, sigmas, {"seed": seed}, disable=True, eta=eta, num_segments=num_segments, schedule=schedule)
