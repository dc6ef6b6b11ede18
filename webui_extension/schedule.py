"""The schedule type "Hyper-SD" for any sampler, and what a pass of this project's own sampler is told."""

from dataclasses import dataclass
from typing import Any

import torch

from ..models.recipe import Recipe
from ..models.recipe_plan import trailing_of, untried_pass
from ..samplers.schedule import TRAIN_TIMESTEPS, NoiseSchedule
from ..samplers.timesteps import LAST_TIMESTEP, cut_timesteps, hyper_sd_timesteps, listed_timesteps, sliceable_sigmas
from . import host

NAME, LABEL = "hyper_sd", "Hyper-SD"


@dataclass(frozen=True)
class Run:
    """How the sampler goes, kept on the host's processing object for both passes.

    Args:
        eta: how much of the noise each step draws anew, 0 (deterministic) to 1.
        num_segments: the segments that the LoRA was distilled on.
        start_timestep: the grid's first timestep, 0..999. It is 800 for the one-step UNet.
        is_start_chosen: whether the person chose it, which the infotext then says.
        timesteps: a method's own, for a pass of so many steps; empty where the grid follows from the segments.
        to_clean: as samplers.tcd.plan_steps takes it.
        timestep_shift: as samplers.tcd.plan_steps takes it.
        recipe: of the method, which has timesteps for passes of other steps too; None for Hyper-SD.
        made_for: the exact number of steps that the method's file was made for, 0 where there is none.
        steps: those of the plan, whose reason says what there is to say of them; 0 without a plan.
    """

    eta: float = 0.3
    num_segments: int = 1
    start_timestep: int = LAST_TIMESTEP
    is_start_chosen: bool = False
    timesteps: tuple[int, ...] = ()
    to_clean: bool = False
    timestep_shift: float = 1.0
    recipe: Recipe | None = None
    made_for: int = 0
    steps: int = 0

    @property
    def rule(self) -> dict[str, Any]:
        """What samplers.tcd takes of it."""
        shared = {"eta": self.eta, "num_segments": self.num_segments}
        return shared | {"to_clean": self.to_clean, "timestep_shift": self.timestep_shift}


def timesteps_of(run: Run, steps: int, strength: float | None = None) -> tuple[list[int], str]:
    """Returns the timesteps of a pass, and what there is to say of them, "" for nothing.

    A method's own list counts: that for so many steps, else what lies below the strength of the plan's, which has more. More
    steps than a list was published for take the method's usual grid.

    Args:
        run: of the image.
        steps: of the pass, also others than the plan's.
        strength: the denoising strength in [0, 1] of a pass that starts from an image, None for a new image.
    Raises: ScheduleError when there are more steps than timesteps, or than a new image's segments.
    """
    if not run.timesteps:
        return _by_segments(run, steps, strength), ""
    strength = 1.0 if strength is None else strength
    part = min(max(strength, (steps + 0.5) / TRAIN_TIMESTEPS), (run.start_timestep + 1) / TRAIN_TIMESTEPS)
    recipe, is_plans = run.recipe, len(run.timesteps) == steps
    published = () if is_plans or recipe is None else recipe.list_of(steps)
    if published or len(run.timesteps) >= steps:
        return listed_timesteps(published or run.timesteps, part, steps), ""
    usual = trailing_of(recipe, steps) if recipe else ()
    said = f"has no timesteps of its own for a pass of {steps} steps; those of its"
    said = f"{recipe.method} {said} {recipe.grid} grid are taken." if recipe and recipe.lists else ""
    if usual:
        return listed_timesteps(usual, part), said
    return _by_segments(run, steps, strength), said


def untried_in(run: Run, steps: int, is_hires: bool, strength: float | None) -> str:
    """Returns what is to be said of a pass of steps that the method was not made for, "" where the plan has said it already.

    Args:
        run: of the image.
        steps: of the pass.
        is_hires: whether it is the hires pass, which has steps of its own.
        strength: as timesteps_of() takes it.
    """
    if run.recipe is None or steps == run.steps:
        return ""
    said, nearest = untried_pass(run.recipe, steps, run.made_for)
    if said and is_hires:
        return f"{said} Set Hires steps to {nearest}."
    if said and strength is not None and steps < nearest <= run.steps:
        return f"{said} A higher denoising strength takes more of the steps."
    return said


def _by_segments(run: Run, steps: int, strength: float | None) -> list[int]:
    if strength is None:
        return hyper_sd_timesteps(steps, run.num_segments, start_timestep=run.start_timestep)
    return cut_timesteps(steps, run.num_segments, strength, start_timestep=run.start_timestep)


def schedule_function(n: int, sigma_min: float, sigma_max: float, inner_model: Any, device: Any) -> torch.Tensor:
    """Returns the sigmas of TCD's grid for any sampler, [n + 1], in the signature that A, F and R give their schedule types.

    Args:
        n: model evaluations. The hosts ask for many more than they take where they slice the result (img2img, hires fix).
        sigma_min: not used, since the model's own noise levels say it.
        sigma_max: not used, as sigma_min.
        inner_model: the k-diffusion denoiser around the model.
        device: where the sigmas are needed.
    """
    return sliceable_sigmas(NoiseSchedule.from_sigmas(inner_model.sigmas), n).to(device)


def register() -> None:
    """Adds the schedule type, and takes away the one that an earlier load added."""
    unregister()
    types = host.schedule_types()
    if types is None:
        return
    # The label must not be the end of a sampler's name: the hosts would cut it off and take another sampler.
    scheduler = types.Scheduler(NAME, LABEL, schedule_function, need_inner_model=True)
    types.schedulers.append(scheduler)
    types.schedulers_map.update({NAME: scheduler, LABEL: scheduler})


def unregister() -> None:
    """Takes the schedule type out of the host's lists."""
    types = host.schedule_types()
    if types is None:
        return
    types.schedulers[:] = [known for known in types.schedulers if known.name != NAME]
    for key in (NAME, LABEL):
        types.schedulers_map.pop(key, None)
