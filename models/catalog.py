"""The released Hyper-SD files as data, and a person's own entries beside them."""

import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..disk import open_file
from ..errors import CatalogError, DownloadError
from .entry import ANY_FAMILY, UNKNOWN, Entry, Licence, read_entry
from .families import FAMILIES
from .host_folders import HOST_ENDINGS
from .recipe import BY_FILE, Recipe, read_recipe

CATALOG = Path(__file__).with_name("catalog.json")
ENDING = ".safetensors"
DEEPEST = 16  # levels of a catalogue file; 4 are used
# By the family of an entry, what the lists of files put over its group; the groups are shown in this order.
HEADINGS = {key: family.title for key, family in FAMILIES.items()} | {ANY_FAMILY: "Scores of pictures"}

_ADDED = re.compile(r"(?:[ ._-]*(?:\(\d+\)|copy|fp16|bf16|fp32|fp8(?:_e4m3fn)?|pruned|converted))+$")


@dataclass(frozen=True)
class Catalog:
    """The entries in the order they are shown, ids unique, and the recipes of other methods."""

    entries: tuple[Entry, ...]
    recipes: tuple[Recipe, ...] = ()

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def get(self, entry_id: str) -> Entry:
        """Returns the entry of an id.

        Raises: CatalogError naming the ids that look like it.
        """
        entry = next((entry for entry in self.entries if entry.id == entry_id), None)
        if entry is None:
            near = difflib.get_close_matches(str(entry_id)[:80], [entry.id for entry in self.entries], n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(e.id for e in self.entries)}."
            raise CatalogError(f"The catalogue has no {str(entry_id)[:80]!r}; {hint}")
        return entry

    @property
    def models(self) -> tuple[Entry, ...]:
        """The entries that a loader of the host reads, which leaves out the scorers' files."""
        return tuple(entry for entry in self.entries if not entry.is_reward)

    def lora_named(self, name: str) -> Entry | None:
        """Returns the LoRA whose file has a name, None where it is none of these.

        Args:
            name: without folders, with or without an ending that some host reads, in any case; what converters and browsers
                add, such as "_fp16" or " (1)", may follow.
        """
        name = name.lower()
        stem = next((name.removesuffix(ending) for ending in HOST_ENDINGS["comfyui"] if name.endswith(ending)), name)
        stem = _ADDED.sub("", stem)
        loras = (entry for entry in self.entries if entry.folder == "loras")
        return next((entry for entry in loras if _ADDED.sub("", entry.name.lower().removesuffix(ENDING)) == stem), None)


def _distinct(entry: Entry, others: list[Entry]) -> Entry:
    for other in others:
        if entry.id == other.id:
            raise CatalogError(f"the id {entry.id} is taken; choose another")
        if (entry.folder, entry.name.lower()) == (other.folder, other.name.lower()):
            raise CatalogError(f"{other.id} already has the file name {entry.name} in the folder {entry.folder}")
    return entry


def _read_file(path: Path) -> dict:
    try:
        with open_file(path) as file:
            content = file.read()
        data = json.loads(content)  # finds out by itself whether it is UTF-8 or UTF-16, with a mark in front or not
    except (OSError, ValueError, RecursionError) as error:
        raise CatalogError(f"{path} cannot be read as JSON: {error}. Mend it, or move it away.") from error
    if _is_deeper(data, DEEPEST):
        raise CatalogError(f"{path} is nested more than {DEEPEST} deep, which no catalogue is. Mend it, or move it away.")
    if (
        not isinstance(data, dict)
        or not isinstance(data.get("entries"), list)
        or not isinstance(data.get("licences", {}), dict)
        or not isinstance(data.get("recipes", {}), dict)
    ):
        raise CatalogError(f'{path} must hold {{"entries": [...]}}, and may hold "licences": {{...}} and "recipes": {{...}}.')
    return data


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects lie in each other more levels deep; Python's own printing fails at a few hundred."""
    layer = [value]
    for _ in range(levels + 1):
        layer = [
            inner
            for outer in layer
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return any(isinstance(inner, dict | list) for inner in layer)


def _read_licence(name: str, raw: Any) -> Licence:
    known = isinstance(raw, dict) and isinstance(raw.get("title"), str) and str(raw.get("url", "")).startswith("https://")
    if not known or set(raw) - {"title", "url", "acknowledge"}:
        raise CatalogError(
            f'a licence must be {{"title": ..., "url": "https://...", "acknowledge": true or false}}, got {raw!r}'
        )
    return Licence(name, raw["title"], raw["url"], raw.get("acknowledge", False) is True)


def _read_recipes(path: Path, raw: dict[str, Any], taken: dict[str, Recipe]) -> dict[str, Recipe]:
    try:
        double = next((name for name in raw if name in taken), None)
        if double:
            raise CatalogError(f"the name {double} is taken; choose another")
        if BY_FILE in raw:
            raise CatalogError(f"the name {BY_FILE} stands for no method but the file's own; choose another")
        return {name: read_recipe(name, value) for name, value in raw.items()}
    except CatalogError as error:
        raise CatalogError(f"{path}, recipes: {error}.") from error


def load_catalog(user_file: Path | None = None) -> Catalog:
    """Returns the pack's catalogue, with a person's own entries after it.

    Args:
        user_file: a JSON file of the same form, {"entries": [...]}. One that does not exist adds nothing.
    Raises: CatalogError naming the file, the entry and the field.
    """
    licences = {UNKNOWN.name: UNKNOWN}
    recipes: dict[str, Recipe] = {}
    entries: list[Entry] = []
    for path in (CATALOG, user_file):
        if path is None or (path is user_file and not path.exists()):
            continue
        data = _read_file(path)
        recipes |= _read_recipes(path, data.get("recipes", {}), recipes)
        for place, raw in enumerate(data["entries"], 1):
            try:
                own = licences | {name: _read_licence(name, value) for name, value in data.get("licences", {}).items()}
                entries.append(_distinct(read_entry(raw, own, recipes), entries))
            except CatalogError as error:
                raise CatalogError(f"{path}, entry {place}: {error}.") from error
    return Catalog(tuple(entries), tuple(recipes.values()))


def require_acknowledged(entry: Entry, acknowledged: bool) -> None:
    """Raises: DownloadError where the entry's licence asks for a yes that was not given."""
    if entry.licence.acknowledge and not acknowledged:
        raise DownloadError(
            f"{entry.name} comes under {entry.licence.title}. Read it at {entry.licence.url} and accept it first "
            "(in the panel or the node, or with --accept-licence)."
        )
