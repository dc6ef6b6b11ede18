"""Draws images from the recipe's own networks, without a host: for previews while training and for the quality scores."""

import numpy as np
import torch
from diffusers import AutoencoderKL

from ...models.embedded import TOKENIZER
from ...samplers.schedule import NoiseSchedule
from ...samplers.tcd import sample_tcd
from ...samplers.timesteps import LAST_TIMESTEP, hyper_sd_sigmas
from .tokenizer import load_tokenizer
from .train_denoiser import Denoiser
from .train_text import tokenize


@torch.no_grad()
def encode(denoiser: Denoiser, prompts: list[str]) -> torch.Tensor:
    """Returns the text conditioning [len(prompts), 77, hidden]."""
    return denoiser.text(tokenize(load_tokenizer(TOKENIZER), prompts)).last_hidden_state


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: np.ndarray) -> torch.Tensor:
    """Returns the scaled latents [count, 4, 16, 16], deviation 1. Args: images: uint8 [count, 128, 128, 3]."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    parts = [vae.encode(part.float().div(127.5).sub(1)).latent_dist.mode() for part in pixels.split(32)]
    return torch.cat(parts) * vae.config.scaling_factor


@torch.no_grad()
def generate(
    vae: AutoencoderKL,
    denoiser: Denoiser,
    prompts: list[str],
    *,
    steps: int = 25,
    cfg: float = 4.0,
    eta: float = 0.0,
    num_segments: int = 1,
    start_timestep: int = LAST_TIMESTEP,
    seed: int = 0,
    latent_size: int = 16,
) -> torch.Tensor:
    """Returns uint8 images [len(prompts), 128, 128, 3], each prompt with noise of its own.

    Args:
        vae: turns latents into pixels.
        denoiser: the network that is sampled.
        prompts: one for each image.
        steps: model evaluations.
        cfg: scale of classifier-free guidance, 1 is off.
        eta: 0 deterministic .. 1.
        num_segments: as sample_tcd takes them.
        start_timestep: of the first step, from noise of deviation 1 in the model's own scale; 999 or less.
        seed: of the noise.
        latent_size: width and height of the latents.
    """
    schedule = NoiseSchedule.from_betas()
    positive, negative = encode(denoiser, prompts), encode(denoiser, [""]).expand(len(prompts), -1, -1)

    def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        timestep = torch.full((len(x),), round(schedule.timestep(float(sigma[0]))))
        scaled = x / (1 + sigma[0] ** 2).sqrt()
        noise_pred = denoiser.unet(scaled, timestep, positive).sample
        if cfg != 1:
            without = denoiser.unet(scaled, timestep, negative).sample
            noise_pred = without + cfg * (noise_pred - without)
        return x - sigma[0] * noise_pred

    sigmas = hyper_sd_sigmas(schedule, steps, num_segments, start_timestep=start_timestep)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(prompts), 4, latent_size, latent_size, generator=generator)
    start = noise * (1 + sigmas[0] ** 2).sqrt()
    latents = sample_tcd(model, start, sigmas, {}, disable=True, eta=eta, num_segments=num_segments, schedule=schedule)
    images = vae.decode(latents / vae.config.scaling_factor).sample
    return images.add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
