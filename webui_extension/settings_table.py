"""The panel's settings: one typed table that its controls, the infotext, the API's arguments and the XYZ axes come from."""

import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ..errors import ScheduleError
from ..models.catalog import load_catalog
from ..models.recipe import BY_FILE, Recipe, labels_of
from ..models.sampling_plan import MAX_STEPS
from ..rewards.ranking import noted_title
from ..rewards.table import SCORERS
from ..samplers.timesteps import LAST_TIMESTEP

VARIANTS = {
    "auto": "auto",
    "unified": "unified",
    "n-step": "n-step",
    "cfg": "CFG-preserving",
    "merged": "merged checkpoint",
    "one-step": "one-step checkpoint",
    "other": "other few-step LoRA",
}
UNSORTED = "none"
SCORES = {UNSORTED: "None"} | {scorer_id: kind.title for scorer_id, kind in SCORERS.items()}
SCORE_KEY = "Hyper-SD score"  # in a picture's own infotext, with the scorer's title
START_KEY = "Hyper-SD start"  # in the infotext where the person chose it
MARK = "Hyper-SD variant"  # an infotext that has it was made with the panel on


def recipes() -> dict[str, Recipe]:
    """Returns the other methods' recipes by their names; in a running host a person's own, too, as they stand there now."""
    host_models = sys.modules.get(f"{__package__}.host_models")  # imported by the door alone: this table needs no host
    catalog = host_models.DOWNLOADS.catalog()[0] if host_models else load_catalog()
    return {recipe.name: recipe for recipe in catalog.recipes}


def methods() -> dict[str, str]:
    """Returns the values of the setting method with their labels; of two recipes for one method the later is told apart."""
    by_file = "by the file"
    return {BY_FILE: by_file} | {recipe.name: label for label, recipe in labels_of(recipes().values(), by_file).items()}


@dataclass(frozen=True)
class Spec:
    """One control.

    Args:
        name: of the setting, by which the API calls it.
        default: its value where nothing is given, also for its type.
        label: its name on the page.
        info: the sentences below it on the page.
        low: a slider's lowest value.
        high: a slider's highest value.
        step: a slider's distance from value to value.
        offers: a dropdown's values, each with its label on the page, or what returns them.
        key: its name in the infotext, "" where it stands in none.
        axis: whether an XYZ axis is made of it.
        paste: returns the value for an infotext, None to leave the control as it is.
    """

    name: str
    default: Any
    label: str
    info: str
    low: float = 0
    high: float = 1
    step: float = 0.05
    offers: Mapping[str, str] | Callable[[], Mapping[str, str]] = field(default_factory=dict)
    key: str = ""
    axis: bool = False
    paste: Callable[[Mapping[str, str]], Any] | None = None

    @property
    def kind(self) -> type:
        """bool, int, float or str."""
        return type(self.default)

    @property
    def options(self) -> Mapping[str, str]:
        """A dropdown's values as they are now, each with its label."""
        return self.offers() if callable(self.offers) else self.offers

    @property
    def choices(self) -> tuple[str, ...]:
        """A dropdown's labels."""
        return tuple(self.options.values())

    def read(self, value: Any) -> Any:
        """Returns a value from the page or the API in this setting's type.

        Args:
            value: of any type; a dropdown's may be its label. None stands for the default.
        Raises: ScheduleError saying what was given and what is allowed.
        """
        if value is None:
            return self.default
        if self.kind is bool and isinstance(value, bool):
            return value
        options = self.options
        option = next((option for option, label in options.items() if value in (option, label)), None)
        if option is not None:
            return option
        number = isinstance(value, int | float) and not isinstance(value, bool) and self.kind in (int, float)
        if number and self.low <= value <= self.high and self.kind(value) == value:
            return self.kind(value)
        names = (option if option == label else f"{option} ({label})" for option, label in options.items())
        allowed = {bool: "true or false", str: ", ".join(names)}.get(self.kind, f"{self.low:g} to {self.high:g}")
        raise ScheduleError(f"Hyper-SD, {self.label}: got {value!r}, allowed is {allowed}.")

    def pasted(self, infotext: Mapping[str, str]) -> Any:
        """Returns the value that an infotext has for this control, None where it says nothing about it."""
        if self.paste:
            return self.paste(infotext)
        return infotext.get(self.key, self.default if MARK in infotext else None) if self.key else None


def _steps(infotext: Mapping[str, str]) -> int | None:
    steps = int(infotext.get("Steps", 0)) if MARK in infotext else 0
    return steps if 1 <= steps <= MAX_STEPS else None


def _off(present: str) -> Callable[[Mapping[str, str]], bool | None]:
    """Returns a paste function that switches a recommendation off where the infotext has the number itself under a key."""
    return lambda infotext: False if present in infotext else None


def _start(infotext: Mapping[str, str]) -> Any:
    """Returns the start that the image was made with; 0 where the file's own was, None where the sampler was another one."""
    return infotext.get(START_KEY, 0 if MARK in infotext or "Hyper-SD eta" in infotext else None)


def _scorer(infotext: Mapping[str, str]) -> str | None:
    """Returns the title of the scorer that the image was scored by, None where it was not, or by one that is not known."""
    title = noted_title(str(infotext.get(SCORE_KEY, "")))
    return title if title in SCORES.values() else None


def _setting(default: Any, label: str, info: str, **more: Any) -> Any:
    return field(default=default, metadata={"spec": (label, info, more)})


