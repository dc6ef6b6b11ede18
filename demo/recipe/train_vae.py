"""Stage 1: the autoencoder, on both vendors' emoji: 64-pixel crops, then whole images. L1 at three scales plus a KL term."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from ...disk import whole_file
from ...training.launch.embedded_model import build_vae, load_config
from .ema import Ema

STEPS, LEARNING_RATE, KL_WEIGHT = 3600, 1e-3, 1e-3
# Crops are the cheaper lesson; group norm's statistics differ on whole images, so the last part sees those.
CROP_STEPS, CROP_BATCH, CROP, WHOLE_BATCH = 2000, 16, 64, 4


def _draw(images: np.ndarray, batch: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Returns float [batch, 3, size, size] in [-1, 1]: random crops, half of them mirrored."""
    limit = images.shape[1] - size + 1
    picks = torch.randint(len(images), (batch,), generator=generator).tolist()
    corners = torch.randint(limit, (batch, 2), generator=generator).tolist()
    crops = np.stack([images[i, y : y + size, x : x + size] for i, (y, x) in zip(picks, corners, strict=True)])
    drawn = torch.from_numpy(crops).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    mirrored = torch.rand(batch, 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, drawn.flip(3), drawn)


def reconstruction_loss(restored: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Mean absolute error at full, half and quarter size: edges from the first, colour areas from the others."""
    losses = [F.l1_loss(F.avg_pool2d(restored, s), F.avg_pool2d(image, s)) for s in (1, 2, 4)]
    return losses[0] + 0.5 * losses[1] + 0.5 * losses[2]


def train(images: np.ndarray, checkpoint: Path) -> Iterator[tuple[int, float]]:
    """Trains to STEPS, resuming from `checkpoint`; yields (step, loss).

    Args: images: uint8 [count, 128, 128, 3].
    """
    torch.manual_seed(0)
    vae, generator = build_vae(load_config()), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.03)
    ema, start, spent = Ema(vae, 0.995), 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        rate.load_state_dict(state["rate"])
        generator.set_state(state["generator"])
        torch.set_rng_state(state["rng"])
        ema.shadow, start, spent = state["ema"], state["step"], state["seconds"]
    began = time.monotonic()
    for step in range(start + 1, STEPS + 1):
        size = (CROP_BATCH, CROP) if step <= CROP_STEPS else (WHOLE_BATCH, images.shape[1])
        image = _draw(images, *size, generator)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(image).latent_dist
            restored = vae.decode(posterior.sample()).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = reconstruction_loss(restored.float(), image) + KL_WEIGHT * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        rate.step()
        ema.update(vae, step)
        if step % 200 == 0 or step == STEPS:
            seconds = spent + time.monotonic() - began
            state = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "rate": rate.state_dict()}
            state |= {"ema": ema.shadow, "step": step, "seconds": seconds}
            state |= {"generator": generator.get_state(), "rng": torch.get_rng_state()}
            with whole_file(checkpoint) as partial:
                torch.save(state, partial)
        yield step, loss.item()


def load_trained(checkpoint: Path) -> AutoencoderKL:
    """Returns the averaged autoencoder of a finished or unfinished stage 1, in eval mode."""
    vae = build_vae(load_config())
    vae.load_state_dict(torch.load(checkpoint, weights_only=True)["ema"])
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Folds each channel's mean and deviation into the (post_)quant convolutions; returns the latents [count, 4, 16, 16].

    Afterwards scaling_factor * latents has mean 0 and deviation 1 per channel, which is what the noise schedule assumes.
    Args: images: float [count, 3, 128, 128] in [-1, 1].
    """
    latents = torch.cat([vae.encode(part).latent_dist.mode() for part in images.split(32)])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3)) * vae.config.scaling_factor
    channels = len(mean)
    quant, post = vae.quant_conv, vae.post_quant_conv
    post.bias += torch.einsum("oihw,i->o", post.weight, mean)
    post.weight *= deviation[None, :, None, None]
    quant.weight[:channels] /= deviation[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / deviation
    quant.bias[channels:] -= 2 * deviation.log()  # the second half of the output is log variance
    return (latents - mean[:, None, None]) / deviation[:, None, None]
