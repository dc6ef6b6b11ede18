"""The few-step grids: which timesteps a Hyper-SD model is evaluated at."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch

from ..errors import ScheduleError
from .checks import share, whole
from .schedule import TRAIN_TIMESTEPS, NoiseSchedule

LAST_TIMESTEP = TRAIN_TIMESTEPS - 1  # 999, where pure noise stands and a grid begins unless told otherwise
ONE_STEP_START = 800  # where the one-step SDXL UNet was distilled; the authors' unified LoRA starts its one step at 999
ENDS = ("sigma 0", "alpha_bar[0]")  # where a grid's last step may land, in the words that both hosts show and save

# TCD's distillation grid has 50 points, 20 timesteps apart (diffusers TCDScheduler, original_inference_steps = 50).
# More steps than it holds take the next finer grid, so that no timestep comes twice.
SPACINGS = (20, 10, 5, 4, 2, 1)


def segment_boundaries(num_segments: int) -> list[int]:
    """Returns the top timestep of each segment, highest first: [999, 749, 499, 249] for 4; equal to the trailing grid.

    Source: diffusers DDIMScheduler, timestep_spacing="trailing": round(arange(T, 0, -T / k)) - 1.
    Args:
        num_segments: how many segments the timesteps are divided into, 1..1000.
    Raises: ScheduleError for another number.
    """
    num_segments = whole("num_segments", num_segments, 1)
    if num_segments > TRAIN_TIMESTEPS:
        raise ScheduleError(f"num_segments must be at most {TRAIN_TIMESTEPS}, one per timestep, got {num_segments}.")
    return list(_trailing(num_segments))


@lru_cache(maxsize=32)
def _trailing(count: int) -> tuple[int, ...]:
    edges = np.round(np.arange(TRAIN_TIMESTEPS, 0, -TRAIN_TIMESTEPS / count)) - 1
    return tuple(int(edge) for edge in edges[:count])


def segment_boundary(timestep: int, num_segments: int) -> int:
    """Returns t_b, the lower edge of the segment that a timestep lies in: the farthest point it may be mapped to.

    A boundary belongs to the segment below it: with 4 segments 999 -> 749 -> 499 -> 249 -> 0.

    Source: Hyper-SD, arXiv 2404.13686, Eq. 11, shifted to indices (index i stands for time i + 1 of T).
    Args:
        timestep: 0..999.
        num_segments: as segment_boundaries takes it.
    Raises: ScheduleError as segment_boundaries.
    """
    return next((edge for edge in segment_boundaries(num_segments) if edge < timestep), 0)


def hyper_sd_timesteps(
    steps: int, num_segments: int = 1, denoise: float = 1.0, *, start_timestep: int = LAST_TIMESTEP
) -> list[int]:
    """Returns the timesteps to evaluate, strictly decreasing from start_timestep at denoise 1.

    With 1 segment this is the TCD grid, with as many segments as steps the trailing grid. Otherwise every segment start is on
    the grid and the remaining steps divide the widest gaps. A denoise below 1 cuts the grid anew below its first timestep.

    Source: diffusers TCDScheduler.set_timesteps (num_segments 1), DDIMScheduler "trailing" (num_segments = steps).
    Args:
        steps: model evaluations, 1 or more. The timesteps from the start down must be at least as many.
        num_segments: segments the model was distilled on, 1..steps.
        denoise: share of all timesteps to start below, in (0, 1].
        start_timestep: the highest timestep to evaluate, 0..999. Files for one step have another than 999.
    Raises: ScheduleError when no grid without repeated timesteps exists.
    """
    steps, num_segments = whole("steps", steps, 1), whole("num_segments", num_segments, 1)
    denoise = share("denoise", denoise, "use 1 to start from pure noise", includes_zero=False)
    start_timestep = whole("start_timestep", start_timestep, 0)
    if start_timestep > LAST_TIMESTEP:
        raise ScheduleError(
            f"start_timestep must be at most {LAST_TIMESTEP}, pure noise, got {start_timestep}; use {LAST_TIMESTEP}."
        )
    if num_segments > steps:
        raise ScheduleError(
            f"{steps} steps cannot visit {num_segments} segments; use at least {num_segments} steps, or fewer segments."
        )
    highest = (start_timestep + 1) / TRAIN_TIMESTEPS
    part = min(denoise, highest)
    left = _timesteps_left(part, num_segments)
    if steps > left:
        name, limit = ("denoise", denoise) if denoise < highest or highest == 1 else ("start_timestep", start_timestep)
        raise ScheduleError(
            f"{name} {limit} leaves {left} timesteps, too few for {steps} steps; use fewer steps or a higher {name}."
        )
    grid = _tcd_grid(steps, part) if num_segments == 1 else _segment_grid(steps, num_segments, left - 1)
    return grid if denoise < highest else [start_timestep, *grid[1:]]


def _timesteps_left(denoise: float, num_segments: int) -> int:
    """Counts the timesteps below a share of them all; segments are cut at the points of the distillation grid."""
    return int(TRAIN_TIMESTEPS * denoise) if num_segments == 1 or denoise < 0.02 else int(50 * denoise) * 20


def _tcd_grid(steps: int, denoise: float) -> list[int]:
    """Picks evenly from the distillation grid below denoise by diffusers' rule, floor(linspace)."""
    spacing = next(spacing for spacing in SPACINGS if int(TRAIN_TIMESTEPS // spacing * denoise) >= steps)
    count = int(TRAIN_TIMESTEPS // spacing * denoise)
    picks = np.floor(np.linspace(0, count, num=steps, endpoint=False)).astype(int)
    return [int((count - pick) * spacing - 1) for pick in picks]


def _segment_grid(steps: int, num_segments: int, start: int) -> list[int]:
    """Visits the start and every segment start below it, and divides the gaps between them."""
    return _divide_gaps([start, *(edge for edge in segment_boundaries(num_segments) if edge < start)], steps)


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


def _leave_out(anchors: list[int], steps: int) -> list[int]:
    """Keeps the first anchor and so many others that no gap is wider than it must be; of equal ones lower noise goes first."""
    kept = list(anchors)
    while len(kept) > steps:
        below = [*kept[1:], -1]
        kept.pop(min(range(1, len(kept)), key=lambda i: (kept[i - 1] - below[i], -i)))
    return kept


def read_timesteps(text: str) -> list[int]:
    """Returns the timesteps that a person wrote, with commas, blanks or lines between.

    Raises: ScheduleError for a text with anything but whole numbers.
    """
    words = text.replace(",", " ").split()
    wrong = next((word for word in words if not (word.isascii() and word.isdecimal() and len(word) < 5)), None)
    if wrong is not None:
        raise ScheduleError(f"timesteps must be whole numbers such as 999, 749, 499, 249, got {wrong[:20]!r}.")
    return [int(word) for word in words]


def listed_timesteps(timesteps: Sequence[int], denoise: float = 1.0, steps: int | None = None) -> list[int]:
    """Returns a method's own list of timesteps, cut for an image that is given.

    A denoise below 1 starts at its own first timestep. The list's timesteps below it are visited, and the steps that are left
    divide the widest gaps, so that all steps are used. With too few steps for all of them the narrowest gaps are joined.

    Args:
        timesteps: strictly decreasing, each a whole number in 0..999.
        denoise: share of all timesteps to start below, in (0, 1].
        steps: model evaluations, 1 or more; None for as many as the list has.
    Raises: ScheduleError for another list, and for a denoise that leaves fewer timesteps than steps.
    """
    denoise = share("denoise", denoise, "use 1 to start from pure noise", includes_zero=False)
    if not isinstance(timesteps, Sequence):
        raise ScheduleError(f"The timesteps must be a list such as 999, 749, 499, 249, got {timesteps!r:.60}.")
    listed = [whole("a timestep", t, 0) for t in timesteps]
    if not listed or listed[0] > LAST_TIMESTEP or any(low >= high for high, low in pairwise(listed)):
        raise ScheduleError(
            f"The timesteps must be whole numbers from {LAST_TIMESTEP} down to 0, each lower than the one before, got "
            f"{', '.join(map(str, listed[:20])) or 'none'}; such as 999, 749, 499, 249."
        )
    steps = len(listed) if steps is None else whole("steps", steps, 1)
    start = min(int(TRAIN_TIMESTEPS * denoise + 1e-6) - 1, listed[0])
    if start + 1 < steps:
        raise ScheduleError(f"denoise {denoise} leaves {start + 1} timesteps, too few for {steps} steps; use a higher denoise.")
    return _divide_gaps(_leave_out([start, *(t for t in listed if t < start)], steps), steps)


def cut_timesteps(steps: int, num_segments: int, denoise: float, *, start_timestep: int = LAST_TIMESTEP) -> list[int]:
    """Returns the timesteps of an image-to-image pass: the nearest grid to hyper_sd_timesteps that exists at any strength.

    Where the steps cannot visit every segment that is left below the strength, the trailing grid of so many steps is taken.

    Args:
        steps: model evaluations, 1 or more.
        num_segments: segments the model was distilled on, also more than steps.
        denoise: the strength, in [0, 1]. So low a strength that fewer timesteps than steps would be left is raised.
        start_timestep: the highest timestep, as hyper_sd_timesteps takes it.
    Raises: ScheduleError when there are more steps than timesteps up to start_timestep.
    """
    denoise = min(max(denoise, (steps + 0.5) / TRAIN_TIMESTEPS), (start_timestep + 1) / TRAIN_TIMESTEPS)
    try:
        grid = hyper_sd_timesteps(max(steps, num_segments), num_segments, denoise)
    except ScheduleError:  # so low a strength that the timesteps below it are fewer than the segments
        return hyper_sd_timesteps(steps, 1, denoise)
    surplus = len(grid) - steps
    between = [t for t in grid[1:] if t not in segment_boundaries(num_segments)]
    if surplus > len(between):  # the steps cannot visit every segment that is left
        return hyper_sd_timesteps(steps, steps, denoise)
    dropped = set(between[len(between) - surplus :])
    return [t for t in grid if t not in dropped]


def sigmas_at(schedule: NoiseSchedule, timesteps: Sequence[float], end_on_zero: bool = True) -> torch.Tensor:
    """Returns the sigmas of timesteps, and the end, float32 [steps + 1] on the CPU.

    Args:
        schedule: the model's noise levels.
        timesteps: decreasing, each in 0..999.
        end_on_zero: whether to end on sigma 0, as both hosts do. Otherwise the end is alpha_bar[0], sigma 0.029, as in
            diffusers, where the timesteps leave room for it.
    """
    end = 0.0 if end_on_zero or timesteps[-1] <= 0 else schedule.sigma(0)
    return torch.tensor([*map(schedule.sigma, timesteps), end], dtype=torch.float32)


def hyper_sd_sigmas(
    schedule: NoiseSchedule,
    steps: int,
    num_segments: int = 1,
    denoise: float = 1.0,
    end_on_zero: bool = True,
    *,
    start_timestep: int = LAST_TIMESTEP,
) -> torch.Tensor:
    """Returns the sigmas of hyper_sd_timesteps and the end, float32 [steps + 1], strictly decreasing.

    Args:
        schedule: the model's noise levels.
        steps: as hyper_sd_timesteps takes it.
        num_segments: as hyper_sd_timesteps takes it.
        denoise: as hyper_sd_timesteps takes it.
        end_on_zero: as sigmas_at takes it.
        start_timestep: as hyper_sd_timesteps takes it.
    Raises: ScheduleError as hyper_sd_timesteps and distinct_sigmas.
    """
    timesteps = hyper_sd_timesteps(steps, num_segments, denoise, start_timestep=start_timestep)
    return distinct_sigmas(schedule, timesteps, end_on_zero)


def distinct_sigmas(schedule: NoiseSchedule, timesteps: Sequence[int], end_on_zero: bool = True) -> torch.Tensor:
    """Returns the sigmas of a grid and the end, float32 [steps + 1], strictly decreasing.

    Args:
        schedule: the model's noise levels.
        timesteps: as sigmas_at takes them.
        end_on_zero: as sigmas_at takes it.
    Raises: ScheduleError when timestep 0 is on the grid and not to be the end as well, or when the model's table is too coarse
        for so many steps.
    """
    steps = len(timesteps)
    if not end_on_zero and timesteps[-1] == 0:
        raise ScheduleError(f"{steps} steps already visit timestep 0 and cannot end on it; end on sigma 0 instead.")
    sigmas = sigmas_at(schedule, timesteps, end_on_zero)
    if not bool((sigmas[1:] < sigmas[:-1]).all()):
        raise ScheduleError(
            f"This model's noise schedule has {len(schedule.table)} levels, too few for {steps} distinct steps from timestep "
            f"{timesteps[0]} on; use fewer steps."
        )
    return sigmas


def sliceable_sigmas(schedule: NoiseSchedule, steps: int) -> torch.Tensor:
    """Returns the sigmas of TCD's grid, float32 [steps + 1], for a host that takes the last of them at a denoise below 1.

    Such a host asks for steps / denoise, which may be more than there are timesteps; then the timesteps are evenly spaced.

    Args:
        schedule: the model's noise levels. The lowest is repeated where the table is too coarse for the last steps.
        steps: any number; 0 gives the end alone.
    """
    if steps < 1:
        return torch.zeros(1)
    whole = steps <= TRAIN_TIMESTEPS
    timesteps = hyper_sd_timesteps(steps) if whole else [LAST_TIMESTEP * (1 - i / steps) for i in range(steps)]
    return sigmas_at(schedule, timesteps)
