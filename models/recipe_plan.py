"""How to sample with another method's few-step file, or with a checkpoint that has the method inside, by its recipe."""

from ..errors import UnsupportedModelError
from ..samplers.timesteps import segment_boundaries
from .entry import OTHER, Entry
from .families import title_of
from .recipe import Recipe
from .sampling_plan import LISTED, MAX_STEPS, LoraPlan, require_steps

_OWN = "own code"


def require_family(recipe: Recipe, family: str) -> None:
    """Raises: UnsupportedModelError where a method has no files for a model's family."""
    if family not in recipe.families:
        titles = " and ".join(map(title_of, recipe.families))
        raise UnsupportedModelError(
            f"{recipe.method} is for {titles}, the model is {title_of(family)}; choose another method, or leave it to the file."
        )


def plan_by_recipe(
    recipe: Recipe, family: str, steps: int, *, entry: Entry | None = None, made_for: int = 0, is_merged: bool = False
) -> LoraPlan:
    """Returns how to sample by a recipe.

    Args:
        recipe: of the catalogue.
        family: of the model.
        steps: model evaluations, 1 to 16.
        entry: of the file, None where it is no file of the catalogue.
        made_for: the exact number of steps that the file was made for, 0 where it is not for an exact number, or not known.
        is_merged: whether the method is in the checkpoint, so that no LoRA is added.
    Raises: ScheduleError for a step count.
    """
    require_steps(f"A plan for {recipe.method}", steps, 1, MAX_STEPS, "it is made for few steps")
    listed, segments = recipe.list_of(steps), recipe.segments or min(made_for or steps, steps)
    title = entry.title if entry else f"{recipe.method}{_for(made_for)}"
    doubts = _doubts(recipe, steps)
    untried = _untried(recipe, steps, made_for)
    reason = f"{title}: {recipe.like}-like{_range(recipe)}."
    if doubts:
        reason += f" Not from its authors: {', '.join(f'{name} ({source})' for name, source in doubts.items())}."
    return LoraPlan(
        family=family,
        variant="merged" if is_merged else OTHER,
        steps=steps,
        entry_id=None if is_merged or entry is None else entry.id,
        file=None if is_merged or entry is None else entry.name,
        strength=0.0 if is_merged else recipe.strength_at(steps),
        num_segments=segments,
        eta=recipe.eta,
        cfg=recipe.cfg,
        grid=LISTED if listed else recipe.grid,
        sampler="hyper_sd_tcd",
        guidance=None,
        start_timestep=recipe.start_timestep,
        reason=f"{reason}{untried}",
        source="derived" if untried or "derived" in doubts.values() else "field practice" if doubts else "released recipe",
        listed=listed or trailing_of(recipe, steps),
        to_clean=recipe.to_clean,
        timestep_shift=recipe.timestep_shift,
        recipe=recipe,
        made_for=made_for,
    )


def untried_pass(recipe: Recipe, steps: int, made_for: int) -> tuple[str, int]:
    """Returns a sentence about a pass of steps that a method was not made for, "" for all others, and the nearest that it was.

    Args:
        recipe: of the method.
        steps: of the pass. The plan's own are in its reason.
        made_for: as plan_by_recipe takes it.
    """
    low, high = _step_range(recipe, made_for)
    nearest = max(low, min(steps, high))
    if nearest == steps:
        return "", nearest
    count = f"exactly {low} step{'s' * (low > 1)}" if low == high else _count(low, high)
    return f"{recipe.method} is made for {count}; a pass of {steps} is untried.", nearest


def trailing_of(recipe: Recipe, steps: int) -> tuple[int, ...]:
    """Returns the trailing grid of a recipe with other segments, whose number would give another grid; empty for others."""
    return tuple(segment_boundaries(steps)) if recipe.grid == "trailing" and recipe.segments else ()


def _for(steps: int) -> str:
    return f" for {steps} step{'s' * (steps > 1)}" if steps else ""


def _range(recipe: Recipe) -> str:
    low, high = recipe.cfg_range
    return f", CFG {low:g} to {high:g}" if low < high else ""


def _doubts(recipe: Recipe, steps: int) -> dict[str, str]:
    """Returns the numbers of a plan that the method's authors do not give, and where each comes from."""
    doubts = {name: source for name, source in recipe.sources if source != _OWN}
    if recipe.strengths and steps not in dict(recipe.strengths):
        doubts.pop("strength", None)
    if recipe.list_of(steps):
        doubts.pop("steps", None)
    elif recipe.lists:
        doubts["grid"] = "derived"
    return doubts


def _untried(recipe: Recipe, steps: int, made_for: int) -> str:
    """Returns what is to be said of a number of steps that the file was not made for, empty for all others."""
    low, high = _step_range(recipe, made_for)
    if low <= steps <= high:
        return ""
    return f" It is made for {_count(low, high)}: set steps to {max(low, min(steps, high))}, others are untried."


def _step_range(recipe: Recipe, made_for: int) -> tuple[int, int]:
    """Returns the fewest and the most steps that a method's file is made for."""
    return (made_for, made_for) if made_for and recipe.segments == 0 else recipe.steps


def _count(low: int, high: int) -> str:
    return f"exactly {low}" if low == high else f"{low} to {high} steps"
