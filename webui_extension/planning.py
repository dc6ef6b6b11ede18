"""From the panel's settings to a plan: which LoRA, steps and sampler; what the user wrote into the prompt goes first."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ScheduleError, UnsupportedModelError
from ..models.catalog import Entry, load_catalog
from ..models.families import FAMILIES
from ..models.lora_plan import LoraPlan, plan
from ..samplers.timesteps import LAST_TIMESTEP, ONE_STEP_START
from . import host, one_step
from .chosen_model import Model
from .sampler import NAME as SAMPLER
from .schedule import LABEL, Run
from .settings_table import Settings, variant_key

OURS = "hyper_sd_tcd"  # the sampler's name in plans
FLOW_SAMPLER, FLOW_SCHEDULE = "Euler", "Simple"  # the host's plain ones, which walk a flow model's own table


def lora_entry(file_names: Iterable[str]) -> Entry | None:
    """Returns the first Hyper-SD LoRA of the catalogue among file names, with or without their ending."""
    return next(filter(None, map(load_catalog().lora_named, file_names)), None)


def choose(settings: Settings, model: Model, steps: int, written: Entry | None = None) -> LoraPlan:
    """Returns the plan.

    Args: steps: model evaluations; written: the Hyper-SD LoRA that the user has in the prompt, which is kept.
    Raises: ScheduleError, UnsupportedModelError saying what there is.
    """
    if model.family is None:
        titles = ", ".join(family.title for family in FAMILIES.values())
        raise UnsupportedModelError(
            f"There is no Hyper-SD LoRA for {model.name}; choose one of {titles}, or switch the Hyper-SD panel off."
        )
    variant = variant_key(settings.variant)
    if variant == "one-step" or (variant == "auto" and not written and one_step.start_timestep(model.path)):
        return _one_step(model, 1 if settings.recommended else steps)
    if written is None:
        return plan(model.family, steps, variant)
    made = plan(model.family, steps, written.kind)
    if made.variant == "n-step" and made.grid != "default":
        made = replace(made, num_segments=min(written.num_segments, steps))
    return replace(made, entry_id=written.id, file=written.name, reason="The LoRA of the prompt is kept.")


def _one_step(model: Model, steps: int) -> LoraPlan:
    if model.family != "sdxl":
        raise UnsupportedModelError(f"The one-step checkpoint is an SDXL model, the loaded one is {model.name}.")
    if steps != 1:
        raise ScheduleError(f"The one-step checkpoint takes 1 step, got {steps}; use another checkpoint for more.")
    start = one_step.start_timestep(model.path) or ONE_STEP_START
    return replace(
        plan("sdxl", 1, "merged"),
        variant="one-step",
        eta=0.0,
        cfg=1.0,
        start_timestep=start,
        reason=f"The one-step checkpoint starts at timestep {start} and takes no LoRA.",
        source="released recipe",
    )


def run_for(settings: Settings, made: LoraPlan | None, default_eta: float) -> Run:
    """Returns how the sampler goes; without a plan by the panel's own sliders."""
    eta, segments, start = (made.eta, made.num_segments, made.start_timestep) if made else (default_eta, 1, LAST_TIMESTEP)
    return Run(eta if settings.auto_eta else settings.eta, settings.segments or segments, start)


def apply(p: Any, made: LoraPlan) -> None:
    """Sets steps, sampler, schedule type and CFG of the host's processing object."""
    ours = made.sampler == OURS
    p.steps, p.sampler_name = made.steps, SAMPLER if ours else FLOW_SAMPLER
    p.scheduler = LABEL if ours else FLOW_SCHEDULE
    host.set_guidance(p, made.cfg, made.guidance)


def describe(made: LoraPlan, run: Run, strength: float) -> str:
    """Returns the plan in a line, with what the person changed in it and the sampler as this host calls it."""
    sampler = SAMPLER if made.sampler == OURS else FLOW_SAMPLER
    return str(replace(made, sampler=sampler, strength=strength, eta=run.eta, num_segments=run.num_segments))


def file_names(tags: Sequence[str], listed: dict[str, Any]) -> list[str]:
    """Returns the files that LoRA tags mean, by the host's own list of names and aliases; unknown ones as they are."""
    return [Path(listed[tag].filename).name if tag in listed else tag for tag in tags]
