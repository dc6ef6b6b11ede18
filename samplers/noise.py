"""The noise between the steps: every timestep has its own, the same on every device, drawn while a graphics card computes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch

# Noise tensors that are drawn or wait for their step. A processor takes 0.1 to 0.4 ms to draw the noise of a 1024 x 1024 image,
# an H100's sampler without a model 0.1 ms for a whole step, so one thread alone would hold it up.
AHEAD = 4
THREADS = "hyper_sd_noise"


def seeded_noise(x: torch.Tensor, seed: int | Sequence[int] | None, timesteps: Iterable[float]) -> Callable[..., torch.Tensor]:
    """Returns a k-diffusion noise sampler that gives every timestep its own noise, the same on every device.

    The noise comes from a generator on the CPU that is seeded by (seed, timestep), never from the one that made the initial
    noise. A run that is split in two therefore equals the whole one.

    Args:
        x: latents [batch, ...], whose shape, dtype and device the noise has.
        seed: of the batch, or a list of one for every latent in it. None takes one from torch's global generator.
        timesteps: where the steps that add noise end, in their order.
    """
    seeds, remaining, generator = _seeds(seed), iter(timesteps), torch.Generator()

    def noise_of_next_step(sigma: Any = None, sigma_next: Any = None) -> torch.Tensor:
        # This copy waits where x is on another device: without waiting, MPS may read the memory when it has become another's
        # (https://github.com/pytorch/pytorch/issues/189690).
        return _draw(x.shape, seeds, next(remaining), generator).to(x)

    return noise_of_next_step


@contextmanager
def noise_ahead(
    x: torch.Tensor, seed: int | Sequence[int] | None, timesteps: Sequence[float]
) -> Iterator[Callable[..., torch.Tensor]]:
    """Gives the noise sampler of seeded_noise, with the same values. For CUDA and ROCm its noise is drawn ahead.

    Threads draw it into pinned memory while the card computes, at most AHEAD tensors before they are needed, and its copy to
    the card does not wait. The threads end with the context, whatever ends it. On other devices, and where no step adds noise,
    there are no threads.

    Args:
        x: latents [batch, ...], whose shape, dtype and device the noise has.
        seed: as seeded_noise takes it.
        timesteps: where the steps that add noise end, in their order.
    """
    if not timesteps or not draws_ahead(x.device):
        yield seeded_noise(x, seed, timesteps)
        return
    pool = ThreadPoolExecutor(min(AHEAD, len(timesteps)), THREADS)
    try:
        yield _drawn_in_threads(pool, x, _seeds(seed), timesteps)
    finally:
        pool.shutdown(cancel_futures=True)


def draws_ahead(device: torch.device) -> bool:
    """Whether a device's noise is drawn ahead: CUDA's is, and ROCm's, which torch calls cuda as well.

    On a processor the threads would take from the model's own. MPS cannot copy without waiting, see seeded_noise. XPU and
    others copy as plainly, until one of them has been measured.
    """
    return device.type == "cuda"


def _drawn_in_threads(
    pool: ThreadPoolExecutor, x: torch.Tensor, seeds: Sequence[int], timesteps: Sequence[float]
) -> Callable[..., torch.Tensor]:
    def start(timestep: float) -> Future:
        # Pinned memory is asked for here, so that the threads call nothing of the card's: a model may be in capture of a graph.
        return pool.submit(_draw_into, _pinned_like(x), seeds, timestep)

    pending = deque(map(start, timesteps[:AHEAD]))
    later = iter(timesteps[AHEAD:])

    def noise_of_next_step(sigma: Any = None, sigma_next: Any = None) -> torch.Tensor:
        # The pinned memory may be let go before the copy is done: torch's caching host allocator has noted an event behind the
        # copy on its stream, and hands the memory out again only after that event has passed.
        noise = pending.popleft().result().to(x, non_blocking=True)
        pending.extend(map(start, islice(later, 1)))
        return noise

    return noise_of_next_step


def _pinned_like(x: torch.Tensor) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device="cpu", pin_memory=True)


def _draw_into(memory: torch.Tensor, seeds: Sequence[int], timestep: float) -> torch.Tensor:
    with torch.inference_mode():  # which a thread does not share with its caller, whose tensors it could not write to
        return memory.copy_(_draw(memory.shape, seeds, timestep, torch.Generator()))


def _draw(shape: torch.Size, seeds: Sequence[int], timestep: float, generator: torch.Generator) -> torch.Tensor:
    """Returns noise on the CPU, [batch, ...] of torch's default dtype, every equal part of the batch by its own seed."""
    if len(seeds) == 1:
        return torch.randn(shape, generator=generator.manual_seed(_mix(seeds[0], timestep)), device="cpu")
    part = (shape[0] // len(seeds), *shape[1:])
    return torch.cat([_draw(torch.Size(part), [seed], timestep, generator) for seed in seeds])


def _seeds(seed: int | Sequence[int] | None) -> list[int]:
    if seed is None:
        return [int(torch.randint(2**62, ()))]
    return [int(one) for one in seed] if isinstance(seed, Sequence) else [int(seed)]


def _mix(seed: int, timestep: float) -> int:
    """Returns the generator's seed: splitmix64's finaliser (Steele, Lea, Flood 2014) keeps neighbours' streams unrelated."""
    mask = 2**64 - 1
    z = (seed + 0x9E3779B97F4A7C15 * (round(timestep * 1000) + 1)) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) & (2**63 - 1)
