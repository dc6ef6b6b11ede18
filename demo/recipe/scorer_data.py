"""What the small scorers learn from: drawings, what the model makes of them on the way from noise, and several on one page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from tqdm import tqdm

from ...disk import whole_file
from ...rewards.instances import Instances
from ...training.launch.embedded_model import noise_schedule
from .emoji import FLUENT, IMAGE_SIZE, NOTO, Concept, page
from .sample import encode
from .scorer_samples import chosen_things, draw_samples
from .train_denoiser import Denoiser

LEVELS = 5  # renditions of each drawing
LOWEST, HIGHEST = 60, 960  # timesteps that they come from
THINGS, SIZES, LEAST_SEEN = (1, 3), (48, 112), 0.3  # on a page; pixels of a side; share of a thing that is not covered


@dataclass(frozen=True)
class World:
    """The drawings of both vendors, Noto's first.

    Args:
        images: uint8 [count, 128, 128, 3], on white.
        cut_outs: the same without a ground, uint8 [count, 128, 128, 4].
        renditions: what the model predicts of each drawing from its noised latents, uint8 [count, LEVELS, 128, 128, 3].
        timesteps: that these come from, int [count, LEVELS].
        kinds: the number of the kind of each drawing.
        samples: what the model draws from noise, uint8 [things, ways of SAMPLINGS, 128, 128, 3].
        sampled: the numbers of these things.
    """

    images: np.ndarray
    cut_outs: np.ndarray
    renditions: np.ndarray
    timesteps: torch.Tensor
    kinds: list[int]
    samples: np.ndarray
    sampled: list[int]

    def masks(self) -> torch.Tensor:
        """Returns where each drawing is, float [count, 128, 128]."""
        return torch.from_numpy(self.cut_outs[..., 3]).float() / 255


def load_world(
    images: np.ndarray, concepts: Sequence[Concept], vae: AutoencoderKL, denoiser: Denoiser, latents: torch.Tensor, work: Path
) -> World:
    """Returns the drawings, their renditions and the samples; the last two are made once and kept in `work`.

    Args:
        images: of both vendors, Noto's first.
        concepts: what they show.
        vae: turns latents into pixels.
        denoiser: the network whose predictions are kept.
        latents: of the drawings, float [count, 4, 16, 16] with deviation 1.
        work: the recipe's folder.
    """
    drawings = [concept.svg[vendor] for vendor in (NOTO, FLUENT) for concept in concepts]
    cut_outs = np.stack([np.asarray(page(svg)) for svg in tqdm(drawings, desc="cut out")])
    generator = torch.Generator().manual_seed(3)
    edges = torch.linspace(LOWEST, HIGHEST, LEVELS + 1)
    timesteps = (edges[:-1] + torch.rand(len(images), LEVELS, generator=generator) * edges.diff()).long()
    labels, kinds = [concept.label for concept in concepts] * 2, [concept.kind for concept in concepts] * 2
    renditions = _kept(work / "renditions.npy", lambda: _renditions(vae, denoiser, latents, labels, timesteps, generator))
    sampled = chosen_things(len(concepts))
    samples = _kept(work / "samples.npy", lambda: draw_samples(vae, denoiser, [labels[thing] for thing in sampled]))
    return World(images, cut_outs, renditions, timesteps, kinds, samples, sampled)


def _kept(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Returns what is kept in a file, made once, and read from the disk as it is used."""
    if not path.exists():
        made = make()
        with whole_file(path) as partial, partial.open("wb") as file:
            np.save(file, made)
    return np.load(path, mmap_mode="r")


@torch.no_grad()
def _renditions(
    vae: AutoencoderKL,
    denoiser: Denoiser,
    latents: torch.Tensor,
    labels: list[str],
    timesteps: torch.Tensor,
    generator: torch.Generator,
) -> np.ndarray:
    alpha_bar, parts = noise_schedule().alphas_cumprod, []
    for first in tqdm(range(0, len(latents), 16), desc="renditions"):
        rows = slice(first, first + 16)
        t, x = timesteps[rows].flatten(), latents[rows].repeat_interleave(LEVELS, 0)
        context = encode(denoiser, labels[rows]).repeat_interleave(LEVELS, 0)
        keep, level = (value.sqrt().view(-1, 1, 1, 1) for value in (alpha_bar[t], 1 - alpha_bar[t]))
        noisy = keep * x + level * torch.randn(x.shape, generator=generator)
        clean = (noisy - level * denoiser.unet(noisy, t, context).sample) / keep
        decoded = vae.decode(clean / vae.config.scaling_factor).sample.add(1).mul(127.5).round().clamp(0, 255).byte()
        parts.append(decoded.permute(0, 2, 3, 1).unflatten(0, (-1, LEVELS)).numpy())
    return np.concatenate(parts)


def as_floats(pictures: np.ndarray) -> torch.Tensor:
    """Returns uint8 pictures [n, height, width, 3] as floats [n, 3, height, width] from 0 to 1."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255


def moved(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Returns pictures [n, 3, h, w] on white, moved by up to 8 % of a side, scaled by 0.8 to 1.15, and slightly tinted."""
    count = len(pictures)
    scale = 1 / (0.8 + 0.35 * torch.rand(count, generator=generator))
    shift = 0.16 * (2 * torch.rand(count, 2, generator=generator) - 1)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale, scale, shift
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    placed = 1 - F.grid_sample(1 - pictures, grid, align_corners=False)  # what comes in from outside is white
    tint = 1 + 0.06 * (2 * torch.rand(count, 3, 1, 1, generator=generator) - 1)
    return (placed * tint).clamp(0, 1)


def paste(world: World, generator: torch.Generator) -> tuple[np.ndarray, Instances]:
    """Returns a page with one to three drawings, uint8 [128, 128, 3], and where each of them can be seen."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    white, masks, kinds = Image.new("RGBA", (IMAGE_SIZE,) * 2, "white"), [], []
    for _ in range(draw(*THINGS)):
        number, size = draw(0, len(world.images) - 1), draw(*SIZES)
        left, top = draw(0, IMAGE_SIZE - size), draw(0, IMAGE_SIZE - size)
        drawn = Image.fromarray(world.cut_outs[number]).resize((size, size), Image.LANCZOS)
        layer = Image.new("RGBA", white.size, (255, 255, 255, 0))
        layer.paste(drawn, (left, top))
        white.alpha_composite(layer)
        own = torch.from_numpy(np.asarray(layer)[..., 3] / np.float32(255))
        masks = [(mask * (1 - own), whole) for mask, whole in masks] + [(own, float(own.sum()))]
        kinds.append(world.kinds[number])
    seen = [i for i, (mask, whole) in enumerate(masks) if float(mask.sum()) > LEAST_SEEN * whole]
    there = Instances(torch.stack([masks[i][0] for i in seen]), torch.tensor([kinds[i] for i in seen]))
    return np.asarray(white.convert("RGB")), there
