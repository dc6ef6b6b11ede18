"""The forward process of a model and the deterministic map between two of its timesteps, for every kind of prediction."""

from dataclasses import dataclass, field

import torch

from ..errors import TrainingError, UnsupportedModelError
from ..samplers.schedule import TRAIN_TIMESTEPS, NoiseSchedule

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow")


@dataclass(frozen=True)
class Diffusion:
    """x_t = alpha_t x0 + sigma_t noise at the timesteps 0..999, and what the network predicts about x_t.

    Diffusion models: alpha^2 + sigma^2 = 1, alpha^2 = alpha_bar. Flow models: alpha + sigma = 1.

    Args:
        alpha: of x0, float64 [1000], by timestep.
        sigma: of the noise, float64 [1000], by timestep.
        prediction_type: "epsilon", the noise; "v_prediction", alpha noise - sigma x0; "sample", x0; or "flow", noise - x0.
    """

    alpha: torch.Tensor
    sigma: torch.Tensor
    prediction_type: str = "epsilon"
    _tables: dict = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTION_TYPES:
            raise UnsupportedModelError(f"prediction_type must be one of {PREDICTION_TYPES}, got {self.prediction_type!r}.")

    @classmethod
    def from_schedule(cls, schedule: NoiseSchedule, prediction_type: str | None = None) -> "Diffusion":
        """Returns the process of a sampler's sigma table.

        Args:
            schedule: the table.
            prediction_type: None is "flow" for the table of a flow model, "epsilon" otherwise.
        Raises: UnsupportedModelError where prediction and table do not belong together.
        """
        prediction_type = prediction_type or ("flow" if schedule.is_flow else "epsilon")
        if (prediction_type == "flow") != schedule.is_flow:
            raise UnsupportedModelError(
                f"{prediction_type!r} does not fit a noise schedule that ends at {schedule.table[-1]:g}."
            )
        ratio = torch.tensor([schedule.sigma(t) for t in range(TRAIN_TIMESTEPS)], dtype=torch.float64)
        if schedule.is_flow:
            return cls(1 - ratio, ratio, prediction_type)
        alpha = (1 + ratio**2).rsqrt()
        return cls(alpha, ratio * alpha, prediction_type)

    def levels(self, t: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns alpha and sigma at the timesteps `t` [batch], shaped to multiply `like` [batch, ...], in its dtype."""
        tables = self._tables_on(like.device, torch.promote_types(like.dtype, torch.float32))
        shape = (-1, *[1] * (like.ndim - 1))
        t = t.to(like.device)
        return tuple(table[t].view(shape) for table in tables)

    def _tables_on(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns alpha and sigma of all timesteps; they are brought to a device once, which a card would wait for."""
        if (device, dtype) not in self._tables:
            self._tables[device, dtype] = self.alpha.to(device, dtype), self.sigma.to(device, dtype)
        return self._tables[device, dtype]

    def model_time(self, t: torch.Tensor) -> torch.Tensor:
        """Returns the time the network takes for timesteps `t`: itself, or 1000 sigma for flow models."""
        return 1000 * self._tables_on(t.device, torch.float32)[1][t] if self.prediction_type == "flow" else t

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Returns x_t [batch, ...] of x0 and noise [batch, ...] at timesteps `t` [batch]."""
        alpha, sigma = self.levels(t, x0)
        return alpha * x0 + sigma * noise

    def training_target(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Returns what a perfect network would predict."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return x0
        if self.prediction_type == "flow":
            return noise - x0
        alpha, sigma = self.levels(t, x0)
        return alpha * noise - sigma * x0

    def pred_x0(self, x: torch.Tensor, prediction: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Returns the x0 that `prediction` about `x` at `t` implies."""
        alpha, sigma = self.levels(t, x)
        return self._map(x, prediction, alpha, sigma, 1.0, 0.0)

    def jump(self, x: torch.Tensor, prediction: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """Psi: moves `x` from timesteps `t` along its predicted direction to `s`, x_s = alpha_s x0 + sigma_s noise.

        It is written as a sum of x and the prediction, so that s = t returns x itself.

        Source: DDIM, arXiv 2010.02502, Eq. 12 without noise; Hyper-SD, arXiv 2404.13686, Eq. 11.
        """
        return self._map(x, prediction, *self.levels(t, x), *self.levels(s, x))

    def _map(self, x, prediction, alpha, sigma, alpha_s, sigma_s) -> torch.Tensor:
        if self.prediction_type == "epsilon":
            on_x = alpha_s / alpha
            return on_x * x + (sigma_s - on_x * sigma) * prediction
        if self.prediction_type == "sample":
            on_x = sigma_s / sigma
            return on_x * x + (alpha_s - on_x * alpha) * prediction
        turn = (sigma_s * alpha - alpha_s * sigma) * prediction
        if self.prediction_type == "flow":
            return (alpha_s + sigma_s) * x + turn
        return (alpha_s * alpha + sigma_s * sigma) * x + turn


def offset_noise(noise: torch.Tensor, shift: torch.Tensor, strength: float) -> torch.Tensor:
    """Adds to every channel of `noise` [batch, channels, ...] a constant of its own, `strength` * shift [batch, channels].

    Source: Guttenberg, "Diffusion with Offset Noise" (2023); Hyper-SD, arXiv 2404.13686, "noise perturbation".
    """
    if strength == 0:
        return noise
    if strength < 0:
        raise TrainingError(f"offset_noise must be 0 or more, got {strength}; 0.05 is usual.")
    return noise + strength * shift.view(*shift.shape, *[1] * (noise.ndim - 2))
