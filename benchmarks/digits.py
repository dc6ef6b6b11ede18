"""A world in miniature for distillation: 8 x 8 digits, a small class-conditional diffusion model of them, and features."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from ..samplers.schedule import NoiseSchedule
from ..samplers.tcd import sample_tcd
from ..samplers.timesteps import LAST_TIMESTEP, hyper_sd_sigmas
from ..training.data.examples import Conditioning, seeded
from ..training.denoiser import Denoiser
from ..training.diffusion import Diffusion

CLASSES, WIDTH = 10, 64  # of the conditioning: one token per class, and one for "no class"
SCHEDULE = NoiseSchedule.from_betas()
BASE_STEPS, BASE_BATCH, DROPOUT = 6000, 128, 0.15


def load_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Returns scikit-learn's digits, float32 [1797, 1, 8, 8] of mean 0 and deviation 1, and their labels [1797]."""
    from sklearn import datasets

    found = datasets.load_digits()
    return scaled(torch.from_numpy(found.images)), torch.from_numpy(found.target).long()


def scaled(images: torch.Tensor) -> torch.Tensor:
    """Returns images [n, 8, 8] as float32 [n, 1, 8, 8] of mean 0 and deviation 1 over all pixels."""
    pixels = images.double()
    return ((pixels - pixels.mean()) / pixels.std()).float()[:, None]


class Block(nn.Module):
    """A residual block over the whole picture, scaled and shifted by the embedding of time and class.

    It takes and returns maps of 2 x 2, the shape in which a UNet's encoder hands its features to a discriminator.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.emb, self.inner, self.outer = nn.Linear(WIDTH, 2 * width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        scale, shift = self.emb(emb).chunk(2, 1)
        hidden = torch.addcmul(shift, self.inner(self.norm(x.flatten(1))), 1 + scale)
        return x + self.outer(F.silu(hidden)).view_as(x)


class DigitNet(nn.Module):
    """An encoder, a middle and a decoder of dense blocks with skips, under a UNet's names; it predicts the noise.

    Dense, because on 64 pixels a convolutional UNet costs several times as much for the same picture.
    """

    def __init__(self, width: int = 256):
        super().__init__()
        self.time_embedding = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.class_embedding = nn.Embedding(CLASSES + 1, WIDTH)
        self.conv_in, self.conv_out = nn.Linear(64, width), nn.Linear(width, 64)
        self.down_blocks = nn.ModuleList([Block(width), Block(width)])
        self.mid_block = Block(width)
        self.up_blocks = nn.ModuleList([Block(width), Block(width)])
        self.norm_out = nn.LayerNorm(width)
        self.register_buffer("frequencies", torch.logspace(0, -4, WIDTH // 2), persistent=False)

    def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Returns the noise [batch, 1, 8, 8].

        Args:
            x: noisy digits [batch, 1, 8, 8].
            t: timesteps [batch].
            context: conditioning [batch, 1, WIDTH].
        """
        angles = t[:, None] * self.frequencies
        emb = F.silu(self.time_embedding(torch.cat([angles.cos(), angles.sin()], 1)) + context[:, 0])
        first = self.down_blocks[0](self.conv_in(x.flatten(1)).unflatten(1, (-1, 2, 2)), emb)
        second = self.down_blocks[1](first, emb)
        hidden = self.up_blocks[0](self.mid_block(second, emb) + second, emb)
        hidden = self.up_blocks[1](hidden + first, emb)
        return self.conv_out(F.silu(self.norm_out(hidden.flatten(1)))).view_as(x)

    @torch.no_grad()
    def contexts(self, labels: torch.Tensor) -> torch.Tensor:
        """Returns the conditioning [n, 1, WIDTH] of labels [n]; label 10 is no class."""
        return self.class_embedding(labels)[:, None]


