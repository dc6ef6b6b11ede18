"""The released Hyper-SD files as data, and a person's own entries beside them."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import CatalogError, DownloadError
from .families import FAMILIES
from .fields import choice, number, text
from .host_folders import HOST_ENDINGS

CATALOG = Path(__file__).with_name("catalog.json")
FOLDERS = {"unified": "loras", "n-step": "loras", "cfg": "loras", "unet": "diffusion_models", "checkpoint": "checkpoints"}
ENDING = ".safetensors"
GRIDS = ("tcd", "trailing", "default")

_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,79}")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_FILE = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/){0,4}[A-Za-z0-9][\w.-]{0,150}\.safetensors", re.ASCII)
_ADDED = re.compile(r"(?:[ ._-]*(?:\(\d+\)|copy|fp16|bf16|fp32|fp8(?:_e4m3fn)?|pruned|converted))+$")
_SHA256 = re.compile(r"[0-9a-f]{64}")


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
        family: a key of FAMILIES.
        kind: a key of FOLDERS.
        steps: the number in its name.
        step_range: the fewest and the most steps it can be used at.
        num_segments: segments it was distilled on, 1 for those sampled otherwise.
        settings: what its authors recommend.
        strength: of a LoRA.
        repo: owner and name on the hub.
        file: its path in the repository.
        size: exact, in bytes, None where unknown.
        approximate_size: in bytes, for people.
        sha256: 64 hex digits, None where unknown (the hub's own is taken then).
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

    @property
    def name(self) -> str:
        """The file's name without folders, as it lies on the disk."""
        return self.file.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """The kind of folder it belongs in, by ComfyUI's names: "loras", "diffusion_models" or "checkpoints"."""
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


@dataclass(frozen=True)
class Catalog:
    """The entries in the order they are shown, ids unique."""

    entries: tuple[Entry, ...]

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
        return next((entry for entry in loras if entry.name.lower().removesuffix(ENDING) == stem), None)


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


def read_entry(raw: Mapping[str, Any], licences: Mapping[str, Licence]) -> Entry:
    """Returns one entry of a catalogue file.

    Args:
        raw: its JSON object.
        licences: by the name an entry gives.
    Raises: CatalogError saying which field is wrong, what was given and what is allowed.
    """
    if not isinstance(raw, Mapping):
        raise CatalogError(f"an entry must be an object, got {raw!r}")
    unknown = set(raw) - {field.name for field in fields(Entry)}
    if unknown:
        raise CatalogError(f"unknown field {', '.join(sorted(unknown))}")
    kind = choice(raw, "kind", tuple(FOLDERS))
    steps = number(raw, "steps", int, 1, 1000, 0)
    size = number(raw, "size", int, 9, 10**12, None)
    title = raw.get("title", raw.get("id"))
    if not isinstance(title, str) or not 0 < len(title) <= 200:
        raise CatalogError(f"title must be a text of at most 200 characters, got {title!r}")
    return Entry(
        id=text(raw, "id", _ID, '"my-sdxl-4steps-lora" (lower case, digits, - and _)'),
        title=title,
        family=choice(raw, "family", tuple(FAMILIES)),
        kind=kind,
        steps=steps,
        step_range=_step_range(raw, steps),
        num_segments=number(raw, "num_segments", int, 1, 1000, 1),
        settings=_settings(raw.get("settings", {})),
        strength=float(number(raw, "strength", (int, float), -10, 10, 1.0)),
        repo=text(raw, "repo", _REPO, '"owner/name" on the hub'),
        file=text(raw, "file", _FILE, '"folder/name.safetensors"; only safetensors files are loaded'),
        size=size,
        approximate_size=size or number(raw, "approximate_size", int, 0, 10**12, 0),
        sha256=text(raw, "sha256", _SHA256, "64 lower-case hex digits", optional=True),
        licence=licences[choice(raw, "licence", tuple(licences), "unknown")],
    )


def write_entry(entry: Entry) -> dict[str, Any]:
    """Returns the JSON object that read_entry reads back as the same entry."""
    raw = {**asdict(entry), "licence": entry.licence.name, "step_range": list(entry.step_range)}
    return {name: value for name, value in raw.items() if value is not None}


def _distinct(entry: Entry, others: list[Entry]) -> Entry:
    for other in others:
        if entry.id == other.id:
            raise CatalogError(f"the id {entry.id} is taken; choose another")
        if (entry.folder, entry.name.lower()) == (other.folder, other.name.lower()):
            raise CatalogError(f"{other.id} already has the file name {entry.name} in the folder {entry.folder}")
    return entry


def _read_file(path: Path) -> dict:
    try:
        data = json.loads(path.read_bytes())  # finds out by itself whether it is UTF-8 or UTF-16, with a mark in front or not
    except (OSError, ValueError, RecursionError) as error:
        raise CatalogError(f"{path} cannot be read as JSON: {error}. Mend it, or move it away.") from error
    if (
        not isinstance(data, dict)
        or not isinstance(data.get("entries"), list)
        or not isinstance(data.get("licences", {}), dict)
    ):
        raise CatalogError(f'{path} must hold {{"entries": [...]}}, and may hold "licences": {{...}}.')
    return data


def _read_licence(name: str, raw: Any) -> Licence:
    known = isinstance(raw, dict) and isinstance(raw.get("title"), str) and str(raw.get("url", "")).startswith("https://")
    if not known or set(raw) - {"title", "url", "acknowledge"}:
        raise CatalogError(
            f'a licence must be {{"title": ..., "url": "https://...", "acknowledge": true or false}}, got {raw!r}'
        )
    return Licence(name, raw["title"], raw["url"], raw.get("acknowledge", False) is True)


def load_catalog(user_file: Path | None = None) -> Catalog:
    """Returns the pack's catalogue, with a person's own entries after it.

    Args:
        user_file: a JSON file of the same form, {"entries": [...]}. One that does not exist adds nothing.
    Raises: CatalogError naming the file, the entry and the field.
    """
    licences = {UNKNOWN.name: UNKNOWN}
    entries: list[Entry] = []
    for path in (CATALOG, user_file):
        if path is None or (path is user_file and not path.is_file()):
            continue
        data = _read_file(path)
        for place, raw in enumerate(data["entries"], 1):
            try:
                own = licences | {name: _read_licence(name, value) for name, value in data.get("licences", {}).items()}
                entries.append(_distinct(read_entry(raw, own), entries))
            except CatalogError as error:
                raise CatalogError(f"{path}, entry {place}: {error}.") from error
    return Catalog(tuple(entries))


def require_acknowledged(entry: Entry, acknowledged: bool) -> None:
    """Raises: DownloadError where the entry's licence asks for a yes that was not given."""
    if entry.licence.acknowledge and not acknowledged:
        raise DownloadError(
            f"{entry.name} comes under {entry.licence.title}. Read it at {entry.licence.url} and accept it first "
            "(in the panel or the node, or with --accept-licence)."
        )
