"""The file a run is described in: TOML tables for the model, the data, the training and the output, checked once."""

import dataclasses
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from ...errors import TrainingError
from ..config import PRECISIONS, TrainingConfig
from ..engine import usual_precision
from ..plain_config import from_plain
from ..presets import TrainRequest
from ..words import AUTO, FEEDBACK, NONE, OBJECTIVES, OFF, ON, UNIFIED

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

USUAL_RESOLUTION = 512  # of runs of stages
ONE_STEP_ENDING = "-one-step"  # of the name of a LoRA for exactly one step
FEEDBACK_ENDING = "-feedback"  # of the name of what human feedback has added to a LoRA
SWITCHES = {  # settings that may also be (false, true); of them a run of stages has cuda_graphs
    "gradient_checkpointing": (AUTO, ON), "adversarial": (OFF, ON), "one_step": (OFF, ON), "cuda_graphs": (OFF, AUTO),
}  # fmt: skip
PATHS = {"folder", "shards", "prompts", "cache", "scorers"}
BACKSLASHES = (
    "in double quotes a backslash begins a code; write paths in single quotes, 'D:\\test\\bears', or with / in its place"
)
Table = TypeVar("Table")


@dataclass(frozen=True)
class ModelTable:
    """Which model is trained; exactly one of folder, hub_id and embedded says so.

    Args:
        folder: in diffusers' layout.
        hub_id: "owner/name" on the Hugging Face hub.
        embedded: True for the small model that ships with the pack.
        dtype: of the frozen weights; "" takes that of training.precision.
        scorers: folder of the scorers' files, for human feedback.
    Raises: TrainingError for other than one model, and for an unknown dtype.
    """

    folder: str = ""
    hub_id: str = ""
    embedded: bool = False
    dtype: str = ""
    scorers: str = ""

    def __post_init__(self) -> None:
        _require_one(self, "model", "folder", "hub_id", "embedded")
        _require_dtype("model.dtype", self.dtype, "leave it out to follow precision")


@dataclass(frozen=True)
class DataTable:
    """What it is trained on; exactly one of folder, shards and prompts says so.

    Args:
        folder: of images and captions.
        shards: a pattern of tar files.
        prompts: a text file, whose images the model draws itself.
        cache: folder of encoded images and prompts.
        resolution: in pixels, the side of the square whose area no image exceeds; 0 is what RunFile.resolution() says.
        max_aspect: ratio of the sides that longer images are cropped to.
        default_caption: of images without one; "" skips them.
        encode_batch_size: images, prompts or teacher's latents at a time.
        teacher_steps: solver steps for each image of a prompt.
        teacher_guidance_scale: of the images of prompts; 1 is no guidance.
        latents_per_prompt: how many images a line of prompts gives.
    Raises: TrainingError for other than one source, and for numbers out of range.
    """

    folder: str = ""
    shards: str = ""
    prompts: str = ""
    cache: str = "cache"
    resolution: int = 0
    max_aspect: float = 2.0
    default_caption: str = ""
    encode_batch_size: int = 8
    teacher_steps: int = 50
    teacher_guidance_scale: float = 7.5
    latents_per_prompt: int = 1

    def __post_init__(self) -> None:
        _require_one(self, "data", "folder", "shards", "prompts")
        for name, least in {"resolution": 0, "encode_batch_size": 1, "latents_per_prompt": 1}.items():
            if getattr(self, name) < least:
                raise TrainingError(
                    f"data.{name} must be {least} or more, got {getattr(self, name)}; leave it out for the usual value."
                )


