"""The shifted question: a network that was distilled so is asked, and x0 taken, at a lower timestep than the image has."""

import math
import numbers

from ..errors import ScheduleError, UnsupportedModelError
from .schedule import NoiseSchedule


def shifted_timestep(timestep: float, shift: float) -> int:
    """Returns floor(timestep * shift), the timestep at which the network is asked.

    Source: the scheduler on the model card of ChenDY/NitroFusion, arXiv 2412.02030.
    Args:
        timestep: of the image, 0..999.
        shift: above 0, at most 1.
    """
    return math.floor(timestep * shift + 1e-6)  # 0.29 * 100 = 28.999999999999996


def require_shift(shift: float, is_flow: bool) -> float:
    """Returns the shift.

    Args:
        shift: of the timesteps.
        is_flow: whether the model is a flow model.
    Raises: ScheduleError for what is no number above 0 and at most 1; UnsupportedModelError for a flow model with a shift.
    """
    if not isinstance(shift, numbers.Real) or isinstance(shift, bool) or not 0 < shift <= 1:
        raise ScheduleError(f"timestep_shift must lie in (0, 1], got {shift!r}; use 1 to ask at the image's own timestep.")
    if is_flow and shift != 1:
        raise UnsupportedModelError(
            f"timestep_shift is for SD1.5 and SDXL; flow models (SD3, FLUX) have no numbered ones. Set it to 1, got {shift}."
        )
    return float(shift)


def question(schedule: NoiseSchedule, sigma: float, timestep: float, shift: float) -> tuple[float, float]:
    """Returns the sigma that the model is asked at, and what its x is multiplied by.

    The network sees x / sqrt(1 + sigma^2). This factor keeps these numbers, while the timestep and the x0 that follows from the
    network's answer are those of the asked sigma.

    Args:
        schedule: the model's noise levels.
        sigma: of the image.
        timestep: of the image.
        shift: as shifted_timestep takes it.
    """
    asked = schedule.sigma(shifted_timestep(timestep, shift))
    return asked, math.sqrt((1 + asked**2) / (1 + sigma**2))
