"""Which timesteps a distillation step looks at: a pair of the solver's grid and the point both are mapped to."""

from collections.abc import Sequence
from itertools import pairwise

import torch

from ..errors import TrainingError
from ..samplers.schedule import TRAIN_TIMESTEPS
from ..samplers.timesteps import segment_boundary

ENDPOINTS = ("random", "boundary")


def solver_grid(steps: int = 50, name: str = "solver_steps") -> list[int]:
    """Returns the solver's increasing timesteps, 19, 39, .. 999 for 50 steps.

    Args:
        steps: how many.
        name: of the setting that says so.
    Raises: TrainingError when `steps` does not divide 1000.
    """
    if steps < 2 or TRAIN_TIMESTEPS % steps:
        raise TrainingError(f"{name} must divide {TRAIN_TIMESTEPS} and be at least 2, got {steps}; 50 is usual.")
    skip = TRAIN_TIMESTEPS // steps
    return list(range(skip - 1, TRAIN_TIMESTEPS, skip))


def sample_timesteps(
    batch: int,
    num_segments: int,
    solver_timesteps: Sequence[int],
    generator: torch.Generator | None = None,
    endpoint: str = "random",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draws (t_n, t_prev, t_b, t_end), integer tensors [batch] with t_b <= t_end <= t_prev < t_n.

    t_n is a grid point with a lower neighbour t_prev, t_b the lower edge of t_n's segment, and t_end uniform in [t_b, t_prev].
    A pair that straddles an edge (879 -> 859 with k = 8, edge 874) leaves that interval empty: there t_b = t_end = t_prev.

    Source: Hyper-SD, arXiv 2404.13686, Eq. 11 and algorithm 1. "boundary" (t_end = t_b) is the choice of PCM, arXiv 2405.18407;
    "random" with one segment is that of CTM, arXiv 2310.02279.
    Args:
        batch: how many of each to draw.
        num_segments: k, 1 or more.
        solver_timesteps: increasing, at least two; with 0 in front the pair below the first solver step is drawn as well.
        generator: on the CPU; None takes torch's global one.
        endpoint: "random" or "boundary".
    Raises: TrainingError or ScheduleError for arguments outside these.
    """
    if len(solver_timesteps) < 2 or any(a >= b for a, b in pairwise(solver_timesteps)):
        raise TrainingError(f"solver_timesteps must increase and be at least two, got {list(solver_timesteps)}.")
    if endpoint not in ENDPOINTS:
        raise TrainingError(f"endpoint must be one of {ENDPOINTS}, got {endpoint!r}.")
    grid = torch.tensor(solver_timesteps)
    edges = torch.tensor([segment_boundary(int(t), num_segments) for t in grid])
    n = torch.randint(1, len(grid), (batch,), generator=generator)
    t_n, t_prev = grid[n], grid[n - 1]
    t_b = torch.minimum(edges[n], t_prev)
    share = torch.rand(batch, generator=generator, dtype=torch.float64)
    t_end = t_b + (share * (t_prev - t_b + 1)).long() if endpoint == "random" else t_b.clone()
    return t_n, t_prev, t_b, t_end
