"""The few-step grids: which timesteps a Hyper-SD model is evaluated at."""

from functools import lru_cache

import numpy as np
import torch

from ..errors import ScheduleError
from .schedule import TRAIN_TIMESTEPS, NoiseSchedule

LAST_TIMESTEP = TRAIN_TIMESTEPS - 1  # 999, where pure noise stands and every grid but the one-step UNet's begins
ONE_STEP_START = 800  # where the one-step SDXL UNet was distilled; the unified LoRA's one step starts at 999
ENDS = ("sigma 0", "alpha_bar[0]")  # where a grid's last step may land, in the words that both hosts show and save

# TCD's distillation grid has 50 points, 20 timesteps apart (diffusers TCDScheduler, original_inference_steps = 50).
# More steps than it holds take the next finer grid, so that no timestep comes twice.
SPACINGS = (20, 10, 5, 4, 2, 1)


def _whole(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not value >= least or value % 1 != 0:  # nan and inf fail these too
        raise ScheduleError(f"{name} must be a whole number of at least {least}, got {value}.")
    return int(value)


def segment_boundaries(num_segments: int) -> list[int]:
    """Returns the top timestep of each segment, highest first: [999, 749, 499, 249] for 4; equal to the trailing grid.

    Source: diffusers DDIMScheduler, timestep_spacing="trailing": round(arange(T, 0, -T / k)) - 1.
    """
    num_segments = _whole("num_segments", num_segments, 1)
    if num_segments > TRAIN_TIMESTEPS:
        raise ScheduleError(f"num_segments must be at most {TRAIN_TIMESTEPS}, one per timestep, got {num_segments}.")
    return list(_trailing(num_segments))


@lru_cache(maxsize=32)
def _trailing(count: int) -> tuple[int, ...]:
    edges = np.round(np.arange(TRAIN_TIMESTEPS, 0, -TRAIN_TIMESTEPS / count)) - 1
    return tuple(int(edge) for edge in edges[:count])


def segment_boundary(timestep: int, num_segments: int) -> int:
    """Returns t_b, the lower edge of the segment that `timestep` lies in: the farthest point it may be mapped to.

    A boundary belongs to the segment below it: with 4 segments 999 -> 749 -> 499 -> 249 -> 0.
    Source: Hyper-SD, arXiv 2404.13686, Eq. 11, shifted to indices (index i stands for time i + 1 of T).
    """
    return next((edge for edge in segment_boundaries(num_segments) if edge < timestep), 0)


def hyper_sd_timesteps(steps: int, num_segments: int = 1, denoise: float = 1.0) -> list[int]:
    """Returns the `steps` timesteps to evaluate, strictly decreasing, the first 999 at denoise 1.

    num_segments 1 is the TCD grid, num_segments = steps the trailing grid. Otherwise every segment start is on the grid and
    the remaining steps divide the widest gaps. denoise < 1 cuts the grid anew below its first timestep.

    Source: diffusers TCDScheduler.set_timesteps (num_segments 1), DDIMScheduler "trailing" (num_segments = steps).
    Args:
        steps: model evaluations, 1 or more; as many as the timesteps below the start allow.
        num_segments: segments the model was distilled on, 1..steps.
        denoise: share of the noise to start from, in (0, 1].
    Raises: ScheduleError when no grid without repeated timesteps exists.
    """
    steps, num_segments = _whole("steps", steps, 1), _whole("num_segments", num_segments, 1)
    if not 0 < denoise <= 1:
        raise ScheduleError(f"denoise must lie in (0, 1], got {denoise}; use 1 to start from pure noise.")
    if num_segments == 1:
        return _tcd_grid(steps, denoise)
    if num_segments > steps:
        raise ScheduleError(
            f"{steps} steps cannot visit {num_segments} segments; use at least {num_segments} steps, or fewer segments."
        )
    start = max(int(50 * denoise) * 20, int(TRAIN_TIMESTEPS * denoise) if denoise < 0.02 else 0) - 1
    anchors = [start, *(edge for edge in segment_boundaries(num_segments) if edge < start)]
    if start < 0 or steps > start + 1 or len(anchors) > steps:
        raise ScheduleError(
            f"denoise {denoise} leaves {start + 1} timesteps for {steps} steps; use fewer steps or a higher denoise."
        )
    return _divide_gaps(anchors, steps)


def _tcd_grid(steps: int, denoise: float) -> list[int]:
    """diffusers' rule: floor(linspace) picks from the distillation grid, cut at denoise."""
    for spacing in SPACINGS:
        count = int(TRAIN_TIMESTEPS // spacing * denoise)
        if count >= steps:
            picks = np.floor(np.linspace(0, count, num=steps, endpoint=False)).astype(int)
            return [int((count - pick) * spacing - 1) for pick in picks]
    raise ScheduleError(
        f"denoise {denoise} leaves {int(TRAIN_TIMESTEPS * denoise)} timesteps, too few for {steps} steps; "
        "use fewer steps or a higher denoise."
    )


def _divide_gaps(anchors: list[int], steps: int) -> list[int]:
    """Spreads the steps that are left over the gaps below the anchors, always to the widest one, higher noise first."""
    widths = [high - low for high, low in zip(anchors, [*anchors[1:], -1], strict=True)]
    parts = [1] * len(anchors)
    for _ in range(steps - len(anchors)):
        widest = max(range(len(anchors)), key=lambda i: (widths[i] / parts[i], -i))
        parts[widest] += 1
    return [
        high - round(width * part / count)
        for high, width, count in zip(anchors, widths, parts, strict=True)
        for part in range(count)
    ]


def hyper_sd_sigmas(
    schedule: NoiseSchedule, steps: int, num_segments: int = 1, denoise: float = 1.0, end_on_zero: bool = True
) -> torch.Tensor:
    """Returns the sigmas of hyper_sd_timesteps and the end, float32 [steps + 1], strictly decreasing.

    Args:
        end_on_zero: end on sigma 0, as both hosts do; False ends on alpha_bar[0], sigma 0.029, as diffusers does.
    Raises: ScheduleError as hyper_sd_timesteps, or when the model's table is too coarse for so many steps.
    """
    timesteps = hyper_sd_timesteps(steps, num_segments, denoise)
    if not end_on_zero and timesteps[-1] == 0:
        raise ScheduleError(f"{steps} steps already visit timestep 0 and cannot end on it; end on sigma 0 instead.")
    sigmas = [schedule.sigma(t) for t in timesteps] + [0.0 if end_on_zero else schedule.sigma(0)]
    result = torch.tensor(sigmas, dtype=torch.float32)
    if not bool((result[1:] < result[:-1]).all()):
        raise ScheduleError(
            f"This model's noise schedule has {len(schedule.table)} levels, too few for {steps} distinct steps at "
            f"denoise {denoise}; use fewer steps."
        )
    return result
