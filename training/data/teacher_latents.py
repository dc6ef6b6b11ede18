"""Latents drawn by the teacher itself, for training on prompts alone: guided DDIM over the solver's grid."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from ..denoiser import Denoiser
from ..segments import solver_grid
from .examples import Conditioning, seeded


def prompt_noise(seed: int, prompt: str, repeat: int, shape: Sequence[int]) -> torch.Tensor:
    """Returns the starting noise [1, *shape] of an image of a prompt.

    It depends on the arguments alone: a prompt keeps its image whatever is drawn beside it, in which batches, and by how many
    processes.

    Args:
        seed: of the run.
        prompt: the text.
        repeat: which image of the prompt it is, counted from 0.
        shape: of the latents, [channels, height, width].
    """
    prompt_number = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:16], "big")
    return torch.randn(1, *shape, generator=seeded(seed, prompt_number, repeat))


def draw_latents(
    denoiser: Denoiser,
    noise: torch.Tensor,
    conditioning: Conditioning,
    unconditional: Conditioning,
    *,
    steps: int = 50,
    guidance_scale: float = 7.5,
    context: Callable[[], AbstractContextManager] = nullcontext,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Denoises `noise` and yields (solver steps done, x) after each step; the last x is the latents.

    Source: DDIM, arXiv 2010.02502, Eq. 12 without noise, from timestep 999 down to x0.

    Args:
        denoiser: the teacher's network.
        noise: [batch, ...] of deviation 1, on the network's device.
        conditioning: tensors [batch, ...].
        unconditional: tensors [batch, ...] of the empty prompt; an empty dict is no guidance.
        steps: of the solver, a divisor of 1000.
        guidance_scale: 1 is no guidance.
        context: returns what each call of the network runs in, for example autocast.
    Raises: TrainingError when steps does not divide 1000.
    """
    diffusion, batch = denoiser.diffusion, len(noise)
    times = [torch.full((batch,), t, device=noise.device) for t in reversed(solver_grid(steps))]
    scale, x = torch.full((batch,), float(guidance_scale), device=noise.device), noise
    for done, t in enumerate(times, 1):
        with torch.no_grad(), context():
            prediction = denoiser.guided(x, t, conditioning, unconditional if guidance_scale != 1 else {}, scale)
        x = diffusion.pred_x0(x, prediction, t) if done == steps else diffusion.jump(x, prediction, t, times[done])
        yield done, x
