"""The published grids, and a small nonlinear network with the host's view of it, shared by the sampler tests."""

from collections.abc import Callable, Iterator

import torch

from ...samplers.schedule import NoiseSchedule, alpha_bar_of

DIFFUSION = NoiseSchedule.from_betas()
ZERO_SNR = NoiseSchedule.from_betas(zero_terminal_snr=True)

# Timesteps by the number of steps: as many segments as steps, and four segments.
TRAILING_GRIDS = {
    1: [999],
    2: [999, 499],
    3: [999, 666, 332],
    4: [999, 749, 499, 249],
    5: [999, 799, 599, 399, 199],
    6: [999, 832, 666, 499, 332, 166],
    7: [999, 856, 713, 570, 428, 285, 142],
    8: [999, 874, 749, 624, 499, 374, 249, 124],
}
FOUR_SEGMENT_GRIDS = {
    4: [999, 749, 499, 249],
    5: [999, 874, 749, 499, 249],
    6: [999, 874, 749, 624, 499, 249],
    8: [999, 874, 749, 624, 499, 374, 249, 124],
    12: [999, 916, 832, 749, 666, 582, 499, 416, 332, 249, 166, 82],
}


def flow(shift: float = 1.0, length: int = 1000) -> NoiseSchedule:
    """The table of SD3 and FLUX: shift * t / (1 + (shift - 1) * t)."""
    times = [(k + 1) / length for k in range(length)]
    return NoiseSchedule(tuple(shift * t / (1 + (shift - 1) * t) for t in times))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """float64 noise, the same at every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(x: torch.Tensor, timestep: float) -> torch.Tensor:
    """Depends on the sample, its neighbours and the timestep, so that no mistake in any of them stays hidden."""
    return torch.sin(3 * x) + 0.1 * float(timestep) / 1000 * x.roll(1, -1)


def host_model(schedule: NoiseSchedule, prediction_type: str = "epsilon") -> Callable[..., torch.Tensor]:
    """`network` as a k-diffusion host shows it: model(x0 + sigma * eps, sigma) -> denoised."""

    def model(x: torch.Tensor, sigma: torch.Tensor, **extra_args: object) -> torch.Tensor:
        level = float(sigma[0])
        alpha_bar = alpha_bar_of(level)
        output = network(x * alpha_bar**0.5, schedule.timestep(level))
        if prediction_type == "epsilon":
            return x - level * output
        return alpha_bar * x - level * alpha_bar**0.5 * output

    return model


def sigmas_of(schedule: NoiseSchedule, timesteps: list[int], end: float = 0.0) -> torch.Tensor:
    """float64 sigmas [steps + 1] of literal timesteps."""
    return torch.tensor([schedule.sigma(t) for t in timesteps] + [end], dtype=torch.float64)


def draws(noises: list[torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A noise sampler that hands out `noises` in order."""
    source: Iterator[torch.Tensor] = iter(noises)
    return lambda sigma, sigma_next: next(source)


def no_noise(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
    """A noise sampler that must not be called."""
    raise AssertionError(f"noise was drawn from sigma {sigma} to {sigma_next}")
