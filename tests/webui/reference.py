"""What a host's run is held against: diffusers' schedulers, and the shifted question, which no scheduler there has."""

from collections.abc import Callable, Sequence

import diffusers
import numpy as np
import torch
from hyper_sd.samplers.schedule import NoiseSchedule
from hyper_sd.samplers.shift import shifted_timestep

from .webui_host import Batch, data_url

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FULL = [999, 749, 499, 249]  # the trailing grid
CUT = [749, 624, 499, 249]  # the same at a strength of 0.75: four steps below its own first timestep
Network = Callable[[torch.Tensor, int], torch.Tensor]  # of latents and a timestep, with the prompt that the host gave


def worst(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """Returns the largest difference between two runs of the same length."""
    assert len(one) == len(other)
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


def unit_noise(seed: int = 1) -> tuple[torch.Tensor, torch.Generator]:
    """Returns the noise [1, 4, 8, 8] that a host begins a seed's image with, and the generator of what follows."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 8, 8, generator=generator)[None], generator


def hosts_run(batch: Batch) -> list[torch.Tensor]:
    """Returns what the network saw at every call, which is diffusers' scaling, and the image that the run ended on."""
    asked = [batch.x(i) / (1 + sigma**2) ** 0.5 for i, sigma in enumerate(batch.sigmas)]
    return [*asked, batch.latents]


def timesteps_asked(batch: Batch, schedule: NoiseSchedule | None = None) -> list[int]:
    """Returns the timestep of every call of the network."""
    schedule = schedule or NoiseSchedule.from_betas()
    return [round(schedule.timestep(sigma)) for sigma in batch.sigmas]


@torch.no_grad()
def by_scheduler(scheduler, network: Network) -> list[torch.Tensor]:
    """Returns the latents before every step of a scheduler of diffusers' and after the last, from seed 1."""
    x, generator = unit_noise()
    trajectory = [x]
    more = {"generator": generator} if isinstance(scheduler, diffusers.LCMScheduler) else {}
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x, **more).prev_sample
        trajectory.append(x)
    return trajectory


def scheduler_of(method: str, listed: Sequence[int] | None = None):
    """Returns the scheduler with which a method's authors sample, set to 4 steps: DDIM for those with eta 0, else LCM."""
    if method in ("pcm-small-cfg", "sdxl-lightning"):  # eta 0 on the trailing grid
        scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing")
    else:
        scheduler = diffusers.LCMScheduler(**BETAS, original_inference_steps=1000 if listed else 50)
    scheduler.set_timesteps(**({"timesteps": list(listed)} if listed else {"num_inference_steps": 4}))
    return scheduler


def inpainting() -> dict:
    """Returns a request's part for a picture whose right half is made anew, at a strength of 0.75."""
    mask, picture = np.zeros((64, 64, 3), np.uint8), np.random.default_rng(3).integers(0, 255, (64, 64, 3), np.uint8)
    mask[:, 32:] = 255
    images = {"init_images": [data_url(picture)], "mask": data_url(mask), "mask_blur": 0, "inpainting_fill": 1}
    return {"route": "img2img", "denoising_strength": 0.75, **images}


def alpha_bars(zero_terminal_snr: bool = False) -> torch.Tensor:
    """Returns alpha_bar of the 1000 timesteps as diffusers has it."""
    return diffusers.DDPMScheduler(**BETAS, rescale_betas_zero_snr=zero_terminal_snr).alphas_cumprod


@torch.no_grad()
def shifted_run(
    network: Network,
    timesteps: Sequence[int],
    shift: float,
    bars: torch.Tensor,
    *,
    v_prediction: bool = False,
    image: torch.Tensor | None = None,
    changed: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Returns the latents before every step and the last image of NitroSD's rule, written out from its model card.

    Args:
        network: whose answer is noise, or v.
        timesteps: of the image, highest first; the network is asked, and x0 taken, at floor(timestep * shift).
        shift: of the timesteps.
        bars: alpha_bar of every timestep.
        v_prediction: whether the network answers v.
        image: [1, 4, 8, 8] that is given, else the run starts from noise alone.
        changed: of an inpainting, 1 where the picture is made anew; elsewhere every x0 is the given image's.
    """
    noise, generator = unit_noise()
    start = bars[timesteps[0]]
    x = noise if image is None else start.sqrt() * image + (1 - start).sqrt() * noise
    trajectory = [x]
    for t, t_next in zip(timesteps, [*timesteps[1:], None], strict=True):
        asked = shifted_timestep(t, shift)
        signal, spread = bars[asked].sqrt(), (1 - bars[asked]).sqrt()
        answer = network(x, asked)
        x0 = signal * x - spread * answer if v_prediction else (x - spread * answer) / signal
        x0 = x0 if changed is None else x0 * changed + image * (1 - changed)
        if t_next is None:
            return [*trajectory, x0]
        noise = torch.randn(4, 8, 8, generator=generator)[None]
        x = bars[t_next].sqrt() * x0 + (1 - bars[t_next]).sqrt() * noise
        trajectory.append(x)
    return trajectory
