"""A MODEL that is asked at a shifted timestep, as NitroSD was distilled: by a clone's patch, so masks and hooks stay right."""

import copy
from typing import Any

import torch

from ..samplers.shift import require_shift


class ShiftedQuestion:
    """What stands before a host's model_sampling: the network is asked, and x0 taken, at floor(timestep * timestep_shift).

    Everything else, such as masks and the steps at which a ControlNet or a hook begins, goes on by the image's own sigma.
    """

    timestep_shift = 1.0

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        """Returns the timesteps [batch] at which the network is asked, for sigmas [batch]."""
        own = super().timestep(sigma)
        return torch.floor(own.float() * self.timestep_shift + 1e-6).to(own.dtype)

    def calculate_denoised(self, sigma: torch.Tensor, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Returns x0 [batch, ...] from the network's output and x, both [batch, ...], as of the asked sigma."""
        asked = self.sigma(self.timestep(sigma)).to(sigma)
        scale = ((1 + asked**2) / (1 + sigma**2)).sqrt()  # the network sees the same numbers: samplers/shift.py
        return super().calculate_denoised(asked, output, x * scale.reshape(-1, *[1] * (x.ndim - 1)))


def asked_shifted(model: Any, shift: float) -> Any:
    """Returns a MODEL that is asked at a shifted timestep: a clone, or the MODEL itself where the shift is 1.

    Args:
        model: MODEL with a discrete noise schedule.
        shift: above 0, at most 1.
    Raises: ScheduleError for another shift.
    """
    if require_shift(shift, is_flow=False) == 1:
        return model
    own = model.get_model_object("model_sampling")
    shifted = copy.copy(own)
    kind = type(own).__bases__[1] if isinstance(own, ShiftedQuestion) else type(own)  # a second shift takes the first's place
    shifted.__class__ = type(f"Shifted{kind.__name__}", (ShiftedQuestion, kind), {"timestep_shift": shift})
    patched = model.clone()
    patched.add_object_patch("model_sampling", shifted)
    return patched
