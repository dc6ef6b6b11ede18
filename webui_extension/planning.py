"""From the panel's settings to a plan: which LoRA, steps and sampler; what the user wrote into the prompt goes first."""

from dataclasses import replace
from typing import Any

from ..errors import ScheduleError, UnsupportedModelError
from ..models import lora_plan, sampling_plan
from ..models.entry import OTHER
from ..models.families import FAMILIES
from ..models.file_plan import plan_for_file
from ..models.inside import Inside, few_steps_inside, plan_inside
from ..models.recipe import Recipe
from ..models.sampling_plan import LoraPlan
from ..samplers.timesteps import LAST_TIMESTEP, ONE_STEP_START
from . import host, host_models, one_step
from .chosen_model import Model
from .prompt_loras import Written
from .sampler import NAME as SAMPLER
from .schedule import LABEL, Run
from .settings_table import VARIANTS, Settings, recipes

OURS = "hyper_sd_tcd"  # the sampler's name in plans
FLOW_SAMPLER, FLOW_SCHEDULE = "Euler", "Simple"  # the host's plain ones, which walk a flow model's own table


def choose(settings: Settings, model: Model, steps: int, written: Written | None = None) -> LoraPlan:
    """Returns the plan for an image.

    Args:
        settings: the panel's.
        model: that will make the image.
        steps: model evaluations.
        written: the LoRA of the prompt that is kept, as kept_of() tells it.
    Raises: ScheduleError or UnsupportedModelError, each saying what there is instead.
    """
    return sampling_plan.starting_at(_by_file(settings, model, steps, written), settings.start_timestep)


def _by_file(settings: Settings, model: Model, steps: int, written: Written | None) -> LoraPlan:
    """Returns the plan with the start that the file or the checkpoint was made for."""
    if model.family is None:
        titles = ", ".join(family.title for family in FAMILIES.values())
        raise UnsupportedModelError(
            f"There is no Hyper-SD LoRA for {model.name}, only for {titles}. With a few-step LoRA of your own in the prompt, "
            "switch the Hyper-SD panel off and choose the sampler Hyper-SD TCD yourself."
        )
    recipe = recipe_of(settings)
    found_one_step = settings.variant == "auto" and not written and one_step.start_timestep(model.path)
    if settings.variant == "one-step" or found_one_step:
        if recipe:
            raise UnsupportedModelError(
                f"The one-step checkpoint is sampled in its own way, not by {recipe.method}; leave Method to the file. Where "
                "the method is in the checkpoint, choose the variant merged checkpoint."
            )
        return _one_step(model, 1 if settings.recommended else steps)
    if written is None or settings.variant == "merged":
        plan = _without_file(settings, model, steps, recipe)
    else:
        plan = plan_for_file(model.family, steps, settings.variant, written.known, recipe)
    return replace(plan, reason=f"{written.known.file} of the prompt is kept. {plan.reason}") if written else plan


def recipe_of(settings: Settings) -> Recipe | None:
    """Returns the recipe of the method that the person chose, None to follow the file."""
    return recipes().get(settings.method)


def inside_of(model: Model) -> Inside | None:
    """Returns the few steps that a checkpoint has inside, None where nothing tells of any."""
    known = model.family and model.path
    return few_steps_inside(model.path, model.family, host_models.DOWNLOADS.catalog()[0]) if known else None


def _without_file(settings: Settings, model: Model, steps: int, recipe: Recipe | None) -> LoraPlan:
    """Returns the plan where no LoRA of the prompt decides it: the checkpoint's own, or that of a released file."""
    variant = settings.variant
    if recipe and variant not in ("auto", "merged", OTHER):
        raise UnsupportedModelError(
            f"The method {recipe.method} and the variant {VARIANTS[variant]} are of different LoRAs; choose the variant auto, "
            "or leave Method to the file."
        )
    if recipe and variant != "merged":
        raise UnsupportedModelError(
            f"{recipe.method} needs its LoRA in the prompt; where it is in the checkpoint, choose the variant "
            "merged checkpoint."
        )
    if variant == OTHER:
        raise UnsupportedModelError(
            f"The variant {VARIANTS[OTHER]} is for a LoRA that stands in the prompt, which has none of them; write it there, "
            "or choose another variant."
        )
    found = inside_of(model) if variant in ("auto", "merged") and not recipe else None
    return plan_inside(model.family, steps, found) if found else lora_plan.plan(model.family, steps, variant, recipe)


def _one_step(model: Model, steps: int) -> LoraPlan:
    if model.family != "sdxl":
        raise UnsupportedModelError(f"The one-step checkpoint is an SDXL model, the loaded one is {model.name}.")
    if steps != 1:
        raise ScheduleError(f"The one-step checkpoint takes 1 step, got {steps}; use another checkpoint for more.")
    start = one_step.start_timestep(model.path) or ONE_STEP_START
    return replace(
        lora_plan.plan("sdxl", 1, "merged"),
        variant="one-step",
        eta=0.0,
        cfg=1.0,
        start_timestep=start,
        reason=f"The one-step checkpoint starts at timestep {start} and takes no LoRA.",
        source="released recipe",
    )


def run_for(settings: Settings, plan: LoraPlan | None, default_eta: float) -> Run:
    """Returns how the sampler goes.

    Args:
        settings: the panel's, whose sliders count before the plan.
        plan: None where the panel is off.
        default_eta: of an image without a plan.
    """
    chosen = settings.start_timestep
    eta, segments, start = (plan.eta, plan.num_segments, plan.start_timestep) if plan else (default_eta, 1, LAST_TIMESTEP)
    return Run(
        eta=eta if settings.auto_eta else settings.eta,
        num_segments=settings.segments or segments,
        start_timestep=chosen or start,
        is_start_chosen=chosen > 0,
        timesteps=tuple(plan.timesteps()) if plan and plan.listed else (),
        to_clean=bool(plan and plan.to_clean),
        timestep_shift=plan.timestep_shift if plan else 1.0,
        recipe=plan.recipe if plan else None,
        made_for=plan.made_for if plan else 0,
        steps=plan.steps if plan else 0,
    )


def apply(p: Any, plan: LoraPlan) -> None:
    """Sets steps, sampler, schedule type and CFG of the host's processing object."""
    ours = plan.sampler == OURS
    p.steps, p.sampler_name = plan.steps, SAMPLER if ours else FLOW_SAMPLER
    p.scheduler = LABEL if ours else FLOW_SCHEDULE
    host.set_guidance(p, plan.cfg, plan.guidance)


def describe(plan: LoraPlan, run: Run, strength: float) -> str:
    """Returns the plan in a line, with what the person changed in it and the sampler as this host calls it."""
    sampler = SAMPLER if plan.sampler == OURS else FLOW_SAMPLER
    return str(replace(plan, sampler=sampler, strength=strength, eta=run.eta, num_segments=run.num_segments))
