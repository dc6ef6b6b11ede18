"""The sampler of both hosts, on the network that is being trained."""

from collections.abc import Callable, Sequence

import torch

from ..samplers.schedule import NoiseSchedule
from ..samplers.tcd import sample_tcd
from ..samplers.timesteps import LAST_TIMESTEP, hyper_sd_sigmas
from .data.texts import Conditioning
from .denoiser import Denoiser
from .diffusion import Diffusion


def schedule_of_diffusion(diffusion: Diffusion) -> NoiseSchedule:
    """Returns the sigma table that hosts sample this process with."""
    ratio = 1.0 if diffusion.prediction_type == "flow" else diffusion.alpha
    return NoiseSchedule.from_sigmas(diffusion.sigma / ratio)


@torch.no_grad()
def sample_latents(
    denoiser: Denoiser,
    conditioning: Conditioning,
    unconditional: Conditioning,
    shape: Sequence[int],
    *,
    steps: int,
    num_segments: int = 1,
    eta: float = 0.3,
    guidance_scale: float = 1.0,
    seed: int | Sequence[int] = 0,
    start_timestep: int = LAST_TIMESTEP,
) -> torch.Tensor:
    """Returns latents [batch, ...] as the network sees them (scaled), drawn with whatever adapter set is active.

    The same seed gives the noise that ComfyUI gives, so that a preview and an image of its sampler node agree.

    Args:
        denoiser: the network.
        conditioning: tensors [batch, ...] on the network's device.
        unconditional: the same of the empty prompt; not used without guidance.
        shape: of the latents, [batch, channels, height, width].
        steps: as samplers.timesteps.hyper_sd_timesteps() takes them.
        num_segments: as samplers.timesteps.hyper_sd_timesteps() takes it.
        eta: as samplers.tcd.sample_tcd() takes it.
        guidance_scale: 1 is no guidance.
        seed: of the starting noise, and of the noise that eta adds; or one for each latent, which is then the same alone.
        start_timestep: of the first step, from noise of deviation 1 as the network sees it.
    Raises: ScheduleError where no such grid exists.
    """
    schedule = schedule_of_diffusion(denoiser.diffusion)
    sigmas = hyper_sd_sigmas(schedule, steps, num_segments, start_timestep=start_timestep)
    like = next(tensor for tensor in conditioning.values() if tensor.is_floating_point())
    seeds, part = ([seed], tuple(shape)) if isinstance(seed, int) else (seed, (1, *shape[1:]))
    noise = torch.cat([torch.randn(part, generator=torch.Generator().manual_seed(one)) for one in seeds])
    noise = noise.to(like.device, torch.promote_types(like.dtype, torch.float32))
    scale = noise.new_full((len(noise),), guidance_scale)
    guide = unconditional if guidance_scale != 1 else {}

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return denoiser.guided(x, t, conditioning, guide, scale)

    return walk(denoiser.diffusion, predict, noise, sigmas, seed=seed, eta=eta, num_segments=num_segments)


def walk(
    diffusion: Diffusion,
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    noise: torch.Tensor,
    sigmas: torch.Tensor,
    *,
    eta: float,
    num_segments: int,
    seed: int | Sequence[int] = 0,
    noise_sampler: Callable[..., torch.Tensor] | None = None,
) -> torch.Tensor:
    """Returns latents [batch, ...] at the last of the sigmas, in the network's own scale; 0 is clean latents.

    Args:
        diffusion: the process.
        predict: (x [batch, ...] as the network sees it, timesteps [batch]) -> its prediction.
        noise: of deviation 1, [batch, ...]; one sigma alone gives it back.
        sigmas: decreasing, [steps + 1], or a beginning of a grid.
        eta: as samplers.tcd.sample_tcd() takes it.
        num_segments: as samplers.tcd.sample_tcd() takes it.
        seed: of the noise that eta adds, or one for each latent.
        noise_sampler: gives that noise in place of the seed, as samplers.tcd.sample_tcd() takes it.
    """
    if len(sigmas) == 1:
        return noise
    schedule = schedule_of_diffusion(diffusion)

    def model(x: torch.Tensor, sigma: torch.Tensor, seed: int | Sequence[int]) -> torch.Tensor:
        t = torch.full((len(x),), round(schedule.timestep(float(sigma[0]))), device=x.device)
        scaled = x if schedule.is_flow else x * diffusion.levels(t, x)[0]
        return diffusion.pred_x0(scaled, predict(scaled, t), t)

    start = noise if schedule.is_flow else noise * (1 + sigmas[0] ** 2).sqrt()
    options = {"eta": eta, "num_segments": num_segments, "schedule": schedule}
    x = sample_tcd(model, start, sigmas, {"seed": seed}, disable=True, noise_sampler=noise_sampler, **options)
    return x if schedule.is_flow else x / (1 + sigmas[-1] ** 2).sqrt()
