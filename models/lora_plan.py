"""Which Hyper-SD LoRA to use for a number of steps, how strongly, and how to sample with it."""

from dataclasses import replace
from functools import lru_cache
from typing import Any

from ..errors import UnsupportedModelError
from .catalog import load_catalog
from .embedded import EMBEDDED
from .entry import OTHER, Entry
from .families import FAMILIES, title_of
from .recipe import Recipe
from .recipe_plan import plan_by_recipe, require_family
from .sampling_plan import MAX_STEPS, LoraPlan, require_steps

AUTHORS = "The authors made this file"
MIN_CFG_STEPS = 3  # field practice with the 8-step LoRA for guidance
FIELD_CFG = 3.5  # field practice below its 8 steps; the authors give 5 to 8 for 8 and 12 steps

# The authors' examples have eta 1 and lower it at more steps, without numbers; TCD's usual value is 0.3. Between them, a line.
UNIFIED_ETA = {1: 1.0, 2: 1.0, 3: 0.9, 4: 0.8, 5: 0.6, 6: 0.5, 7: 0.4, 8: 0.3}

# (model, variant, steps) -> what was measured: strength, eta, num_segments, cfg or start_timestep; and "reason", the evidence.
# The model is a family, or EMBEDDED, whose LoRAs are not the released ones: its numbers say nothing certain about those.
_LOWER = "Measured on this model: nearest to its own 25-step pictures; strength 1 is behind by two standard errors or more."
MEASURED: dict[tuple[str, str, int], dict[str, Any]] = {
    (EMBEDDED, "unified", 1): {
        "strength": 1.0,
        "start_timestep": 800,
        "reason": "Measured on this model: one step from timestep 800 comes nearer to its own 25-step pictures than from 999.",
    },
    **{(EMBEDDED, "unified", steps): {"strength": 0.75, "eta": 1.0, "reason": _LOWER} for steps in (2, 3, 4)},
}


def plan(family: str, steps: int, variant: str = "auto", recipe: Recipe | None = None) -> LoraPlan:
    """Returns the LoRA for a number of steps, with its settings and the reason for them.

    "auto" takes the authors' file for exactly 2, 4 or 8 steps, the unified LoRA for 1, 3, 5, 6, 7, and the LoRA for guidance
    from 9 on. "merged" is for checkpoints that have Hyper-SD inside.

    Args:
        family: a key of FAMILIES.
        steps: model evaluations, 1 to 16.
        variant: one of VARIANTS.
        recipe: of the method that is in a merged checkpoint, None for Hyper-SD.
    Raises: ScheduleError for a step count, UnsupportedModelError for a family or variant that no file exists for.
    """
    if family not in FAMILIES:
        titles = ", ".join(known.title for known in FAMILIES.values())
        raise UnsupportedModelError(f"There is no Hyper-SD LoRA for {title_of(family)}; there are some for {titles}.")
    title, variants = FAMILIES[family].title, FAMILIES[family].variants
    if variant not in ("auto", *variants):
        raise UnsupportedModelError(
            f"There is no {variant!r} Hyper-SD LoRA for {title}; choose auto or {' or '.join(variants)}."
        )
    require_steps(f"A plan for {title}", steps, 1, MAX_STEPS, "Hyper-SD is made for few steps")
    if variant == OTHER:
        raise UnsupportedModelError("No other few-step LoRA stands for a number of steps; choose its file as well.")
    if recipe:
        if variant != "merged":
            raise UnsupportedModelError(f"{recipe.method} needs its own LoRA, or the variant merged, not {variant!r}.")
        require_family(recipe, family)
        return plan_by_recipe(recipe, family, steps, is_merged=True)
    variant = _auto(family, steps) if variant == "auto" else variant
    recommended = _merged(family, steps) if variant == "merged" else plan_of(_file_for(family, steps, variant), steps)
    return as_measured(recommended, family)


def plan_of(entry: Entry, steps: int, made: str = AUTHORS) -> LoraPlan:
    """Returns how to sample with one file, also at other steps than it was made for.

    Args:
        entry: a LoRA of a catalogue, or what stands for a file that none lists.
        steps: model evaluations, 1 to 16.
        made: the beginning of the reason, in place of AUTHORS.
    Raises: ScheduleError for a step count.
    """
    if entry.recipe:
        made_for = 0 if entry.recipe.segments else entry.steps
        return plan_by_recipe(entry.recipe, entry.family, steps, entry=entry, made_for=made_for)
    require_steps(f"A plan for {FAMILIES[entry.family].title}", steps, 1, MAX_STEPS, "Hyper-SD is made for few steps")
    rule = _flow if FAMILIES[entry.family].is_flow else {"unified": _unified, "n-step": _n_step, "cfg": _cfg}[entry.kind]
    return rule(entry, steps, made)


def as_measured(recommended: LoraPlan, model: str) -> LoraPlan:
    """Returns the plan with what was measured for a model in place of what is recommended.

    Args:
        recommended: the plan.
        model: a key of FAMILIES, or EMBEDDED.
    """
    row = MEASURED.get((model, recommended.variant, recommended.steps))
    return replace(recommended, **row, source="measured here") if row else recommended


def _auto(family: str, steps: int) -> str:
    if FAMILIES[family].is_flow:
        return FAMILIES[family].variants[0]
    if steps > 8:
        return "cfg"
    return "n-step" if steps in {entry.steps for entry in _entries(family, "n-step")} else "unified"