@dataclass(frozen=True)
class OutputTable:
    """Where the LoRAs go, for example to <folder>/<name>-8steps.safetensors.

    Args:
        folder: of the LoRAs and of the run's own folder.
        name: that the names of both begin with.
    Raises: TrainingError for a name that is no plain file name.
    """

    folder: str
    name: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r'[^/\\:*?"<>|\x00-\x1f\x7f]+', self.name) or self.name.strip(". ") != self.name:
            raise TrainingError(f'output.name must be a plain file name, got {self.name!r}; use for example "my-lora".')

    @property
    def checkpoint_folder(self) -> Path:
        """The folder in which a run of stages keeps its checkpoint."""
        return Path(self.folder, self.name)

    def lora_path(self, num_segments: int | None, is_one_step: bool = False) -> Path:
        """Returns where the LoRA of a stage goes.

        Args:
            num_segments: of the stage; None is plain finetuning.
            is_one_step: whether the stage is for one step; then its segments do not count.
        """
        steps = "" if num_segments is None else f"-{num_segments}step{'s' if num_segments > 1 else ''}"
        steps = ONE_STEP_ENDING if is_one_step else steps
        return Path(self.folder, f"{self.name}{steps}.safetensors")


@dataclass(frozen=True)
class RunFile:
    """A whole run.

    Args:
        model: which model is trained.
        data: what it is trained on.
        training: stages in every detail, or a request with a preset, as the node in ComfyUI has it.
        output: where the LoRAs go.
        precision: of the arithmetic; "" is what suits the device, and stands beside a request only.
    Raises: TrainingError where the weights' dtype does not go with the precision.
    """

    model: ModelTable
    data: DataTable
    training: TrainingConfig | TrainRequest
    output: OutputTable
    precision: str

    def __post_init__(self) -> None:
        dtype, precision = self.model.dtype, self.precision
        if precision and dtype not in ("", "fp32", precision):
            raise TrainingError(
                f"model.dtype {dtype!r} needs training.precision {dtype!r}, got {precision!r}; or leave dtype out."
            )

    @property
    def dtype(self) -> str:
        """The frozen weights' dtype."""
        return self.model.dtype or self.precision

    @property
    def is_by_preset(self) -> bool:
        """Whether the training is a request with a preset, which draws samples on the way."""
        return isinstance(self.training, TrainRequest)

    @property
    def needs_pictures(self) -> bool:
        """Whether something is learnt from pictures; human feedback alone draws its own."""
        asked = self.training
        return not self.is_by_preset or asked.objective != FEEDBACK or bool(asked.perceptual_weight)

    def resolution(self, drawn_at: int) -> int:
        """Returns the side in pixels of the square whose area no image exceeds.

        Where the file does not say it, a run of stages takes 512, with which older runs were begun, and all others `drawn_at`.

        Args:
            drawn_at: the side in pixels of the squares that the model draws.
        """
        is_usual = not self.is_by_preset and not self.model.embedded
        return self.data.resolution or (USUAL_RESOLUTION if is_usual else drawn_at)

    def on(self, device: torch.device) -> "RunFile":
        """Returns the run with the precision that suits a device where the file says none."""
        return self if self.precision else dataclasses.replace(self, precision=usual_precision(device))


