"""How to sample with a LoRA file that a person chose in place of the released one."""

from dataclasses import replace
from pathlib import Path

from ..errors import UnsupportedModelError
from .catalog import load_catalog
from .embedded import EMBEDDED, FAMILY, ONE_STEP, lora_file
from .entry import OTHER, Entry
from .families import FAMILIES, title_of
from .lora_plan import LoraPlan, as_measured, plan, plan_of
from .recipe import Recipe
from .recipe_plan import plan_by_recipe, require_family
from .recognition import Recognition, recognise

_MADE = {
    "embedded": "This LoRA of the demo model was made",
    "metadata": "By its metadata this file was made",
    "name": "By its name alone this file was made",
}
_BY = {"name": "its name", "title": "the title in its metadata"}  # what a guess rests on
_KINDS = {"unified": "a unified LoRA", "n-step": "an n-step LoRA", "cfg": "a LoRA for guidance", OTHER: "another method's"}
_STYLE = (
    "By its metadata this file learnt a style and not few steps: load it beside the Hyper-SD LoRA, not in its place, and leave "
    "the file here to auto."
)


def plan_for_file(family: str, steps: int, variant: str, known: Recognition, recipe: Recipe | None = None) -> LoraPlan:
    """Returns how to sample with a person's own file: by its own recipe where it is known, else by a guess that says so.

    Args:
        family: of the model, a key of FAMILIES.
        steps: model evaluations, 1 to 16.
        variant: one of VARIANTS. Any but "auto" counts before what the file is, and the reason says where the two differ;
            "merged" is a plan without the file.
        known: what the file is.
        recipe: of the method that the person names, which counts before what the file is; None to follow the file.
    Raises: ScheduleError for a step count; UnsupportedModelError for a variant that the family has not, and for a file that is
        known to be of another family.
    """
    if known.entry and known.entry.family != family:
        if known.is_certain:
            title = title_of(family)
            raise UnsupportedModelError(
                f"{known.file} is a LoRA for {title_of(known.entry.family)}, the model is {title}; choose a LoRA for {title}, "
                "or load a model of the LoRA's family."
            )
        known = Recognition(known.file)  # its name cannot be right
    if variant == "merged":
        return plan(family, steps, variant, recipe)
    if recipe and variant not in ("auto", OTHER):
        raise UnsupportedModelError(
            f"The method {recipe.method} and the variant {variant} are of different LoRAs; choose the variant auto, or "
            "leave the method to the file."
        )
    if variant == OTHER or (variant == "auto" and (recipe or known.recipe)):
        return _by_recipe(family, steps, known, recipe)
    chosen = _recipe(family, steps, known) if variant in ("auto", known.variant) else None
    if chosen is None:
        chosen = plan(family, steps, variant)
        if variant == "auto":
            chosen = replace(chosen, reason=_guess_reason(chosen, known), source="a guess")
        else:
            chosen = replace(chosen, reason=_chosen_reason(known), source="your choice")
    return replace(chosen, file=known.file, entry_id=known.entry.id if known.entry else None)


def _by_recipe(family: str, steps: int, known: Recognition, chosen: Recipe | None) -> LoraPlan:
    """Returns the plan for another method's file: by the person's choice, by what the file is, or by its name."""
    recipe = chosen or known.recipe
    if recipe is None:
        raise UnsupportedModelError(_unknown_method(family, known))
    require_family(recipe, family)
    is_own = known.recipe == recipe
    entry = known.entry if is_own else None
    found = plan_by_recipe(recipe, family, steps, entry=entry, made_for=known.steps if is_own else 0)
    if not is_own:
        reason = f"Sampled by the method that you chose. {found.reason}"
        if known.variant:
            reason += f" By {_BY.get(known.evidence, 'its content')} the file is another's; auto takes its own recipe."
        found = replace(found, reason=reason, source="your choice")
    elif not known.is_certain:
        reason = f"By {_BY[known.evidence]} alone this is {found.reason} If it is another's, choose its method."
        found = replace(found, reason=reason, source="a guess")
    elif entry and known.file.lower() != entry.name.lower():
        found = replace(found, reason=f"This is {entry.name}. {found.reason}")
    return replace(found, file=known.file, strength=recipe.strength_at(steps))