@lru_cache(maxsize=16)
def _entries(family: str, kind: str) -> tuple[Entry, ...]:
    """Returns the pack's own files of a kind, fewest steps first."""
    entries = (entry for entry in load_catalog() if (entry.family, entry.kind) == (family, kind))
    return tuple(sorted(entries, key=lambda entry: entry.steps))


def _from(entry: Entry, steps: int, reason: str, source: str = "released recipe", **changes: Any) -> LoraPlan:
    settings = entry.settings
    released = LoraPlan(
        family=entry.family,
        variant=entry.kind,
        steps=steps,
        entry_id=entry.id,
        file=entry.name,
        strength=entry.strength,
        num_segments=entry.num_segments,
        eta=settings.eta,
        cfg=settings.cfg,
        grid=settings.grid,
        sampler=settings.sampler,
        guidance=settings.guidance,
        start_timestep=settings.start_timestep,
        reason=reason,
        source=source,
    )
    return replace(released, **changes)


def _file_for(family: str, steps: int, variant: str) -> Entry:
    """Returns the released file of a variant for a number of steps.

    With more steps than an n-step file's own every segment is still walked from its start, only in shorter jumps, so the file
    of the next fewer steps is used. The file of more steps would jump across its segments, which cost the embedded model
    nothing at 5 to 7 steps, but a lot at 3.
    """
    entries = _entries(family, variant)
    if FAMILIES[family].is_flow:
        return next(entry for entry in entries if entry.steps >= steps)
    if variant == "unified":
        require_steps("The unified LoRA", steps, *entries[0].step_range, "choose the variant cfg for more")
        return entries[0]
    if variant == "n-step":
        require_steps("An n-step LoRA", steps, entries[0].steps, MAX_STEPS, "choose the variant unified for 1")
        return [entry for entry in entries if entry.steps <= steps][-1]
    require_steps("A LoRA for guidance", steps, MIN_CFG_STEPS, MAX_STEPS, "choose the variant unified for fewer")
    low, high = entries
    return low if steps <= low.steps else high


def _unified(entry: Entry, steps: int, made: str) -> LoraPlan:
    low, high = entry.step_range
    reason, source = f"{made} for {low} to {high} steps", "released recipe"
    if not low <= steps <= high:
        reason, source = f"{reason}: set steps to {max(low, min(steps, high))}, others are untried", "derived"
    elif steps > 2:
        reason += "; its eta lies between the authors' 1 for few steps and TCD's usual 0.3, and is not measured"
    return _from(entry, steps, f"{reason}.", source, eta=UNIFIED_ETA.get(steps, UNIFIED_ETA[8]))


def _n_step(entry: Entry, steps: int, made: str) -> LoraPlan:
    if entry.steps == 1:
        return _one_step(entry, steps, made)
    if entry.steps == steps:
        return _from(entry, steps, f"{made} for exactly {steps} steps.")
    reason = f"{made} for {entry.steps} steps"
    if steps > entry.steps:
        reason += f"; its {entry.num_segments} segments are kept, the widest divided."
    else:
        reason += f": set steps to {entry.steps}, since fewer jump across its segments."
    return _from(entry, steps, reason, "derived", num_segments=min(entry.num_segments, steps))


def _one_step(entry: Entry, steps: int, made: str) -> LoraPlan:
    reason = f"{made} for exactly 1 step, from timestep {entry.settings.start_timestep}"
    if steps == 1:
        return _from(entry, steps, f"{reason}.")
    return _from(entry, steps, f"{reason}: set steps to 1, others are untried.", "derived")


def _cfg(entry: Entry, steps: int, made: str) -> LoraPlan:
    if steps == entry.steps:
        cfg = "5 to 8" if entry.settings.cfg == 5 else f"{entry.settings.cfg:g}"
        return _from(entry, steps, f"{made} for {steps} steps at CFG {cfg}.")
    # Artists sample these by DDIM on the trailing grid whatever the steps: one segment a step.
    changes: dict[str, Any] = {"num_segments": steps}
    reason, source = f"{made} for {entry.steps} steps", "derived"
    if entry.steps == 8 and steps < 8:
        reason += f"; artists use it from {MIN_CFG_STEPS} on, at a lower CFG"
        source, changes["cfg"] = "field practice" if steps >= MIN_CFG_STEPS else source, FIELD_CFG
    if (entry.steps, steps) == (12, 14):
        reason, source = f"{reason}; artists find that it wants about 14", "field practice"
    return _from(entry, steps, f"{reason}.", source, **changes)


def _flow(entry: Entry, steps: int, made: str) -> LoraPlan:
    if entry.steps == steps:
        return _from(entry, steps, f"{made} for {steps} steps.")
    rough = "; so few steps may leave the picture rough" if steps <= entry.steps // 2 else ""
    return _from(entry, steps, f"{made} for {entry.steps} steps{rough}.", "derived")


def _merged(family: str, steps: int) -> LoraPlan:
    entry = _entries(family, "unified")[0]  # how the merged LoRA is sampled is the unified LoRA's way
    require_steps("A checkpoint with Hyper-SD inside", steps, *entry.step_range, "choose 4, which is usual")
    reason = "Hyper-SD is in the checkpoint already, so no LoRA is added; 4 steps are usual"
    if family == "sdxl":
        reason += ", at 1024x1024, with this sampler or the host's DPM++ SDE and Karras"
    source = "field practice" if (family, steps) == ("sdxl", 4) else "derived"
    changes: dict[str, Any] = {"variant": "merged", "entry_id": None, "file": None, "strength": 0.0, "cfg": 2.0}
    return _from(entry, steps, f"{reason}.", source, eta=UNIFIED_ETA[steps], **changes)