def read_run_file(path: Path) -> RunFile:
    """Reads a run's TOML file; relative paths in it start at its folder.

    Raises: TrainingError for a file that cannot be read, unknown or missing names, values of another type or range.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        tables = tomllib.loads(text)
    except OSError as error:
        raise TrainingError(
            f"The run file {path} cannot be read ({error.strerror}); training/launch/example.toml is one."
        ) from error
    except UnicodeDecodeError as error:
        raise TrainingError(f"The run file {path} is not UTF-8 text ({error}); save it as UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise TrainingError(f"The run file {path} is not TOML ({error}); {_remedy(text, error)}.") from error
    kinds = {"model": ModelTable, "data": DataTable, "output": OutputTable}
    strange = tables.keys() ^ {*kinds, "training"}
    if strange or not all(isinstance(table, dict) for table in tables.values()):
        raise TrainingError(f"{path} must have the tables [model], [data], [training] and [output], and has {sorted(tables)}.")
    tables["data"].setdefault("cache", "cache")  # also this one starts at the file's folder
    root = path.resolve().parent
    for name in kinds:
        tables[name] |= {key: _rooted(tables[name][key], root, f"{name}.{key}") for key in tables[name].keys() & PATHS}
    checked = {name: _checked(kind, name, tables[name]) for name, kind in kinds.items()}
    training, precision = _training(tables["training"], checked["output"].name, root)
    return RunFile(training=training, precision=precision, **checked)


def _training(table: Mapping[str, Any], name: str, root: Path) -> tuple[TrainingConfig | TrainRequest, str]:
    """Returns the [training] table, stages in every detail or a request by preset, and its precision."""
    if "preset" not in table and table.get("objective") not in OBJECTIVES:
        config = from_plain(_in_words(table, "cuda_graphs"))
        if config.feedback is not None:
            raise TrainingError(f'Human feedback goes by preset: set objective = "{FEEDBACK}" and a preset.')
        return config, config.precision
    values = {"objective": OBJECTIVES[0], **table}
    precision = values.pop("precision", "")
    _require_dtype("training.precision", precision, "leave it out")
    values = _in_words(values, *SWITCHES)
    if values.get("start_from") not in (None, NONE, UNIFIED):
        values["start_from"] = _rooted(values["start_from"], root, "training.start_from")
    if "name" in values:
        raise TrainingError("training.name is not a setting; the run is called as output.name says.")
    return _checked(TrainRequest, "training", {**values, "name": name}), precision


def _in_words(table: Mapping[str, Any], *switches: str) -> dict[str, Any]:
    """Returns a table with the word of each switch that is true or false."""
    changed = {name: SWITCHES[name][table[name]] for name in switches if isinstance(table.get(name), bool)}
    return {**table, **changed}


def _remedy(text: str, error: tomllib.TOMLDecodeError) -> str:
    """Returns what to do about text that is not TOML, by the line that the error names."""
    place = re.search(r"at line (\d+)", str(error))
    line = text.split("\n")[int(place[1]) - 1] if place else ""
    return BACKSLASHES if "\\" in line else "strings need quotes, see training/launch/example.toml"


def _rooted(value: Any, root: Path, name: str) -> Any:
    """Returns a path that starts at `root` where it is relative; an address, or what is no text, stays as it is.

    Raises: TrainingError for a path with control characters, which are backslashes that TOML took for codes.
    """
    if isinstance(value, str) and re.search(r"[\x00-\x1f\x7f]", value):
        raise TrainingError(f"{name} became {value!r}, with characters that no path has: {BACKSLASHES}.")
    is_path = isinstance(value, str) and value and "://" not in value
    return os.path.normpath(os.path.join(root, os.path.expanduser(value))) if is_path else value


def _checked(kind: type[Table], title: str, values: Mapping[str, Any]) -> Table:
    """Returns the table as its dataclass, every value of the declared type."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    missing = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in values]
    unknown = sorted(values.keys() - fields.keys())
    if missing or unknown:
        raise TrainingError(f"[{title}] lacks {missing} and has unknown {unknown}; there are {', '.join(fields)}.")
    converted = {}
    for name, value in values.items():
        declared = fields[name].type
        accepted = (int, float) if declared is float else declared
        if not isinstance(value, accepted) or isinstance(value, bool) != (declared is bool):
            raise TrainingError(f"{title}.{name} must be {_WORDS[declared]}, got {value!r}.")
        converted[name] = declared(value)
    return kind(**converted)


_WORDS = {str: "text in quotes", int: "a whole number", float: "a number", bool: "true or false"}


def _require_one(table: Any, title: str, *names: str) -> None:
    filled = [name for name in names if getattr(table, name)]
    if len(filled) != 1:
        raise TrainingError(f"[{title}] needs exactly one of {', '.join(names)}, got {', '.join(filled) or 'none'}.")


def _require_dtype(name: str, value: Any, remedy: str) -> None:
    if value not in ("", *PRECISIONS):
        raise TrainingError(f"{name} must be one of {', '.join(PRECISIONS)}, got {value!r}; {remedy}.")
