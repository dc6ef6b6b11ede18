"""A model's noise levels: sigma as a function of the timestep, and back, for diffusion and flow models alike."""

import bisect
import math
import operator
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch

from ..errors import UnsupportedModelError

TRAIN_TIMESTEPS = 1000  # Stable Diffusion's T; timesteps are the indices 0..999, index i standing for time (i + 1) / T
SNAP = 1e-3  # a float32 sigma finds its timestep to about 1e-4; nearer than this to an integer, it is that integer


@dataclass(frozen=True)
class NoiseSchedule:
    """The increasing sigma table that a model was trained on.

    Diffusion models have sigma = sqrt((1 - alpha_bar) / alpha_bar) and x = x0 + sigma * eps, which is k-diffusion's scaling.
    Flow models have a sigma in (0, 1] and x = (1 - sigma) * x0 + sigma * eps.

    Args:
        table: sigmas of evenly spaced times, lowest first, of any length L. Index k stands for time (k + 1) / L.
    Raises: UnsupportedModelError when the sigmas do not increase.
    """

    table: tuple[float, ...]

    def __post_init__(self) -> None:
        rising = all(map(operator.lt, self.table, self.table[1:]))
        if len(self.table) < 2 or not rising or not self.table[0] >= 0:
            raise UnsupportedModelError(
                f"A noise schedule needs two or more increasing sigmas, got {len(self.table)} that are not; "
                "remove the node that patched this model's sampling."
            )

    @classmethod
    def from_sigmas(cls, sigmas: torch.Tensor | Sequence[float]) -> "NoiseSchedule":
        """Returns the schedule of a host's sigma table, which is a tensor [L] or a sequence of numbers."""
        return cls(tuple(sigmas.tolist() if isinstance(sigmas, torch.Tensor) else map(float, sigmas)))

    @classmethod
    def from_betas(cls, start: float = 0.00085, end: float = 0.012, zero_terminal_snr: bool = False) -> "NoiseSchedule":
        """Returns the scaled-linear schedule of SD1.5 and SDXL, or its zero-terminal-SNR form.

        Source: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", arXiv 2305.08891, algorithm 1.
        Args:
            start: beta of the first timestep.
            end: beta of the last timestep.
            zero_terminal_snr: whether the last timestep is pure noise.
        """
        betas = torch.linspace(start**0.5, end**0.5, TRAIN_TIMESTEPS, dtype=torch.float64) ** 2
        root = (1 - betas).cumprod(0).sqrt()
        if zero_terminal_snr:
            root = (root - root[-1]) * root[0] / (root[0] - root[-1])
            root[-1] = 2**-12  # alpha_bar 6e-8 in place of 0, so that sigma stays finite
        return cls.from_sigmas(sigma_of(root.square()))

    @cached_property
    def is_flow(self) -> bool:
        """Whether sigma runs to 1 as in flow models (SD3, FLUX); diffusion tables run to 14.6 and beyond."""
        return self.table[-1] <= 1.0 + 1e-6

    def _axis(self, sigma: float) -> float:
        # Hosts interpolate diffusion sigmas in the logarithm; flow sigmas are near linear in time.
        return sigma if self.is_flow else math.log(max(sigma, 1e-10))

    def sigma(self, timestep: float) -> float:
        """Returns sigma at a timestep in 0..999. Between the table's entries it is interpolated, outside them clamped."""
        position = (timestep + 1) * len(self.table) / TRAIN_TIMESTEPS - 1
        position = min(max(position, 0.0), len(self.table) - 1.0)
        low = int(position)
        share = position - low
        if share < 1e-9:
            return self.table[low]
        value = (1 - share) * self._axis(self.table[low]) + share * self._axis(self.table[low + 1])
        return value if self.is_flow else math.exp(value)

    def timestep(self, sigma: float) -> float:
        """Returns the timestep in 0..999 at which the model has a sigma. This is the inverse of sigma(), clamped."""
        if sigma <= self.table[0]:
            position = 0.0
        elif sigma >= self.table[-1]:
            position = len(self.table) - 1.0
        else:
            high = bisect.bisect_left(self.table, sigma)
            below, above = self._axis(self.table[high - 1]), self._axis(self.table[high])
            position = high - 1 + (self._axis(sigma) - below) / (above - below)
        timestep = max((position + 1) * TRAIN_TIMESTEPS / len(self.table) - 1, 0.0)
        return float(round(timestep)) if abs(timestep - round(timestep)) < SNAP else timestep


def alpha_bar_of(sigma: Any) -> Any:
    """Returns alpha_bar = 1 / (1 + sigma^2) of a diffusion sigma, which may be a number or a tensor."""
    return 1 / (1 + sigma**2)


def sigma_of(alpha_bar: Any) -> Any:
    """Returns sigma = sqrt((1 - alpha_bar) / alpha_bar) of a diffusion alpha_bar, which may be a number or a tensor."""
    return ((1 - alpha_bar) / alpha_bar) ** 0.5


@lru_cache(maxsize=8)
def _schedule(table: bytes) -> NoiseSchedule:
    # Keyed by content, so a patched table is a new entry, and the next image does not check a thousand numbers again.
    return NoiseSchedule(tuple(array("d", table)))


def schedule_of(model: Any) -> NoiseSchedule:
    """Returns the sigma table of the model that a host hands to a k-diffusion sampler.

    Both hosts wrap their network in `inner_model` layers. ComfyUI keeps the table in `model_sampling`, the A1111 family in
    the innermost k-diffusion denoiser. It is read at every run, since zero-terminal-SNR and v-prediction patches change it.

    Args:
        model: the outermost layer.
    Raises: UnsupportedModelError when no layer has a table.
    """
    layer = getattr(model, "inner_model", None)
    while layer is not None:
        holder = getattr(layer, "model_sampling", layer)
        table = getattr(holder, "sigmas", None)
        if isinstance(table, torch.Tensor) and table.ndim == 1 and len(table) > 1:
            return _schedule(table.detach().double().cpu().numpy().tobytes())
        layer = getattr(layer, "inner_model", None)
    raise UnsupportedModelError(
        f"{type(model).__name__} has no sigma table, so timesteps cannot be told from sigmas; "
        "use a model with a discrete noise schedule, or pass schedule=NoiseSchedule(...)."
    )
