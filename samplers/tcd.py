"""The segmented consistency step: TCD's stochastic sampler, its jumps kept inside the segment a model was distilled on."""

import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from tqdm.auto import trange

from ..errors import ScheduleError
from .checks import share
from .noise import noise_ahead
from .schedule import NoiseSchedule, schedule_of
from .shift import question, require_shift
from .timesteps import segment_boundaries, segment_boundary

logger = logging.getLogger("hyper_sd")
ROUNDING = 1e-6  # by which float32 may write pure noise, sigma 1 of a flow model, too high
ROOM = 8  # deviations of noise that must fit into the latents' dtype


@dataclass(frozen=True)
class Step:
    """One step as plain numbers: x becomes keep * (denoised + ratio * (x - denoised)) + noise * z, with z of deviation 1.

    Args:
        next_timestep: where the step ends, in 0..999.
        ratio: the share of x's distance to the model's denoised that stays, in [0, 1]. It is 1 for a step of no length only.
        keep: the share of x that stays when noise is added. It is 1 for diffusion models.
        noise: the standard deviation of the noise that is added, in x's scale.
        ends_clean: whether the step ends on sigma 0, where x is the model's denoised itself.
        leaves: of a step that leaves its segment, where it begins and the segment's lower edge; None for all others.
        asked: the sigma that the model is asked at in place of x's own, None for x's own.
        scale: what x is multiplied by for that question, so that the network sees the same numbers as at its own sigma.
    """

    next_timestep: float
    ratio: float
    keep: float = 1.0
    noise: float = 0.0
    ends_clean: bool = False
    leaves: tuple[float, int] | None = None
    asked: float | None = None
    scale: float = 1.0

    @property
    def has_length(self) -> bool:
        """Whether the noise level changes. Hosts' schedulers repeat levels where more steps are asked for than there are."""
        return self.ratio != 1


def plan_steps(
    schedule: NoiseSchedule,
    sigmas: torch.Tensor,
    eta: float,
    num_segments: int,
    dtype: torch.dtype = torch.float32,
    *,
    to_clean: bool = False,
    timestep_shift: float = 1.0,
) -> list[Step]:
    """Returns every coefficient of a run before it starts, so that the loop never waits for the device.

    From t the model jumps to s = min(max(floor((1 - eta) * t_next), t_b(t)), t_next) and noise is added from s up to t_next.
    The jump x_s = denoised + sigma_s / sigma * (x - denoised) is the same line for diffusion (x0 + sigma eps) and flow
    ((1 - sigma) x0 + sigma eps); the noise then follows sqrt(sigma_next^2 - sigma_s^2), for flow in x / (1 - sigma).

    Source: diffusers TCDScheduler.step; Zheng et al., "Trajectory Consistency Distillation", arXiv 2402.19159 (eta is its
    gamma); segments: Hyper-SD, arXiv 2404.13686, Eq. 11.
    Args:
        schedule: the model's noise levels.
        sigmas: decreasing, [steps + 1]. A level may be repeated.
        eta: 0 (deterministic) to 1 (fully stochastic).
        num_segments: segments the model was distilled on; 1 is plain TCD.
        dtype: of the latents, which must hold noise of the first level.
        to_clean: whether a jump to the lowest timestep lands on the denoised image itself, as LCM's does. TCD's lands on
            alpha_bar[0], sigma 0.029.
        timestep_shift: as samplers.shift.shifted_timestep takes it, 1 for models that are asked at their own timestep.
    Raises: ScheduleError when eta, the shift or the sigmas cannot work.
    """
    eta = share("eta", eta, "use 0 for deterministic sampling")
    if not isinstance(to_clean, bool):
        raise ScheduleError(
            f"to_clean must be True or False, got {to_clean!r:.60}; use True for models distilled for LCM's sampling."
        )
    num_segments = len(segment_boundaries(num_segments))
    points = [(sigma, schedule.timestep(sigma)) for sigma in _levels(schedule, sigmas, dtype)]
    steps = [_plan_step(schedule, high, low, eta, num_segments, to_clean) for high, low in pairwise(points)]
    if require_shift(timestep_shift, schedule.is_flow) == 1:
        return steps
    questions = (question(schedule, sigma, t, timestep_shift) for sigma, t in points[:-1])
    return [replace(step, asked=asked, scale=scale) for step, (asked, scale) in zip(steps, questions, strict=True)]


