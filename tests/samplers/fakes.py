"""A small nonlinear network and the host's view of it, shared by the sampler tests."""

from collections.abc import Callable, Iterator

import torch

from ...samplers.schedule import NoiseSchedule, alpha_bar_of

DIFFUSION = NoiseSchedule.from_betas()
ZERO_SNR = NoiseSchedule.from_betas(zero_terminal_snr=True)


def flow(shift: float) -> NoiseSchedule:
    """The table of SD3 and FLUX: shift * t / (1 + (shift - 1) * t)."""
    return NoiseSchedule(tuple(shift * t / (1 + (shift - 1) * t) for t in ((k + 1) / 1000 for k in range(1000))))


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
