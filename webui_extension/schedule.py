"""The noise levels of a pass: whole, cut for img2img and hires fix, and as a schedule type for any sampler."""

from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ScheduleError
from ..samplers.schedule import TRAIN_TIMESTEPS, NoiseSchedule
from ..samplers.timesteps import LAST_TIMESTEP, hyper_sd_timesteps, segment_boundaries
from . import host

LABEL = "Hyper-SD"


@dataclass(frozen=True)
class Run:
    """How the sampler goes, kept on the host's processing object for both passes.

    Args: eta in [0, 1]; num_segments: of the LoRA; start_timestep: the grid's first, 800 for the one-step UNet.
    """

    eta: float = 0.3
    num_segments: int = 1
    start_timestep: int = LAST_TIMESTEP


def whole_timesteps(steps: int, run: Run) -> list[int]:
    """Returns the grid from noise, strictly decreasing from the run's start_timestep.

    Raises: ScheduleError when the steps cannot visit every segment.
    """
    if run.start_timestep >= LAST_TIMESTEP:
        return hyper_sd_timesteps(steps, run.num_segments)
    below = hyper_sd_timesteps(steps, run.num_segments, (run.start_timestep + 1) / TRAIN_TIMESTEPS)[1:]
    return [run.start_timestep, *below]


def cut_timesteps(steps: int, run: Run, denoise: float) -> list[int]:
    """Returns the grid from a noised image, cut anew below its start; there is one for every strength and step count.

    Args: steps: model evaluations that are left at this strength; denoise: the strength in [0, 1].
    """
    denoise = min(max(denoise, (steps + 0.5) / TRAIN_TIMESTEPS), (run.start_timestep + 1) / TRAIN_TIMESTEPS)
    try:
        grid = hyper_sd_timesteps(max(steps, run.num_segments), run.num_segments, denoise)
    except ScheduleError:  # so low a strength that the timesteps below it are fewer than the segments
        return hyper_sd_timesteps(steps, 1, denoise)
    surplus = len(grid) - steps
    between = [t for t in grid[1:] if t not in segment_boundaries(run.num_segments)]
    if surplus > len(between):  # the steps cannot visit every segment that is left: trailing, as for so many segments
        return hyper_sd_timesteps(steps, steps, denoise)
    dropped = set(between[len(between) - surplus :])
    return [t for t in grid if t not in dropped]


def sigmas_at(schedule: NoiseSchedule, timesteps: list[float], end_on_zero: bool = True) -> torch.Tensor:
    """Returns the sigmas of the timesteps, and the end, float32 [steps + 1] on the CPU.

    Args: end_on_zero: False ends on alpha_bar[0], as diffusers does, where the grid leaves room for it.
    """
    end = 0.0 if end_on_zero or timesteps[-1] <= 0 else schedule.sigma(0)
    return torch.tensor([*map(schedule.sigma, timesteps), end], dtype=torch.float32)


def schedule_function(n: int, sigma_min: float, sigma_max: float, inner_model: Any, device: Any) -> torch.Tensor:
    """The schedule type, in the signature that A, F and R give theirs: TCD's grid, for any sampler and n steps.

    The hosts ask for many more steps than they take where they slice the result (img2img, hires fix).
    """
    schedule = NoiseSchedule.from_sigmas(inner_model.sigmas)
    if n < 1:
        return torch.zeros(1, device=device)
    timesteps = hyper_sd_timesteps(n) if n <= TRAIN_TIMESTEPS else [LAST_TIMESTEP * (1 - i / n) for i in range(n)]
    return sigmas_at(schedule, timesteps).to(device)


def register() -> None:
    """Adds the schedule type, in place of one that an earlier load added."""
    types = host.schedule_types()
    if types is None:
        return
    # The label must not be the end of a sampler's name: the hosts would cut it off and take another sampler.
    made = types.Scheduler("hyper_sd", LABEL, schedule_function, need_inner_model=True)
    types.schedulers[:] = [*(known for known in types.schedulers if known.name != made.name), made]
    types.schedulers_map.update({made.name: made, made.label: made})
