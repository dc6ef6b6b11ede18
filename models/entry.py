"""One file of the catalogue: what is known of it, read from JSON and written back."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from ..errors import CatalogError
from .families import FAMILIES
from .fields import choice, number, text
from .host_folders import REWARDS, SAFETENSORS
from .recipe import Recipe

REWARD, ANY_FAMILY = "reward", "any"  # the kind of a scorer's files, and the family of what belongs to none
OTHER = "other"  # the kind of another method's few-step LoRA, which has a recipe
HYPER_SD = "Hyper-SD"
NO_RECIPES: Mapping[str, Recipe] = MappingProxyType({})
FOLDERS = {
    "unified": "loras",
    "n-step": "loras",
    "cfg": "loras",
    OTHER: "loras",
    "unet": "diffusion_models",
    "checkpoint": "checkpoints",
    REWARD: REWARDS,
}
GRIDS = ("tcd", "trailing", "default")

_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,79}")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_PARENTS, _NAME = r"(?:[A-Za-z0-9][\w.-]{0,95}/){0,4}", r"[A-Za-z0-9][\w.-]{0,150}"
_ENDINGS = {True: r"\.(?:safetensors|pt|bin|json)", False: r"\.safetensors"}  # of a scorer's files, and of all others
_SHA256 = re.compile(r"[0-9a-f]{64}")
_IN_RECIPE = ("step_range", "num_segments", "settings", "strength")  # what a recipe says in the entry's place
_STEPLESS = ("steps", "step_range", "num_segments", "settings", "strength")  # what a scorer's file has not


@dataclass(frozen=True)
class Licence:
    """What a file may be used for.

    Args:
        name: by which catalogue files refer to it.
        title: its name for people.
        url: where it can be read.
        acknowledge: whether people must say yes to it before the file is fetched.
    """

    name: str
    title: str
    url: str
    acknowledge: bool = False


UNKNOWN = Licence("unknown", "not known, see the model's page", "https://huggingface.co")


@dataclass(frozen=True)
class Settings:
    """What a file's authors recommend to sample it with.

    Source: the model card of ByteDance/Hyper-SD.
    Args:
        sampler: "hyper_sd_tcd", or "euler" for flow models.
        grid: one of GRIDS; "default" is the host's own for the model.
        eta: share of fresh noise, from 0 to 1.
        cfg: guidance, 1 is off.
        start_timestep: the grid's first, from 1 to 999.
        guidance: FLUX's distilled guidance, None elsewhere.
    """

    sampler: str
    grid: str
    eta: float
    cfg: float
    start_timestep: int = 999
    guidance: float | None = None


@dataclass(frozen=True)
class Entry:
    """One file that can be downloaded.

    Args:
        id: lower case, digits, - and _.
        title: its name for people.
        family: a key of FAMILIES, ANY_FAMILY for a scorer's file.
        kind: a key of FOLDERS.
        steps: the number in its name, 0 for a scorer's file.
        step_range: the fewest and the most steps it can be used at, 0 and 0 for a scorer's file.
        num_segments: segments it was distilled on, 1 for those sampled otherwise.
        settings: what its authors recommend.
        strength: of a LoRA.
        repo: owner and name on the hub.
        file: its path in the repository.
        size: exact, in bytes, None where unknown.
        approximate_size: in bytes, for people.
        sha256: 64 hex digits, None where unknown (the hub's own is taken then).
        save_as: its name on the disk, None for the name that it has on the hub.
        recipe: how another method's file is sampled, None for Hyper-SD's own files and a scorer's.
    """

    id: str
    title: str
    family: str
    kind: str
    steps: int
    step_range: tuple[int, int]
    num_segments: int
    settings: Settings
    strength: float
    repo: str
    file: str
    size: int | None
    approximate_size: int
    sha256: str | None
    licence: Licence
    save_as: str | None = None
    recipe: Recipe | None = None

    @property
    def method(self) -> str:
        """The name of the method that the file was distilled by, for people; empty for a scorer's file."""
        return self.recipe.method if self.recipe else "" if self.is_reward else HYPER_SD

    @property
    def name(self) -> str:
        """The file's name without folders, as it lies on the disk."""
        return self.save_as or self.file.rpartition("/")[2]

    @property
    def ending(self) -> str:
        """What its name ends with, from the dot on: ".safetensors", and for a scorer's file also ".pt", ".bin" or ".json"."""
        return f".{self.name.rpartition('.')[2]}"

    @property
    def is_reward(self) -> bool:
        """Whether a scorer of pictures reads it, and no loader of the host."""
        return self.kind == REWARD

    @property
    def folder(self) -> str:
        """The kind of folder it belongs in, by ComfyUI's names: "loras", "diffusion_models" and so on."""
        return FOLDERS[self.kind]

    @property
    def page(self) -> str:
        """The hub's page of the file, for people."""
        return f"https://huggingface.co/{self.repo}/blob/main/{self.file}"

    def workflow_metadata(self) -> dict[str, str]:
        """Returns the entry for a workflow node's `properties.models`, from which ComfyUI's missing-model dialog is made."""
        url = f"https://huggingface.co/{self.repo}/resolve/main/{self.file}"
        known = {"hash": self.sha256, "hash_type": "SHA256"} if self.sha256 else {}
        return {"name": self.name, "url": url, "directory": self.folder, **known}


def _settings(raw: Any) -> Settings:
    if not isinstance(raw, Mapping) or set(raw) - {field.name for field in fields(Settings)}:
        raise CatalogError(f"settings must be an object of {', '.join(f.name for f in fields(Settings))}, got {raw!r}")
    return Settings(
        sampler=choice(raw, "sampler", ("hyper_sd_tcd", "euler"), "hyper_sd_tcd"),
        grid=choice(raw, "grid", GRIDS, "tcd"),
        eta=float(number(raw, "eta", (int, float), 0, 1, 0.3)),
        cfg=float(number(raw, "cfg", (int, float), 1, 100, 1.0)),
        start_timestep=number(raw, "start_timestep", int, 1, 999, 999),
        guidance=number(raw, "guidance", (int, float), 0, 100, None),
    )


def _step_range(raw: Mapping[str, Any], steps: int) -> tuple[int, int]:
    value = raw.get("step_range", [steps, steps])
    if not (isinstance(value, list) and len(value) == 2 and all(type(n) is int for n in value) and 1 <= value[0] <= value[1]):
        raise CatalogError(f"step_range must be two step counts such as [1, 8], got {value!r}")
    return value[0], value[1]


def _file_name(raw: Mapping[str, Any], field: str, is_reward: bool) -> str | None:
    """Returns the field "file" or "save_as". Raises: CatalogError."""
    folders = _PARENTS if field == "file" else ""
    allowed = "safetensors, pt, bin and json files" if is_reward else "safetensors files"
    example = f'"{"folder/" if folders else ""}name.safetensors"; only {allowed} are loaded'
    pattern = re.compile(f"{folders}{_NAME}{_ENDINGS[is_reward]}", re.ASCII)
    return text(raw, field, pattern, example, optional=field == "save_as")


def _require_checkable(entry: Entry) -> Entry:
    """Refuses a file that is no safetensors file and has no hash: it could not be told from one that was tampered with."""
    if entry.ending not in SAFETENSORS and not entry.sha256:
        raise CatalogError(f"{entry.name} needs its sha256, since only a safetensors file can do without")
    if not entry.file.endswith(entry.ending):
        raise CatalogError(f"save_as must end as file does, got {entry.save_as} for {entry.file}")
    return entry


def _of_recipe(raw: Mapping[str, Any], recipe: Recipe | None, kind: str) -> dict[str, Any]:
    """Returns the fields of an entry that its recipe says. Raises: CatalogError."""
    if recipe is None:
        if kind == OTHER:
            raise CatalogError("another method's LoRA needs its recipe")
        return {}
    given = [name for name in _IN_RECIPE if name in raw]
    if given:
        raise CatalogError(f"the recipe {recipe.name} says {', '.join(given)}; leave that out")
    if kind not in (OTHER, "unet", "checkpoint") or raw.get("family") not in recipe.families:
        raise CatalogError(f"the recipe {recipe.name} is for other, unet and checkpoint of {' and '.join(recipe.families)}")
    return {
        "step_range": recipe.steps if recipe.segments else (raw["steps"], raw["steps"]),
        "num_segments": recipe.segments or raw["steps"],
        "settings": Settings("hyper_sd_tcd", recipe.grid, recipe.eta, recipe.cfg, recipe.start_timestep),
        "strength": recipe.strength,
        "recipe": recipe,
    }


def read_entry(raw: Mapping[str, Any], licences: Mapping[str, Licence], recipes: Mapping[str, Recipe] = NO_RECIPES) -> Entry:
    """Returns one entry of a catalogue file.

    Args:
        raw: its JSON object.
        licences: by the name an entry gives.
        recipes: by the name an entry gives.
    Raises: CatalogError saying which field is wrong, what was given and what is allowed.
    """
    if not isinstance(raw, Mapping):
        raise CatalogError(f"an entry must be an object, got {raw!r}")
    unknown = set(raw) - {field.name for field in fields(Entry)}
    if unknown:
        raise CatalogError(f"unknown field {', '.join(sorted(unknown))}")
    kind = choice(raw, "kind", tuple(FOLDERS))
    is_reward = kind == REWARD
    given = [name for name in _STEPLESS if name in raw]
    if is_reward and given:
        raise CatalogError(f"a scorer's file has no {', '.join(given)}; leave that out")
    steps = 0 if is_reward else number(raw, "steps", int, 1, 1000, 0)
    recipe = recipes[choice(raw, "recipe", tuple(recipes))] if "recipe" in raw else None
    size = number(raw, "size", int, 9, 10**12, None)
    title = raw.get("title", raw.get("id"))
    if not isinstance(title, str) or not 0 < len(title) <= 200:
        raise CatalogError(f"title must be a text of at most 200 characters, got {title!r}")
    plain = Entry(
        id=text(raw, "id", _ID, '"my-sdxl-4steps-lora" (lower case, digits, - and _)'),
        title=title,
        family=choice(raw, "family", (ANY_FAMILY,) if is_reward else tuple(FAMILIES), ANY_FAMILY if is_reward else None),
        kind=kind,
        steps=steps,
        step_range=(0, 0) if is_reward else _step_range(raw, steps),
        num_segments=number(raw, "num_segments", int, 1, 1000, 1),
        settings=_settings(raw.get("settings", {})),
        strength=float(number(raw, "strength", (int, float), -10, 10, 1.0)),
        repo=text(raw, "repo", _REPO, '"owner/name" on the hub'),
        file=_file_name(raw, "file", is_reward),
        save_as=_file_name(raw, "save_as", is_reward),
        size=size,
        approximate_size=size or number(raw, "approximate_size", int, 0, 10**12, 0),
        sha256=text(raw, "sha256", _SHA256, "64 lower-case hex digits", optional=True),
        licence=licences[choice(raw, "licence", tuple(licences), "unknown")],
    )
    return _require_checkable(replace(plain, **_of_recipe(raw, recipe, kind)))


def write_entry(entry: Entry) -> dict[str, Any]:
    """Returns the JSON object that read_entry reads back as the same entry."""
    raw = {**asdict(entry), "licence": entry.licence.name, "step_range": list(entry.step_range)}
    raw["recipe"] = entry.recipe.name if entry.recipe else None
    left_out = _STEPLESS if entry.is_reward else _IN_RECIPE if entry.recipe else ()
    return {name: value for name, value in raw.items() if value is not None and name not in left_out}
