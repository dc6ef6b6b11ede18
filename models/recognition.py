"""Which LoRA a file is: told by its content or its metadata, or guessed from its name."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import UnsupportedModelError
from .catalog import Catalog, load_catalog
from .embedded import LORAS
from .entry import OTHER, Entry
from .files import may_have, sha256_of
from .header import read_header
from .lora import read_lora
from .recipe import Recipe, tokens_of, word_in

# From certain to unknown. "catalogue": the name and the size of a catalogue file whose hash nobody has written down.
# "title": what another training's metadata call the file; the name on the disk may be another by now.
EVIDENCE = ("embedded", "content", "catalogue", "metadata", "name", "title", "nothing")
_TITLES = ("modelspec.title", "ss_output_name")  # by the ModelSpec standard, and by kohya's trainers
_OBJECTIVE, _STAGES, _SEGMENTS = "hyper_sd_objective", "hyper_sd_stages", "num_segments"  # what this pack's training writes
_START = "hyper_sd_start_timestep"  # in a LoRA that was trained for one step: where that step starts, "1" to "999"
# "hyper" alone is praise as well: "hyperRealism", "Hyper Detailed", "hyper3d". So it counts where nothing comes after that it
# could praise, and at the beginning of a name only before what goes with a method.
_HYPER_SD = re.compile(
    r"-hyper(?:sd|sdxl)-|-hyper-(?:sd|sdxl|xl|lora|\d{1,2}-steps?)-"
    r"|-hyper-(?:mix|merged?|lightning|turbo|lcm|safetensors|sft|ckpt|pt)-"
    r"|(?<!^)-hyper-(?!real|photo|detail|anime|cute|3-d-)"
)
_COUNT = re.compile(r"-(?P<steps>[1-9]|1[0-6])-steps?-")  # more steps than are ever taken tell of another kind of file
_NUMBER, _TIMESTEP = re.compile(r"[1-9]\d?"), re.compile(r"[1-9]\d{0,2}")


@dataclass(frozen=True)
class Recognition:
    """What is known of a LoRA file.

    Args:
        file: its name, without folders.
        evidence: one of EVIDENCE.
        variant: "unified", "n-step", "cfg" or "other"; None where nothing is known, and for a style without few steps.
        steps: the number of steps that it was made for, 1 for a unified LoRA, 0 where variant is None, and where another
            method's LoRA is not for an exact number.
        entry: the catalogue's; where evidence is "name", the one whose name it has.
        start_timestep: where its one step starts, 1 to 999, of a LoRA that was trained for exactly one step; None of others.
        recipe: another method's, where variant is "other"; None elsewhere.
    """

    file: str
    evidence: str = "nothing"
    variant: str | None = None
    steps: int = 0
    entry: Entry | None = None
    start_timestep: int | None = None
    recipe: Recipe | None = None

    @property
    def is_certain(self) -> bool:
        """Whether the file itself tells, and not its name or its title alone."""
        return EVIDENCE.index(self.evidence) < EVIDENCE.index("name")

    @property
    def is_style(self) -> bool:
        """Whether it was trained here, and not for few steps."""
        return self.is_certain and self.variant is None


def recognise(path: Path, catalog: Catalog | None = None) -> Recognition:
    """Returns what is known of a LoRA file, whatever its name and its folder.

    Its content is hashed only where a catalogue file can have its size, and only once until it changes. A file that cannot be
    read is told by its name alone: what reads it afterwards says what is wrong with it.

    Args:
        path: of the file.
        catalog: with further entries than the pack's own.
    """
    catalog = catalog or load_catalog()
    own = next((key for key, known in LORAS.items() if known == path), None)
    if own:
        start = (_by_metadata(_metadata_of(path)) or (None, 0, None))[2]
        return Recognition(path.name, "embedded", *own, start_timestep=start)
    named = catalog.lora_named(path.name)
    try:
        entry = _by_content(path, catalog, named)
    except OSError:
        entry = None
    if entry:
        return _as_entry(path, "content" if entry.sha256 else "catalogue", entry)
    metadata = _metadata_of(path)
    told = _by_metadata(metadata)
    if told:
        return Recognition(path.name, "metadata", told[0], told[1], start_timestep=told[2])
    if named and (named.recipe is None or _may_be(path, named)):
        return _as_entry(path, "name", named)
    return (None if named else _by_words(path, metadata, catalog)) or Recognition(path.name)


def _as_entry(path: Path, evidence: str, entry: Entry) -> Recognition:
    is_exact = entry.recipe is None or entry.recipe.segments == 0
    return Recognition(path.name, evidence, entry.kind, entry.steps if is_exact else 0, entry, recipe=entry.recipe)


def _by_words(path: Path, metadata: Mapping[str, str], catalog: Catalog) -> Recognition | None:
    """Returns the one method whose words stand in a file's name or its title, where its layers are those of a few-step LoRA,
    too. None where name and title tell two.
    """
    names = {path.name: "name"} | {metadata[key]: "title" for key in _TITLES if key in metadata and metadata[key] != path.name}
    told = {name: recipe for name in names if (recipe := named_recipe(name, catalog, "lora_names"))}
    if len(set(told.values())) != 1 or any(map(says_hyper_sd, names)):
        return None
    name, recipe = next(iter(told.items()))
    if not _is_few_step(path, recipe.families):
        return None
    return Recognition(path.name, names[name], OTHER, steps_in(name, recipe), recipe=recipe)


def steps_in(name: str, recipe: Recipe) -> int:
    """Returns the exact number of steps that a file's name says, 0 where it says none, or one that the method is not for."""
    found = _COUNT.search(tokens_of(name)) if recipe.segments == 0 else None
    count = int(found["steps"]) if found else 0
    return count if recipe.steps[0] <= count <= recipe.steps[1] else 0