def _levels(schedule: NoiseSchedule, sigmas: torch.Tensor, dtype: torch.dtype) -> list[float]:
    """Returns the levels of a run as numbers.

    Raises: ScheduleError where they do not decrease, or no picture has such noise.
    """
    levels = [float(sigma) for sigma in sigmas.tolist()]
    falling = all(high >= low >= 0 for high, low in pairwise([*levels, 0.0]))
    if not levels or not falling or not all(map(math.isfinite, levels)):
        raise ScheduleError(
            f"sigmas must be finite and decrease from step to step, got {levels}; use fewer steps or the hyper_sd scheduler."
        )
    if schedule.is_flow and levels[0] > 1 + ROUNDING:
        raise ScheduleError(
            f"The sigmas of a flow model (SD3, FLUX) are at most 1, pure noise, got {levels[0]:g}; use the hyper_sd scheduler, "
            "which knows the model, not a list of numbers for SD1.5 or SDXL."
        )
    if levels[0] > (most := torch.finfo(dtype).max / ROOM):
        raise ScheduleError(
            f"The first sigma is {levels[0]:g}, and latents in {str(dtype).removeprefix('torch.')} hold noise up to {most:g}; "
            "use the hyper_sd scheduler, or run the model in fp32."
        )
    return [min(level, 1.0) for level in levels] if schedule.is_flow else levels


def _tell_foreign_grid(plan: list[Step], num_segments: int) -> None:
    """Says once for a run which steps leave their segment."""
    leaving = [step for step in plan if step.leaves]
    if leaving:
        t, boundary = leaving[0].leaves
        logger.warning(
            "%d of %d steps leave their segments and are taken deterministically, the first from timestep %.0f to %.0f (lower "
            "edge %d of %d segments); the hyper_sd scheduler with the same num_segments avoids this.",
            len(leaving), len(plan), t, leaving[0].next_timestep, boundary, num_segments,
        )  # fmt: skip


def _plan_step(
    schedule: NoiseSchedule,
    now: tuple[float, float],
    then: tuple[float, float],
    eta: float,
    num_segments: int,
    to_clean: bool,
) -> Step:
    (sigma, t), (sigma_next, t_next) = now, then
    if sigma == sigma_next:
        return Step(next_timestep=t_next, ratio=1.0)
    boundary = segment_boundary(math.floor(t), num_segments)
    leaves = (t, boundary) if t_next < boundary else None
    if sigma_next == 0:
        return Step(next_timestep=t_next, ratio=0.0, ends_clean=True, leaves=leaves)
    # eta 0 stays deterministic between the timesteps, where hosts' own schedulers land; 1e-6 guards 0.1 * 30 = 2.9999..
    floor = math.floor((1 - eta) * t_next + 1e-6) if eta > 0 else t_next
    s = min(max(floor, boundary), t_next)
    sigma_s = sigma_next if s == t_next else min(schedule.sigma(s), sigma_next)
    sigma_s = 0.0 if to_clean and s == 0 < t_next else sigma_s
    keep, scale = 1.0, 1.0
    rho_s, rho_next = sigma_s, sigma_next
    if schedule.is_flow:
        keep, scale = (1 - sigma_next) / (1 - sigma_s), 1 - sigma_next
        rho_s, rho_next = sigma_s / (1 - sigma_s), sigma_next / (1 - sigma_next)
    noise = scale * math.sqrt(max(rho_next - rho_s, 0.0)) * math.sqrt(rho_next + rho_s)  # squares could overflow
    return Step(next_timestep=t_next, ratio=sigma_s / sigma, keep=keep, noise=noise, leaves=leaves)


