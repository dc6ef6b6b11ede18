"""Which few-step method a checkpoint has inside: by the note of a bake made here, or guessed from its name."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from ..errors import ScheduleError, UnsupportedModelError
from ..samplers.timesteps import LAST_TIMESTEP
from . import lora_plan
from .catalog import Catalog, load_catalog
from .entry import HYPER_SD, OTHER
from .families import FAMILIES
from .file_plan import plan_for_file
from .header import read_header
from .one_step import STARTS_AT, start_of
from .recipe_plan import plan_by_recipe
from .recognition import Recognition, named_recipes, says_hyper_sd, steps_in
from .sampling_plan import VARIANTS, LoraPlan

FEW_STEP = "hyper_sd.few_step"  # in the metadata of a checkpoint: what few-step LoRA was baked into it, as few_step_note() says
FROM_UNET = "hyper_sd.unet"  # there, of a checkpoint that was built from a UNet: that file's name
MOST_SEGMENTS = 99  # as many as the training writes


@dataclass(frozen=True)
class Inside:
    """What few steps a checkpoint has inside.

    Args:
        checkpoint: its file's name, without folders.
        known: what is inside; its `file` is the LoRA that was baked in, else the file whose name tells: the checkpoint, or the
            UNet that it was built from.
        strength: at which the LoRA was baked in, None where none was baked here.
        others: methods that the name tells as well.
    """

    checkpoint: str
    known: Recognition
    strength: float | None = None
    others: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """What people call it, with what else the name tells."""
        return " or ".join((self.known.recipe.method if self.known.recipe else HYPER_SD, *self.others))

    def __str__(self) -> str:
        if self.strength is not None:
            return f"{self.checkpoint} has {self.known.file} at strength {self.strength:g} inside by its metadata"
        name = "its name" if self.known.file == self.checkpoint else f"the name of its UNet, {self.known.file},"
        how = "by its metadata" if self.known.is_certain else f"by {name} alone"
        return f"{self.checkpoint} has {self.method} inside {how}"


def few_step_note(known: Recognition, strength: float) -> dict[str, str]:
    """Returns the note for the metadata of a checkpoint that a LoRA is baked into, {} where it is not known for few steps.

    Args:
        known: what the LoRA is.
        strength: in the UNet. Below 0 the LoRA is taken away, which makes no checkpoint of few steps.
    """
    if known.variant is None or strength <= 0:
        return {}
    told = {
        "file": known.file,
        "strength": strength,
        "evidence": known.evidence,
        "variant": known.variant,
        "steps": known.steps,
        "entry": known.entry and known.entry.id,
        "recipe": known.recipe and known.recipe.name,
        "start_timestep": known.start_timestep,
    }
    return {FEW_STEP: json.dumps({name: value for name, value in told.items() if value is not None})}


def few_steps_inside(path: Path, family: str, catalog: Catalog | None = None) -> Inside | None:
    """Returns what few steps a checkpoint has inside, None where nothing tells that it has any.

    Args:
        path: of the checkpoint. One that cannot be read, such as a pickled one, is told by its name alone.
        family: of the model, a key of FAMILIES; flow models have no such checkpoints.
        catalog: with a person's own recipes, the pack's own by default.
    """
    if family not in FAMILIES or FAMILIES[family].is_flow:
        return None
    catalog = catalog or load_catalog()
    metadata = _metadata(path)
    if noted := _by_note(path.name, metadata.get(FEW_STEP), catalog):
        return noted
    if family == "sdxl" and (start := start_of(path.name, metadata)):
        evidence = "metadata" if STARTS_AT in metadata else "name"
        return Inside(path.name, Recognition(path.name, evidence, "n-step", 1, start_timestep=start))
    for name in filter(None, (path.name, metadata.get(FROM_UNET))):
        if told := _by_name(name, family, catalog):
            first, *others = told
            return Inside(path.name, first, others=tuple(known.recipe.method for known in others))
    return None


def _by_name(name: str, family: str, catalog: Catalog) -> list[Recognition]:
    """Returns what a checkpoint's name tells, Hyper-SD first, then other methods in the name's order."""
    recipes = [recipe for recipe in named_recipes(name, catalog, "checkpoint_names") if family in recipe.families]
    ours = [Recognition(name, "name", "unified", 1)] if says_hyper_sd(name) else []
    return ours + [Recognition(name, "name", OTHER, steps_in(name, recipe), recipe=recipe) for recipe in recipes]


def plan_inside(family: str, steps: int, inside: Inside) -> LoraPlan:
    """Returns how to sample a checkpoint that has few steps inside, without a LoRA.

    Args:
        family: of the model, "sd15" or "sdxl".
        steps: model evaluations, 1 to 16.
        inside: what it has.
    Raises: ScheduleError for a step count, saying what it rests on; UnsupportedModelError for a LoRA that was baked in by a
        recipe that is not known here, such as a person's own of another computer.
    """
    known = inside.known
    told = f"{inside}, so no LoRA is added."
    # Of a LoRA that was baked in, the LoRA's own plan says what to do where its name lies.
    doubt = "" if known.is_certain or inside.strength is not None else " If not, choose a variant."
    if known.variant == OTHER and known.recipe is None:
        raise UnsupportedModelError(
            f"{inside}, and the method of that LoRA is in no catalogue here. Choose the variant merged checkpoint and its "
            "method, or bring the recipe into your own catalogue."
        )
    try:
        if inside.strength is not None or known.start_timestep is not None:
            found = plan_for_file(family, steps, "auto", known)
        elif known.recipe:
            found = plan_by_recipe(known.recipe, family, steps, made_for=known.steps, is_merged=True)
        else:
            found = lora_plan.plan(family, steps, "merged")
    except ScheduleError as error:
        raise ScheduleError(f"{told}{doubt} {error}") from error
    source = found.source if known.is_certain else "a guess"
    reason = f"{told}{doubt} {found.reason}"
    return replace(found, variant="merged", file=None, entry_id=None, strength=0.0, reason=reason, source=source)


def _metadata(path: Path) -> Mapping[str, str]:
    try:
        status = path.stat()
        return _read(path, status.st_mtime_ns, status.st_size)
    except (OSError, UnsupportedModelError):
        return {}


@lru_cache(maxsize=64)
def _read(path: Path, changed: int, size: int) -> Mapping[str, str]:
    return read_header(path).get("__metadata__", {})


def _by_note(checkpoint: str, note: str | None, catalog: Catalog) -> Inside | None:
    """Returns what the note says, None without one and for one that this catalogue does not understand."""
    try:
        told = json.loads(note or "")
        variant, steps, start, strength = told["variant"], told["steps"], told.get("start_timestep"), told["strength"]
        entry = next((known for known in catalog if known.id == told.get("entry") and known.kind == variant), None)
        recipe = next((known for known in catalog.recipes if known.name == told.get("recipe")), None)
        whole = type(steps) is int and type(start) in (int, type(None)) and isinstance(strength, int | float)
        usual = 0 <= steps <= MOST_SEGMENTS and (start is None or 0 < start <= LAST_TIMESTEP) and 0 < strength < math.inf
        if not (whole and usual and isinstance(told["file"], str) and variant in VARIANTS[1:]):
            return None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return None
    if recipe and variant != OTHER:
        return None
    evidence = told["evidence"] if told.get("evidence") in ("name", "title") else "metadata"
    known = Recognition(told["file"][:150], evidence, variant, steps, entry, start, recipe)
    return Inside(checkpoint, known, float(strength))
