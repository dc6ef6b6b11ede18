"""The file a run is described in: TOML tables for the model, the data, the training and the output, checked once."""

import dataclasses
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ...errors import TrainingError
from ..config import TrainingConfig, from_plain

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DTYPES = ("fp32", "bf16", "fp16")
PATHS = {"folder", "shards", "prompts", "cache"}
Table = TypeVar("Table")


@dataclass(frozen=True)
class ModelTable:
    """Which model is trained.

    Args:
        folder: in diffusers' layout; or hub_id: "owner/name" on the Hugging Face hub. One of the two.
        dtype: of the frozen weights; "" takes the arithmetic's, see training.precision.
    """

    folder: str = ""
    hub_id: str = ""
    dtype: str = ""

    def __post_init__(self) -> None:
        _one_of(self, "model", "folder", "hub_id")
        if self.dtype not in ("", *DTYPES):
            raise TrainingError(
                f"model.dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}; leave it out to follow precision."
            )


@dataclass(frozen=True)
class DataTable:
    """What it is trained on.

    Args:
        folder: of images and captions; shards: a pattern of tar files; prompts: a text file. One of the three.
        cache: folder of encoded images and prompts.
        resolution: in pixels, the side of the square whose area no image exceeds.
        max_aspect: of the longest images; default_caption: of images without one, "" skips them.
        encode_batch_size: images, prompts or teacher's latents at a time.
        teacher_steps, teacher_guidance_scale, latents_per_prompt: for prompts alone.
    """

    folder: str = ""
    shards: str = ""
    prompts: str = ""
    cache: str = "cache"
    resolution: int = 512
    max_aspect: float = 2.0
    default_caption: str = ""
    encode_batch_size: int = 8
    teacher_steps: int = 50
    teacher_guidance_scale: float = 7.5
    latents_per_prompt: int = 1

    def __post_init__(self) -> None:
        _one_of(self, "data", "folder", "shards", "prompts")
        for name in ("resolution", "encode_batch_size", "latents_per_prompt"):
            if getattr(self, name) < 1:
                raise TrainingError(
                    f"data.{name} must be 1 or more, got {getattr(self, name)}; leave it out for the usual value."
                )


@dataclass(frozen=True)
class OutputTable:
    """Where the LoRAs go: <folder>/<name>-8steps.safetensors; the checkpoint is <folder>/<name>/checkpoint.safetensors."""

    folder: str
    name: str

    def __post_init__(self) -> None:
        if not self.name or set(self.name) & set('/\\:*?"<>|') or self.name.strip(". ") != self.name:
            raise TrainingError(f'output.name must be a plain file name, got {self.name!r}; use for example "my-lora".')

    @property
    def checkpoint_folder(self) -> Path:
        return Path(self.folder, self.name)

    def lora_path(self, num_segments: int | None) -> Path:
        """Returns where the LoRA of a stage goes; None is that of plain finetuning."""
        steps = "" if num_segments is None else f"-{num_segments}step{'s' if num_segments > 1 else ''}"
        return Path(self.folder, f"{self.name}{steps}.safetensors")


@dataclass(frozen=True)
class RunFile:
    """A whole run."""

    model: ModelTable
    data: DataTable
    training: TrainingConfig
    output: OutputTable

    def __post_init__(self) -> None:
        dtype, precision = self.model.dtype, self.training.precision
        if dtype not in ("", "fp32", precision):
            raise TrainingError(
                f"model.dtype {dtype!r} needs training.precision {dtype!r}, got {precision!r}; or leave dtype out."
            )

    @property
    def dtype(self) -> str:
        """The frozen weights' dtype."""
        return self.model.dtype or self.training.precision


def read_run_file(path: Path) -> RunFile:
    """Reads a run's TOML file; relative paths in it start at its folder.

    Raises: TrainingError for a file that cannot be read, unknown or missing names, values of another type or range.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise TrainingError(
            f"The run file {path} cannot be read ({error.strerror}); training/launch/example.toml is one."
        ) from error
    except ValueError as error:  # tomllib's own error, and bytes that are not UTF-8
        raise TrainingError(
            f"The run file {path} is not TOML ({error}); strings need quotes, see training/launch/example.toml."
        ) from error
    kinds = {"model": ModelTable, "data": DataTable, "output": OutputTable}
    strange = tables.keys() ^ {*kinds, "training"}
    if strange or not all(isinstance(table, dict) for table in tables.values()):
        raise TrainingError(f"{path} must have the tables [model], [data], [training] and [output], and has {sorted(tables)}.")
    tables["data"].setdefault("cache", "cache")  # also this one starts at the file's folder
    made = {name: _checked(kind, name, _rooted(tables[name], path.resolve().parent)) for name, kind in kinds.items()}
    return RunFile(training=from_plain(tables["training"]), **made)


def _rooted(table: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Lets relative paths start at `root`."""

    def place(name: str, value: Any) -> Any:
        is_path = name in PATHS and isinstance(value, str) and value and "://" not in value
        return os.path.join(root, os.path.expanduser(value)) if is_path else value

    return {name: place(name, value) for name, value in table.items()}


def _checked(kind: type[Table], title: str, values: Mapping[str, Any]) -> Table:
    """Returns the table as its dataclass, every value of the declared type."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    missing = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in values]
    unknown = sorted(values.keys() - fields.keys())
    if missing or unknown:
        raise TrainingError(f"[{title}] lacks {missing} and has unknown {unknown}; there are {', '.join(fields)}.")
    made = {}
    for name, value in values.items():
        wanted = fields[name].type
        if isinstance(value, bool) or not isinstance(value, (int, float) if wanted is float else wanted):
            raise TrainingError(f"{title}.{name} must be {_WORDS[wanted]}, got {value!r}.")
        made[name] = wanted(value)
    return kind(**made)


_WORDS = {str: "text in quotes", int: "a whole number", float: "a number"}


def _one_of(table: Any, title: str, *names: str) -> None:
    given = [name for name in names if getattr(table, name)]
    if len(given) != 1:
        raise TrainingError(f"[{title}] needs exactly one of {', '.join(names)}, got {', '.join(given) or 'none'}.")
