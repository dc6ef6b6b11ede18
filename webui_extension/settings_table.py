"""The panel's settings: one typed table that its controls, the infotext, the API's arguments and the XYZ axes come from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ..errors import ScheduleError
from ..models.lora_plan import MAX_STEPS

VARIANTS = {
    "auto": "auto",
    "unified": "unified",
    "n-step": "n-step",
    "cfg": "CFG-preserving",
    "merged": "merged checkpoint",
    "one-step": "one-step checkpoint",
}
MARK = "Hyper-SD variant"  # an infotext that has it was made with the panel on


@dataclass(frozen=True)
class Spec:
    """One control.

    Args: label, info: for people; low, high, step: of a slider; choices: of a dropdown; axis: whether an XYZ axis is made of
        it; key: in the infotext, "" for none; paste: infotext -> value, None to leave the control as it is.
    """

    name: str
    default: Any
    label: str
    info: str
    low: float = 0
    high: float = 1
    step: float = 0.05
    choices: tuple[str, ...] = ()
    key: str = ""
    axis: bool = False
    paste: Callable[[Mapping[str, str]], Any] | None = None

    @property
    def kind(self) -> type:
        """bool, int, float or str."""
        return type(self.default)

    def read(self, value: Any) -> Any:
        """Returns a value from the page or the API in this setting's type; None is the default.

        Raises: ScheduleError saying what was given and what is allowed.
        """
        if value is None:
            return self.default
        if self.kind is bool and isinstance(value, bool):
            return value
        if self.kind is str and value in self.choices:
            return value
        number = isinstance(value, int | float) and not isinstance(value, bool) and self.kind in (int, float)
        if number and self.low <= value <= self.high and self.kind(value) == value:
            return self.kind(value)
        allowed = {bool: "true or false", str: ", ".join(self.choices)}.get(self.kind, f"{self.low:g} to {self.high:g}")
        raise ScheduleError(f"Hyper-SD, {self.label}: got {value!r}, allowed is {allowed}.")

    def pasted(self, infotext: Mapping[str, str]) -> Any:
        """Returns the value an infotext has for this control, None where it says nothing about it."""
        if self.paste:
            return self.paste(infotext)
        return infotext.get(self.key, self.default if MARK in infotext else None) if self.key else None


def _steps(infotext: Mapping[str, str]) -> int | None:
    steps = int(infotext.get("Steps", 0)) if MARK in infotext else 0
    return steps if 1 <= steps <= MAX_STEPS else None


def _off(present: str) -> Callable[[Mapping[str, str]], bool | None]:
    """An image is made again from its own numbers, not from what would be recommended for them today."""
    return lambda infotext: False if present in infotext else None


def _setting(default: Any, label: str, info: str, **more: Any) -> Any:
    return field(default=default, metadata={"spec": (label, info, more)})


@dataclass(frozen=True)
class Settings:
    """What a person chose; the order of the fields is the order of the API's arguments."""

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
        "CFG-preserving: for negative prompts. The checkpoints have Hyper-SD inside.",
        choices=tuple(VARIANTS.values()), key=MARK, axis=True,
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


def _spec(item: Any) -> Spec:
    label, info, more = item.metadata["spec"]
    return Spec(item.name, item.default, label, info, **more)


TABLE = tuple(_spec(item) for item in fields(Settings))
KEYS = tuple(spec.key for spec in TABLE if spec.key)


def read_settings(values: Sequence[Any], chosen: Mapping[str, Any]) -> Settings:
    """Returns the settings of one image.

    Args: values: in the table's order, missing ones at the end being defaults; chosen: by name, from XYZ axes.
    Raises: ScheduleError naming the first value that is not allowed.
    """
    given = {spec.name: value for spec, value in zip(TABLE, values, strict=False)} | dict(chosen)
    if "eta" in chosen:
        given["auto_eta"] = False
    if {"steps", "variant", "strength", "hires_strength"} & set(chosen):
        given["enabled"] = True  # an axis that changed nothing would only waste a grid
    return Settings(**{spec.name: spec.read(given.get(spec.name)) for spec in TABLE})


def variant_key(label: str) -> str:
    """Returns the plan's name of a variant's label."""
    return next(key for key, known in VARIANTS.items() if known == label)
