"""How another method's few-step files are sampled, as data: one recipe of the catalogue."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..errors import CatalogError
from .families import FAMILIES
from .fields import choice, number, text

LAST_TIMESTEP = 999  # as samplers.timesteps has it, which needs torch; the list of downloads is read without it
BY_FILE = "by-file"  # in place of a recipe's name: the one that the file itself tells
PER_STEP = "steps"  # in place of a number of segments: as many as there are steps
# Where a number comes from. "own code": seen in the method's own code or on its model card. "field practice": what artists
# found. "derived": it follows from how the method was trained or sampled; nobody has published it for this sampler.
NUMBER_SOURCES = ("own code", "field practice", "derived")
_GRIDS = ("tcd", "trailing")
_SOURCED = ("eta", "grid", "cfg", "strength", "steps", "start_timestep", "timestep_shift")
_COUNT = re.compile(r"[1-9]\d{0,2}", re.ASCII)
_WORD = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+){0,5}")
_TOKEN = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


@dataclass(frozen=True)
class Recipe:
    """One method's way of sampling, by this pack's sampler.

    Args:
        name: by which entries of a catalogue refer to it.
        method: its name for people.
        like: which known sampler it resembles, such as "Euler".
        families: keys of FAMILIES that there are files for.
        eta: share of fresh noise, from 0 to 1.
        segments: how many there are, 0 for as many as steps.
        to_clean: as samplers.tcd.plan_steps takes it.
        grid: "tcd" or "trailing", where no list is given for the number of steps.
        lists: (steps, timesteps) of each list that the method names.
        start_timestep: the grid's first, 1 to 999.
        timestep_shift: as samplers.shift.shifted_timestep takes it.
        cfg: guidance that is set, 1 is off.
        cfg_range: the lowest and the highest guidance that it is used with.
        strength: of a LoRA.
        strengths: (steps, strength) where another one is usual.
        steps: the fewest and the most it is used at; a file for an exact number has its own.
        sources: (number, one of NUMBER_SOURCES) for each number above.
        lora_names: words that tell it in a LoRA's file name, each a list of tokens with "-" between.
        checkpoint_names: the same for a checkpoint that has it inside.
    """

    name: str
    method: str
    like: str
    families: tuple[str, ...]
    eta: float
    segments: int
    to_clean: bool
    grid: str
    lists: tuple[tuple[int, tuple[int, ...]], ...]
    start_timestep: int
    timestep_shift: float
    cfg: float
    cfg_range: tuple[float, float]
    strength: float
    strengths: tuple[tuple[int, float], ...]
    steps: tuple[int, int]
    sources: tuple[tuple[str, str], ...]
    lora_names: tuple[str, ...] = ()
    checkpoint_names: tuple[str, ...] = ()

    def strength_at(self, steps: int) -> float:
        """Returns the strength that is usual at a number of steps."""
        return dict(self.strengths).get(steps, self.strength)

    def list_of(self, steps: int) -> tuple[int, ...]:
        """Returns the method's own timesteps for a number of steps, empty where it names none."""
        return dict(self.lists).get(steps, ())


def tokens_of(name: str) -> str:
    """Returns a file's name as tokens with "-" around each: "sdxl_lightning_4step_lora" gives "-sdxl-lightning-4-step-lora-".

    Letters and digits are parted, and so are words that begin with a capital letter.
    """
    return f"-{'-'.join(_TOKEN.findall(name.replace('LoRA', 'Lora'))).lower()}-"


def word_in(name: str, words: tuple[str, ...]) -> str:
    """Returns the longest of the words that stand in a file's name, token by token, with "-" around it; empty for none.

    Args:
        name: without folders.
        words: of a recipe's lora_names or checkpoint_names.
    """
    tokens = tokens_of(name)
    return max((f"-{word}-" for word in words if f"-{word}-" in tokens), key=len, default="")


def labels_of(recipes: Iterable[Recipe], taken: str) -> dict[str, Recipe]:
    """Returns recipes by the names that people choose; of two for one method the later is told apart.

    Args:
        recipes: the pack's and a person's own.
        taken: what is on the list already and is no method.
    """
    labels, recipes = dict[str, Recipe](), tuple(recipes)
    for recipe in recipes:
        # A label that is another recipe's name would be read as that recipe, in a request and in an infotext.
        names = [other.name for other in recipes if other is not recipe]
        is_taken = recipe.method in (taken, BY_FILE, *names, *labels)
        labels[f"{recipe.method} ({recipe.name})" if is_taken else recipe.method] = recipe
    return labels


