"""Stage 3: text encoder and UNet together, epsilon objective with min-SNR weights, on the precomputed latents."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import CLIPTokenizer

from ...disk import whole_file
from ...training.launch.embedded_model import build_text_encoder, build_unet, load_config, noise_schedule
from .ema import Ema
from .train_text import tokenize

BATCH = 64
UNCONDITIONAL = 0.1  # share of empty captions, for classifier-free guidance
MIN_SNR = 5.0  # Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", arXiv 2303.09556


@dataclass(frozen=True)
class Phase:
    """One stretch of training: its steps, peak learning rate and warm-up steps; the rate falls as a cosine to nearly 0."""

    steps: int
    learning_rate: float
    warmup: int


# One drawing a caption teaches what things look like. Two make the model choose, as a real one must: with a single answer to
# every prompt even one step would find it, and nothing would be left for a distilled model to show.
ONE_VENDOR, BOTH_VENDORS = Phase(3200, 1e-3, 200), Phase(1200, 6e-4, 50)


class Denoiser(torch.nn.Module):
    """The trained pair: text encoder and UNet."""

    def __init__(self, config: dict):
        super().__init__()
        self.text = build_text_encoder(config)
        self.unet = build_unet(config)

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Predicts the noise.

        Args:
            noisy: latents, float [batch, 4, 16, 16].
            timestep: int [batch].
            ids: of the prompts' tokens, int [batch, 77].
        """
        return self.unet(noisy, timestep, self.text(ids).last_hidden_state).sample


def stratified_timesteps(batch: int) -> torch.Tensor:
    """Returns `batch` timesteps, one from each equal share of 0..999: uniform, with less variance than independent draws."""
    shares = (torch.arange(batch) + torch.rand(batch)) / batch
    return (shares * 1000).long().clamp(max=999)[torch.randperm(batch)]


class Epochs:
    """Endless shuffled batches of indices; its state is the rest of the current shuffle."""

    def __init__(self, count: int):
        self.count, self.rest = count, []

    def draw(self, batch: int) -> list[int]:
        while len(self.rest) < batch:
            self.rest += torch.randperm(self.count).tolist()
        drawn, self.rest = self.rest[:batch], self.rest[batch:]
        return drawn


def min_snr_loss(predict: Callable, latents: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """Returns the weighted error of predict(noisy, timestep) for noise and timesteps drawn anew."""
    timestep = stratified_timesteps(len(latents))
    ab = alpha_bar[timestep][:, None, None, None]
    noise = torch.randn_like(latents)
    with torch.autocast("cpu", torch.bfloat16):
        noise_pred = predict(ab.sqrt() * latents + (1 - ab).sqrt() * noise, timestep).float()
    snr = (ab / (1 - ab)).flatten()
    return ((noise_pred - noise).square().mean((1, 2, 3)) * snr.clamp(max=MIN_SNR) / snr).mean()


def _update(model: Denoiser, optimizer: torch.optim.Optimizer, rate, loss: torch.Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    rate.step()


def save_state(checkpoint: Path, parts: dict, rest: dict) -> None:
    """Writes the state of every part, torch's generator and the rest, whole or not at all."""
    state = {name: part.state_dict() for name, part in parts.items()} | rest | {"rng": torch.get_rng_state()}
    with whole_file(checkpoint) as part:
        torch.save(state, part)


def load_state(checkpoint: Path, parts: dict, rng: random.Random) -> dict:
    """Restores every part and both generators from what save_state wrote, and returns all of it."""
    state = torch.load(checkpoint, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    torch.set_rng_state(state["rng"])
    version, words, gauss = state["python_rng"]
    rng.setstate((version, tuple(words), gauss))
    return state


def train(
    phase: Phase,
    latents: torch.Tensor,
    caption: Callable[[int, random.Random], str],
    tokenizer: CLIPTokenizer,
    start_from: dict[str, torch.Tensor],
    checkpoint: Path,
) -> Iterator[tuple[int, float]]:
    """Trains a phase to its end, resuming from `checkpoint`; yields (step, loss).

    Args:
        latents: float [count, 4, 16, 16] with deviation 1.
        caption: draws a caption of image i.
        start_from: weights to begin with; what they leave out stays random.
    """
    torch.manual_seed(1)
    model, rng, epochs = Denoiser(load_config()), random.Random(1), Epochs(len(latents))
    model.load_state_dict(start_from, strict=False)
    alpha_bar = noise_schedule().alphas_cumprod
    optimizer = torch.optim.AdamW(model.parameters(), lr=phase.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, phase.learning_rate, total_steps=phase.steps, pct_start=phase.warmup / phase.steps
    )
    ema, start, spent, parts = Ema(model, 0.999), 0, 0.0, {"model": model, "optimizer": optimizer, "rate": rate}
    if checkpoint.exists():
        state = load_state(checkpoint, parts, rng)
        ema.shadow, start, spent, epochs.rest = state["ema"], state["step"], state["seconds"], state["rest"]
    began = time.monotonic()
    for step in range(start + 1, phase.steps + 1):
        picks = epochs.draw(BATCH)
        texts = ["" if rng.random() < UNCONDITIONAL else caption(i, rng) for i in picks]
        loss = min_snr_loss(partial(model, ids=tokenize(tokenizer, texts)), latents[picks], alpha_bar)
        _update(model, optimizer, rate, loss)
        ema.update(model, step)
        if step % 200 == 0 or step == phase.steps:
            rest = {"ema": ema.shadow, "step": step, "rest": epochs.rest, "python_rng": list(rng.getstate())}
            save_state(checkpoint, parts, rest | {"seconds": spent + time.monotonic() - began})
        yield step, loss.item()


def averaged_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Returns the moving average that a finished or unfinished phase has reached."""
    return torch.load(checkpoint, weights_only=True)["ema"]


def load_trained(checkpoint: Path) -> Denoiser:
    """Returns the averaged text encoder and UNet of a phase, in eval mode."""
    model = Denoiser(load_config())
    model.load_state_dict(averaged_weights(checkpoint))
    return model.eval().requires_grad_(False)