def _call(network: nn.Module, x: torch.Tensor, time: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
    return network(x, time, conditioning["context"])


def denoiser_of(network: DigitNet) -> Denoiser:
    """Returns the network as the training loop sees it."""
    return Denoiser(network, Diffusion.from_schedule(SCHEDULE), _call)


def _cached(path: Path, network: nn.Module, fit: Callable[[nn.Module], None]) -> nn.Module:
    """Loads the network's weights, or fits it and keeps them."""
    if path.exists():
        network.load_state_dict(load_file(path))
    else:
        fit(network)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)
    return network.eval().requires_grad_(False)


def base_model(path: Path, images: torch.Tensor, labels: torch.Tensor, steps: int = BASE_STEPS) -> DigitNet:
    """Returns the base: trained on the noise that was added, the class left out now and then, weights averaged; cached."""
    diffusion = Diffusion.from_schedule(SCHEDULE)

    def fit(network: nn.Module) -> None:
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01, foreach=True)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)
        average = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
        for step in range(steps):
            generator = seeded(0, step)
            picks = torch.randint(len(images), (BASE_BATCH,), generator=generator)
            t = torch.randint(1000, (BASE_BATCH,), generator=generator)
            noise = torch.randn(BASE_BATCH, *images.shape[1:], generator=generator)
            left_out = torch.rand(BASE_BATCH, generator=generator) < DROPOUT
            context = network.class_embedding(labels[picks].masked_fill(left_out, CLASSES))[:, None]
            loss = F.mse_loss(network(diffusion.add_noise(images[picks], noise, t), t, context), noise)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            rate.step()
            average.update_parameters(network)
        network.load_state_dict(average.module.state_dict())

    torch.manual_seed(0)
    return _cached(path, DigitNet(), fit)


def classifier(path: Path, images: torch.Tensor, labels: torch.Tensor) -> nn.Sequential:
    """Returns a small convolutional classifier of the digits, whose last layer but one gives the features [n, 64]; cached."""

    def fit(network: nn.Module) -> None:
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
        for step in range(600):
            picks = torch.randint(len(images), (128,), generator=seeded(1, step))
            noisy = images[picks] + 0.1 * torch.randn(images[picks].shape, generator=seeded(2, step))
            loss = F.cross_entropy(network(noisy), labels[picks])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.SiLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(512, 64), nn.SiLU(), nn.Linear(64, CLASSES),
    )  # fmt: skip
    return _cached(path, network, fit)


def feature_network(path: Path, images: torch.Tensor, labels: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns images -> the classifier's features [n, 64], scaled to mean 0 and deviation 1 over the real digits."""
    network = classifier(path, images, labels)[:-1]
    real = network(images)
    mean, deviation = real.mean(0), real.std(0) + 1e-3
    return lambda found: (network(found) - mean) / deviation


@torch.no_grad()
def sample(
    network: DigitNet,
    labels: torch.Tensor,
    steps: int,
    seed: int,
    *,
    num_segments: int = 1,
    eta: float = 0.0,
    guidance_scale: float = 1.0,
    start_timestep: int = LAST_TIMESTEP,
) -> torch.Tensor:
    """Draws one digit per label, [n, 1, 8, 8]; the initial noise depends on the seed and the number of labels alone."""
    context, nothing = network.contexts(labels), network.contexts(torch.full_like(labels, CLASSES))

    def model(x: torch.Tensor, sigma: torch.Tensor, seed: int) -> torch.Tensor:
        t = torch.full((len(x),), round(SCHEDULE.timestep(float(sigma[0]))))
        inner = x / (1 + sigma[0] ** 2).sqrt()
        noise = network(inner, t, context)
        if guidance_scale != 1:
            without = network(inner, t, nothing)
            noise = without + guidance_scale * (noise - without)
        return x - sigma[0] * noise

    sigmas = hyper_sd_sigmas(SCHEDULE, steps, num_segments, start_timestep=start_timestep)
    noise = torch.randn(len(labels), 1, 8, 8, generator=seeded(3, seed))
    start = noise * (1 + sigmas[0] ** 2).sqrt()
    return sample_tcd(model, start, sigmas, {"seed": seed}, disable=True, eta=eta, num_segments=num_segments, schedule=SCHEDULE)