def _unknown_method(family: str, known: Recognition) -> str:
    """Returns why a file cannot be sampled as another method's, and what to choose instead."""
    if FAMILIES[family].is_flow:
        title = FAMILIES[family].title
        return f"No recipe of another method is known for {title}; choose the variant auto for {known.file}."
    if known.variant:
        return (
            f"{known.file} is {_KINDS[known.variant]} of Hyper-SD by {_BY.get(known.evidence, 'its content')}; choose the "
            "variant auto, or its method where it is another's."
        )
    return (
        f"{known.file} does not say what it was made for. Choose its method as well, or a variant of Hyper-SD; with auto it is "
        "sampled as a Hyper-SD LoRA for these steps would be."
    )


def plan_for_embedded(steps: int, variant: str = "auto") -> tuple[LoraPlan, Path | None]:
    """Returns how to sample the embedded model with a LoRA of its own, and that file; None for the variant "merged".

    Args:
        steps: model evaluations, 1 to 8.
        variant: one of VARIANTS. At 1 step "auto" and "n-step" are the LoRA for one step.
    Raises: ScheduleError for a step count; UnsupportedModelError for a kind of LoRA that it has not.
    """
    key = ONE_STEP
    if steps != 1 or variant not in ("auto", "n-step"):
        chosen = plan(FAMILY, steps, variant)
        if chosen.file is None:
            return chosen, None
        key = chosen.variant, load_catalog().get(chosen.entry_id).steps
    path = lora_file(*key)
    return plan_for_file(FAMILY, steps, "auto", recognise(path)), path


def _recipe(family: str, steps: int, known: Recognition) -> LoraPlan | None:
    """Returns the file's own recipe, None where none is known for this family."""
    entry = known.entry or _like(family, known)
    if entry is None:
        return None
    if known.is_certain and known.entry:
        recipe = as_measured(plan_of(entry, steps), family)
        is_renamed = known.file.lower() != entry.name.lower()
        return replace(recipe, reason=f"This is {entry.name}. {recipe.reason}") if is_renamed else recipe
    recipe = plan_of(entry, steps, _MADE[known.evidence])
    if known.evidence == "name":
        return replace(recipe, reason=f"{recipe.reason} {_remedy(family)}", source="a guess")
    if known.evidence == "embedded":
        recipe = as_measured(recipe, EMBEDDED)
    return replace(recipe, source="its own training") if recipe.source == "released recipe" else recipe


def _like(family: str, known: Recognition) -> Entry | None:
    """Returns what stands for a file without an entry: the released one of its variant, with its own number of segments."""
    if FAMILIES[family].is_flow or known.variant in (None, OTHER):
        return None  # the released files of those families are not sampled by segments
    entry = next(entry for entry in load_catalog() if (entry.family, entry.kind) == (family, known.variant))
    if known.variant == "n-step":
        entry = replace(entry, steps=known.steps, num_segments=known.steps)
    if known.start_timestep:
        settings = replace(entry.settings, grid="tcd", start_timestep=known.start_timestep)
        entry = replace(entry, settings=settings)
    return entry


def _chosen_reason(known: Recognition) -> str:
    if known.is_style:
        return f"The variant that you chose is kept. {_STYLE}"
    if known.variant is None:
        return "Sampled by the variant that you chose; the file does not say what it was made for."
    if known.entry:
        what = f"{'this is' if known.is_certain else f'by {_BY[known.evidence]} this is'} {known.entry.name}"
    elif known.recipe:
        what = f"by {_BY.get(known.evidence, 'its metadata')} this is {known.recipe.method}"
    else:
        count = "1 to 8 steps" if known.variant == "unified" else f"{known.steps} step{'s' * (known.steps > 1)}"
        what = f"{_MADE[known.evidence][0].lower()}{_MADE[known.evidence][1:]} for {count}"
    return f"The variant that you chose is kept, but {what}; auto takes its own recipe."


def _guess_reason(guess: LoraPlan, known: Recognition) -> str:
    if known.is_style:
        return _STYLE
    if known.is_certain:
        no_recipe = f"with segments, for which there is no recipe on {title_of(guess.family)}"
        return f"{_MADE['metadata']} {no_recipe}. {_remedy(guess.family)}"
    kind = f"from the steps it is taken for {_KINDS[guess.variant]}"
    return f"The file does not say what it was made for; {kind}. {_remedy(guess.family)}"


def _remedy(family: str) -> str:
    if len(FAMILIES[family].variants) > 1:
        return "If it is of another kind, set variant."
    return "If pictures are poor, use the sampler and CFG that its author names."