@dataclass(frozen=True)
class Settings:
    """What a person chose. The order of the fields is the order of the page's values and of a plain list in the API."""

    enabled: bool = _setting(
        False, "Enable", "Chooses and activates the LoRA; the prompt stays as it is.", paste=lambda infotext: MARK in infotext
    )
    steps: int = _setting(
        4, "Hyper-SD steps",
        "1 to 16. 4 is a good start, 8 gives more detail; from 9 on CFG and negative prompts work.",
        low=1, high=MAX_STEPS, step=1, axis=True, paste=_steps,
    )  # fmt: skip
    variant: str = _setting(
        "auto", "Variant",
        "auto: the file made for that many steps. unified: one file for 1 to 8. n-step: a file for exactly 2, 4 or 8. "
        "CFG-preserving: for negative prompts. The checkpoints have Hyper-SD, or the method under More, inside. "
        "other few-step LoRA: the one in the prompt; one that nobody knows keeps your settings.",
        offers=VARIANTS, key=MARK, axis=True,
    )  # fmt: skip
    strength: float = _setting(
        0.0, "LoRA strength",
        "0 is auto: what the file is meant for. 0.7 to 0.9 when pictures look burnt or another LoRA's style is lost.",
        high=2, key="Hyper-SD strength", axis=True,
    )  # fmt: skip
    hires_strength: float = _setting(
        0.0, "LoRA strength, hires pass", "0: as in the first pass. Lower it when the second pass overdoes textures.",
        high=2, key="Hyper-SD hires strength", axis=True,
    )  # fmt: skip
    recommended: bool = _setting(
        True, "Apply recommended settings",
        "On: steps above, sampler, schedule type and CFG are set when the image is made. Off: yours are used.",
        paste=_off(MARK),
    )  # fmt: skip
    auto_eta: bool = _setting(
        True, "Recommended eta", "On: eta follows the steps. Off: the slider is used.", paste=_off("Hyper-SD eta")
    )
    eta: float = _setting(
        0.3, "Eta",
        "0 to 1: 0 = deterministic, 1 = fully stochastic. Lower it when images look restless, raise it when they look flat. "
        "No effect at 1 step, nor where there are as many segments as steps.",
        key="Hyper-SD eta", axis=True,
    )  # fmt: skip
    segments: int = _setting(
        0, "Segments",
        "0 is auto. Segments the LoRA was distilled on: 1 for the unified LoRA and TCD's, for an n-step LoRA its steps.",
        high=50, step=1, key="Hyper-SD segments", axis=True,
    )  # fmt: skip
    start_timestep: int = _setting(
        0, "Start timestep",
        "0 follows the file; the authors' own is 999. Lower makes a single step cleaner, but below 700 it invents less and "
        "looks paler. Try 800 with the released unified LoRA at 1 step. For SD1.5 and SDXL with the sampler Hyper-SD TCD.",
        high=LAST_TIMESTEP, step=1, key=START_KEY, axis=True, paste=_start,
    )  # fmt: skip
    sort_by: str = _setting(
        UNSORTED, "Sort by score",
        "The best picture comes first, and every infotext has its score: draw many, keep the best. It counts without Enable, "
        "too. Those that begin with demo model come with the pack and know its drawings alone; the tab Hyper-SD models has "
        "the others' files.",
        offers=SCORES, key=SCORE_KEY, paste=_scorer,
    )  # fmt: skip
    method: str = _setting(
        BY_FILE, "Method",
        "How another few-step LoRA of the prompt, or a merged checkpoint, was distilled. by the file: known files bring their "
        "own. Choose one for a merge, for a LoRA that nobody knows, or where a file's name says the wrong one.",
        offers=methods, key="Hyper-SD method", axis=True,
    )  # fmt: skip


def _spec(item: Any) -> Spec:
    label, info, more = item.metadata["spec"]
    return Spec(item.name, item.default, label, info, **more)


TABLE = tuple(_spec(item) for item in fields(Settings))
KEYS = tuple(spec.key for spec in TABLE if spec.key)


def read_settings(values: Sequence[Any], chosen: Mapping[str, Any]) -> Settings:
    """Returns the settings of one image.

    Args:
        values: in the table's order; missing ones at the end are defaults. Where the first is an object, it names settings.
        chosen: values of XYZ axes by the settings' names, which count before all others.
    Raises: ScheduleError naming the first value that is not allowed, or a name that no setting has.
    """
    given = _by_name(values) | dict(chosen)
    if "eta" in chosen:
        given["auto_eta"] = False
    if {"steps", "variant", "strength", "hires_strength", "method"} & set(chosen):
        given["enabled"] = True  # an axis that changed nothing would only waste a grid
    return Settings(**{spec.name: spec.read(given.get(spec.name)) for spec in TABLE})


def _by_name(values: Sequence[Any]) -> dict[str, Any]:
    """Returns values by the settings' names.

    The hosts lay an API request's arguments over the page's defaults, and over the values of the request's infotext where it
    has one. So behind an object these follow, and count where the object says nothing, as they do behind a short list.
    """
    given = {spec.name: value for spec, value in zip(TABLE, values, strict=False)}
    if not isinstance(given.get("enabled"), Mapping):
        return given
    named, known = given.pop("enabled"), [spec.name for spec in TABLE]
    unknown = next((name for name in named if name not in known), None)
    if unknown is not None:
        near = difflib.get_close_matches(str(unknown), known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ScheduleError(f"Hyper-SD has no setting {unknown!r}{hint} The settings are {', '.join(known)}.")
    if named.get("eta") is not None:
        given["auto_eta"] = False  # who names an eta wants it
    return given | named