def named_recipe(name: str, catalog: Catalog, words: str) -> Recipe | None:
    """Returns the one recipe whose words stand in a file's name, as named_recipes(); None where none do, or where two do."""
    found = named_recipes(name, catalog, words)
    return found[0] if len(found) == 1 and not says_hyper_sd(name) else None


def named_recipes(name: str, catalog: Catalog, words: str) -> list[Recipe]:
    """Returns the recipes whose words stand in a file's name, in the name's order.

    Args:
        name: without folders.
        catalog: with the recipes.
        words: the field of the recipe that has them, "lora_names" or "checkpoint_names".
    """
    told = {recipe: word for recipe in catalog.recipes if (word := word_in(name, getattr(recipe, words)))}
    # "dmd-2-sdxl-1-step" says more than the "dmd-2" in it.
    found = [recipe for recipe, word in told.items() if not any(word != other and word in other for other in told.values())]
    return sorted(found, key=lambda recipe: tokens_of(name).index(told[recipe]))


def says_hyper_sd(name: str) -> bool:
    """Whether a file's name, without folders, says that Hyper-SD is in it."""
    return bool(_HYPER_SD.search(tokens_of(name)))


def _may_be(path: Path, named: Entry) -> bool:
    """Whether a file whose content did not tell can be the one whose name it has: not with its size and another hash."""
    try:
        has_other_hash = bool(named.sha256) and may_have(named, path.stat().st_size)
    except OSError:
        return True
    return not has_other_hash and _is_few_step(path, (named.family,))


def _is_few_step(path: Path, families: tuple[str, ...]) -> bool:
    """Whether a file has the layers that all released few-step LoRAs have: a UNet's convolutions as well, no text encoder's.

    Args:
        path: of the file. One that cannot be read is told by its name: what reads it afterwards says what is wrong with it.
        families: those it may be for.
    """
    try:
        info, names = read_lora(path), read_header(path)
    except (OSError, UnsupportedModelError):
        return True
    has_convolutions = any("resnets" in name or "in_layers" in name for name in names)
    return has_convolutions and not info.text_encoder_modules and info.family in (*families, None)


def _by_content(path: Path, catalog: Catalog, named: Entry | None) -> Entry | None:
    candidates = list(_of_size(path.stat().st_size, catalog, named))
    digest = sha256_of(path) if any(entry.sha256 for entry in candidates) else None
    by_hash = next((entry for entry in candidates if digest and entry.sha256 == digest), None)
    # Of other methods a dozen files have one size: with no hash written down, the name alone tells them.
    unhashed = (entry for entry in candidates if not entry.sha256 and entry.recipe is None)
    return by_hash or next((entry for entry in unhashed if entry.name.lower() == path.name.lower()), None)


def _of_size(size: int, catalog: Catalog, named: Entry | None) -> Iterator[Entry]:
    """Yields the LoRAs that a file of so many bytes can be."""
    for entry in catalog:
        is_sized = entry.size or entry.approximate_size  # where no size is known, the name has to tell
        if entry.folder == "loras" and may_have(entry, size) and (is_sized or entry is named):
            yield entry


def _metadata_of(path: Path) -> Mapping[str, str]:
    try:
        return read_header(path).get("__metadata__", {})
    except (OSError, UnsupportedModelError):
        return {}


def _by_metadata(metadata: Mapping[str, str]) -> tuple[str | None, int, int | None] | None:
    """Returns the variant, the steps and the start timestep that the training of this pack has written, (None, 0, None) for a
    style. A start that is no timestep counts as none, and then one segment is the unified LoRA's.
    """
    last = metadata.get(_STAGES, metadata.get(_SEGMENTS, "")).rpartition("-")[2]
    if not _NUMBER.fullmatch(last):
        return (None, 0, None) if _OBJECTIVE in metadata else None
    if last != "1":
        return "n-step", int(last), None
    start = metadata.get(_START, "")
    return ("n-step", 1, int(start)) if _TIMESTEP.fullmatch(start) else ("unified", 1, None)