def read_recipe(name: str, raw: Any) -> Recipe:
    """Returns one recipe of a catalogue file.

    Args:
        name: of the recipe.
        raw: its JSON object.
    Raises: CatalogError saying which field is wrong, what was given and what is allowed.
    """
    allowed = {field.name for field in fields(Recipe)} - {"name"} | {"timesteps"}
    if not isinstance(raw, Mapping) or set(raw) - allowed | {"lists"} & set(raw):
        raise CatalogError(f"a recipe must be an object of {', '.join(sorted(allowed - {'lists'}))}, got {raw!r}")
    segments = raw.get("segments", 1)
    cfg = float(number(raw, "cfg", (int, float), 1, 100, 1.0))
    return Recipe(
        name=name,
        method=text(raw, "method", re.compile(r"[^\n]{1,80}"), '"SDXL-Lightning"'),
        like=text(raw, "like", re.compile(r"[^\n]{1,40}"), '"Euler"'),
        families=_families(raw),
        eta=float(number(raw, "eta", (int, float), 0, 1, None) or 0),
        segments=0 if segments == PER_STEP else number(raw, "segments", int, 1, 1000, 1),
        to_clean=_to_clean(raw),
        grid=choice(raw, "grid", _GRIDS),
        lists=_lists(raw.get("timesteps", {})),
        start_timestep=number(raw, "start_timestep", int, 1, LAST_TIMESTEP, LAST_TIMESTEP),
        timestep_shift=float(number(raw, "timestep_shift", (int, float), 0.001, 1, 1.0)),
        cfg=cfg,
        cfg_range=_pair(raw, "cfg_range", [cfg, cfg]),
        strength=float(number(raw, "strength", (int, float), -10, 10, 1.0)),
        strengths=tuple((int(steps), float(value)) for steps, value in _by_steps(raw, "strengths")),
        steps=_pair(raw, "steps", None, int),
        sources=_sources(raw),
        lora_names=_words(raw, "lora_names"),
        checkpoint_names=_words(raw, "checkpoint_names"),
    )


def _families(raw: Mapping[str, Any]) -> tuple[str, ...]:
    usable = tuple(key for key, family in FAMILIES.items() if not family.is_flow)
    families = raw.get("families")
    if not isinstance(families, list) or not families or set(map(str, families)) - set(usable):
        raise CatalogError(f"families must be a list of {', '.join(usable)}, got {families!r}")
    return tuple(families)


def _to_clean(raw: Mapping[str, Any]) -> bool:
    value = raw.get("to_clean", False)
    if not isinstance(value, bool):
        raise CatalogError(f"to_clean must be true or false, got {value!r}")
    return value


def _pair(raw: Mapping[str, Any], name: str, default: list | None, kind: Any = int | float) -> tuple:
    value = raw.get(name, default)
    fits = isinstance(value, list) and len(value) == 2 and all(isinstance(n, kind) and not isinstance(n, bool) for n in value)
    if not fits or not 1 <= value[0] <= value[1] <= 1000:
        whole = "whole " * (kind is int)
        raise CatalogError(f"{name} must be two {whole}numbers from 1 to 1000 such as [1, 8], the lower first, got {value!r}")
    return value[0], value[1]


def _by_steps(raw: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    value = raw.get(name, {})
    if not isinstance(value, Mapping) or not all(_COUNT.fullmatch(steps) for steps in value):
        raise CatalogError(f'{name} must be an object by step counts, such as {{"4": ...}}, got {value!r}')
    if name == "strengths" and not all(isinstance(n, int | float) and abs(n) <= 10 for n in value.values()):
        raise CatalogError(f"{name} must be numbers from -10 to 10, got {value!r}")
    return sorted(value.items(), key=lambda item: int(item[0]))


def _lists(raw: Any) -> tuple[tuple[int, tuple[int, ...]], ...]:
    lists = []
    for steps, timesteps in _by_steps({"timesteps": raw}, "timesteps"):
        listed = timesteps if isinstance(timesteps, list) else []
        falls = all(type(t) is int for t in listed) and listed == sorted(set(listed), reverse=True)
        if not listed or not falls or not 0 <= listed[-1] <= listed[0] <= LAST_TIMESTEP:
            raise CatalogError(
                f"timesteps for {steps} steps must be whole numbers from {LAST_TIMESTEP} down to 0, each lower than the one "
                f"before, such as [999, 749, 499, 249], got {timesteps!r}"
            )
        if len(listed) != int(steps):
            raise CatalogError(f"timesteps for {steps} steps must be so many, got {len(listed)}")
        lists.append((int(steps), tuple(listed)))
    return tuple(lists)


def _sources(raw: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    value = raw.get("sources", {})
    if not isinstance(value, Mapping) or set(value) - set(_SOURCED) or set(map(str, value.values())) - set(NUMBER_SOURCES):
        raise CatalogError(f"sources must name {', '.join(_SOURCED)}, each one of {', '.join(NUMBER_SOURCES)}, got {value!r}")
    return tuple(value.items())


def _words(raw: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = raw.get(name, [])
    if not isinstance(value, list) or not all(isinstance(word, str) and _WORD.fullmatch(word) for word in value):
        raise CatalogError(f'{name} must be a list of words such as "sdxl-lightning", got {value!r}')
    return tuple(value)