@torch.no_grad()
def sample_tcd(
    model: Callable[..., torch.Tensor],
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    noise_sampler: Callable[..., torch.Tensor] | None = None,
    *,
    eta: float = 0.3,
    num_segments: int = 1,
    schedule: NoiseSchedule | None = None,
    to_clean: bool = False,
    timestep_shift: float = 1.0,
) -> torch.Tensor:
    """Segmented consistency sampling in the k-diffusion protocol; see plan_steps for the rule and its sources.

    A step of no length leaves x as it is and draws no noise. Only the callback hears of it, so that hosts count every step.

    Args:
        model: model(x, sigma [batch], **extra_args) -> denoised, guidance included.
        x: latents [batch, ...] at sigmas[0], in the host's scaling.
        sigmas: decreasing, [steps + 1]. The last may be 0, which ends on the model's denoised, or the sigma of alpha_bar[0].
            A level may be repeated.
        extra_args: passed to the model. Its "seed" also seeds the noise.
        callback: called every step, before the update, with x, i, sigma, sigma_hat, denoised.
        disable: whether to hide the progress bar.
        noise_sampler: noise_sampler(sigma, sigma_next) -> [batch, ...]; by default that of noise_ahead.
        eta: the TCD paper's gamma, 0 (deterministic) to 1 (fully stochastic). It has no effect where a step spans its segment.
        num_segments: segments the model was distilled on. 1 is TCD, as many as steps is DDIM on the trailing grid.
        schedule: the model's noise levels; by default they are read from the model.
        to_clean: as plan_steps takes it: True for models that were distilled for LCM's sampling, with eta 1.
        timestep_shift: as plan_steps takes it.
    Returns: latents [batch, ...] at sigmas[-1].
    Raises: ScheduleError and UnsupportedModelError, both before the model is evaluated.
    """
    extra_args = {} if extra_args is None else extra_args
    rule = {"to_clean": to_clean, "timestep_shift": timestep_shift}
    plan = plan_steps(schedule or schedule_of(model), sigmas, eta, num_segments, x.dtype, **rule)
    _tell_foreign_grid(plan, num_segments)  # here, since a host may ask for the plan before
    skipped = sum(not step.has_length for step in plan)
    if skipped:
        logger.warning(
            "%d of %d steps repeat a noise level and are skipped; fewer steps give the same image.", skipped, len(plan)
        )
    noisy = [step.next_timestep for step in plan if step.noise > 0]
    noise = noise_ahead(x, extra_args.get("seed"), noisy) if noise_sampler is None else nullcontext(noise_sampler)
    with noise as noise_of_step:
        return _take_steps(model, x, sigmas, plan, extra_args, callback, disable, noise_of_step)


def _take_steps(
    model: Callable[..., torch.Tensor],
    x: torch.Tensor,
    sigmas: torch.Tensor,
    plan: list[Step],
    extra_args: dict[str, Any],
    callback: Callable[[dict[str, Any]], None] | None,
    disable: bool | None,
    noise_sampler: Callable[..., torch.Tensor],
) -> torch.Tensor:
    """Takes the planned steps. Nothing in here waits for the device, but for what the model and the callback do themselves."""
    s_in = x.new_ones([x.shape[0]])
    levels, denoised = sigmas.unbind(), None
    for i, step, sigma, sigma_next in zip(trange(len(plan), disable=disable), plan, levels[:-1], levels[1:], strict=True):
        if denoised is None:
            asked = sigma if step.asked is None else step.asked
            denoised = model(x if step.scale == 1 else x * step.scale, asked * s_in, **extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        if not step.has_length:
            continue
        denoised = denoised.to(x.dtype)
        x = denoised if step.ends_clean else torch.lerp(denoised, x, step.ratio)
        if step.noise > 0:
            x = x.mul_(step.keep) if step.keep != 1 else x
            x = x.add_(noise_sampler(sigma, sigma_next), alpha=step.noise)
        denoised = denoised if step.ends_clean else None
    return x
