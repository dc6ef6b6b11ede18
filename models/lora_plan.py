"""Which Hyper-SD LoRA to use for a number of steps, how strongly, and how to sample with it."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from ..errors import ScheduleError, UnsupportedModelError
from ..samplers.timesteps import hyper_sd_timesteps
from .catalog import Entry, load_catalog
from .embedded import EMBEDDED
from .families import FAMILIES, title_of

VARIANTS = ("auto", "unified", "n-step", "cfg", "merged")
# "derived" follows from what the files were distilled for and how the sampler works; nobody has published or measured it.
SOURCES = ("released recipe", "field practice", "measured here", "derived")
MAX_STEPS = 16
MIN_CFG_STEPS = 3  # field practice with the 8-step LoRA for guidance
FIELD_CFG = 3.5  # field practice below its 8 steps; the authors give 5 to 8 for 8 and 12 steps

# The authors' examples have eta 1 and lower it at more steps, without numbers; TCD's usual value is 0.3. Between them, a line.
UNIFIED_ETA = {1: 1.0, 2: 1.0, 3: 0.9, 4: 0.8, 5: 0.6, 6: 0.5, 7: 0.4, 8: 0.3}

# (model, variant, steps) -> what was measured: strength, eta, num_segments or cfg; and "reason", the evidence in a sentence.
# The model is a family, or EMBEDDED, whose LoRAs are not the released ones: its numbers say nothing certain about those.
_LOWER = "Measured on this model: nearest to its own 25-step pictures; strength 1 is behind by two standard errors or more."
MEASURED: dict[tuple[str, str, int], dict[str, Any]] = {
    (EMBEDDED, "unified", 1): {"strength": 0.75, "reason": _LOWER},
    **{(EMBEDDED, "unified", steps): {"strength": 0.75, "eta": 1.0, "reason": _LOWER} for steps in (2, 3, 4)},
}


@dataclass(frozen=True)
class LoraPlan:
    """A LoRA and how to sample with it.

    Args:
        family: a key of FAMILIES.
        variant: one of VARIANTS but "auto".
        steps: model evaluations.
        entry_id: of the catalogue, None where the checkpoint has Hyper-SD inside.
        file: its name, None where the checkpoint has Hyper-SD inside.
        strength: for the file as it was released, 0 without one.
        num_segments: for hyper_sd_timesteps and sample_tcd.
        eta: share of fresh noise, from 0 to 1.
        cfg: guidance, 1 is off.
        grid: "tcd"; "trailing", whose widest gaps the steps beyond num_segments divide; or "default", the host's for the model.
        sampler: "hyper_sd_tcd" or "euler".
        guidance: FLUX's distilled guidance, None elsewhere.
        start_timestep: the grid's first.
        reason: a sentence for people.
        source: one of SOURCES.
    """

    family: str
    variant: str
    steps: int
    entry_id: str | None
    file: str | None
    strength: float
    num_segments: int
    eta: float
    cfg: float
    grid: str
    sampler: str
    guidance: float | None
    start_timestep: int
    reason: str
    source: str

    def timesteps(self) -> list[int] | None:
        """Returns the grid, strictly decreasing from start_timestep; None where it is the host's own."""
        if self.grid == "default":
            return None
        return hyper_sd_timesteps(self.steps, self.num_segments, start_timestep=self.start_timestep)

    def __str__(self) -> str:
        parts = [f"{self.file}, strength {self.strength:g}" if self.file else f"no LoRA ({self.variant} checkpoint)"]
        parts += [f"{self.steps} step{'s' * (self.steps > 1)}", self.sampler, f"{self.grid} grid"]
        if self.grid != "default":
            parts += [f"{self.num_segments} segment{'s' * (self.num_segments > 1)}", f"eta {self.eta:g}"]
        parts += [f"CFG {self.cfg:g}"] + ([f"guidance {self.guidance:g}"] if self.guidance else [])
        return f"{', '.join(parts)}. {self.reason} ({self.source})"


def plan(family: str, steps: int, variant: str = "auto") -> LoraPlan:
    """Returns the LoRA for a number of steps, with its settings and the reason for them.

    "auto" takes the authors' file for exactly 2, 4 or 8 steps, the unified LoRA for 1, 3, 5, 6, 7, and the LoRA for guidance
    from 9 on. "merged" is for checkpoints that have Hyper-SD inside.

    Args:
        family: a key of FAMILIES.
        steps: model evaluations, 1 to 16.
        variant: one of VARIANTS.
    Raises: ScheduleError for a step count, UnsupportedModelError for a family or variant that no file exists for.
    """
    if family not in FAMILIES:
        titles = ", ".join(known.title for known in FAMILIES.values())
        raise UnsupportedModelError(f"There is no Hyper-SD LoRA for {title_of(family)}; there are some for {titles}.")
    title, variants = FAMILIES[family].title, FAMILIES[family].variants
    if variant not in ("auto", *variants):
        raise UnsupportedModelError(
            f"There is no {variant!r} Hyper-SD LoRA for {title}; choose auto or {' or '.join(variants)}."
        )
    _require(f"A plan for {title}", steps, 1, MAX_STEPS, "Hyper-SD is made for few steps")
    variant = _auto(family, steps) if variant == "auto" else variant
    rule = {"unified": _unified, "n-step": _n_step, "cfg": _cfg, "merged": _merged}[variant]
    recommended = _flow(family, variant, steps) if FAMILIES[family].is_flow else rule(family, steps)
    return as_measured(recommended, family)


def as_measured(recommended: LoraPlan, model: str) -> LoraPlan:
    """Returns the plan with what was measured for a model in place of what is recommended.

    Args:
        recommended: the plan.
        model: a key of FAMILIES, or EMBEDDED.
    """
    row = MEASURED.get((model, recommended.variant, recommended.steps))
    return replace(recommended, **row, source="measured here") if row else recommended


def _require(what: str, steps: int, low: int, high: int, remedy: str) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or not low <= steps <= high:
        raise ScheduleError(f"{what} takes {low} to {high} steps, got {steps!r}; {remedy}.")


def _auto(family: str, steps: int) -> str:
    if FAMILIES[family].is_flow:
        return FAMILIES[family].variants[0]
    if steps > 8:
        return "cfg"
    return "n-step" if steps in {entry.steps for entry in _entries(family, "n-step")} else "unified"


@lru_cache(maxsize=16)
def _entries(family: str, kind: str) -> tuple[Entry, ...]:
    """Returns the pack's own files of a kind, fewest steps first."""
    entries = (entry for entry in load_catalog() if (entry.family, entry.kind) == (family, kind))
    return tuple(sorted(entries, key=lambda entry: entry.steps))


def _from(entry: Entry, steps: int, reason: str, source: str = "released recipe", **changes: Any) -> LoraPlan:
    settings = entry.settings
    released = LoraPlan(
        family=entry.family,
        variant=entry.kind,
        steps=steps,
        entry_id=entry.id,
        file=entry.name,
        strength=entry.strength,
        num_segments=entry.num_segments,
        eta=settings.eta,
        cfg=settings.cfg,
        grid=settings.grid,
        sampler=settings.sampler,
        guidance=settings.guidance,
        start_timestep=settings.start_timestep,
        reason=reason,
        source=source,
    )
    return replace(released, **changes)


def _unified(family: str, steps: int) -> LoraPlan:
    entry = _entries(family, "unified")[0]
    _require("The unified LoRA", steps, *entry.step_range, "choose the variant cfg for more")
    reason = f"The authors made this one file for {entry.step_range[0]} to {entry.step_range[1]} steps"
    if steps > 2:
        reason += "; its eta lies between their 1 for few steps and TCD's usual 0.3, and is not measured"
    return _from(entry, steps, f"{reason}.", eta=UNIFIED_ETA[steps])


def _n_step(family: str, steps: int) -> LoraPlan:
    """Exactly the file's steps are its recipe. With more of them every segment is still walked from its start, only in shorter
    jumps, so the file of the next fewer steps is used. The file of more steps would jump across its segments, which cost the
    embedded model nothing at 5 to 7 steps, but a lot at 3."""
    entries = _entries(family, "n-step")
    _require("An n-step LoRA", steps, entries[0].steps, MAX_STEPS, "choose the variant unified for 1")
    entry = [entry for entry in entries if entry.steps <= steps][-1]
    if entry.steps == steps:
        return _from(entry, steps, f"The authors made this file for exactly {steps} steps.")
    reason = f"No file is made for {steps} steps; this one keeps its {entry.num_segments} segments and divides the widest."
    return _from(entry, steps, reason, "derived")


def _cfg(family: str, steps: int) -> LoraPlan:
    low, high = _entries(family, "cfg")
    _require("A LoRA for guidance", steps, MIN_CFG_STEPS, MAX_STEPS, "choose the variant unified for fewer")
    entry = low if steps <= low.steps else high
    if steps == entry.steps:
        reason = f"The authors made this file for {steps} steps at CFG 5 to 8."
        return _from(entry, steps, reason)
    # Artists sample these by DDIM on the trailing grid whatever the steps: one segment a step.
    if entry is low:
        reason = f"Made for {entry.steps} steps; artists use it from {MIN_CFG_STEPS} on, at a lower CFG."
        return _from(entry, steps, reason, "field practice", num_segments=steps, cfg=FIELD_CFG)
    reason, source = f"Made for {entry.steps} steps, the nearest there is to {steps}.", "derived"
    if steps == 14:
        reason, source = "Made for 12 steps; artists find that it wants about 14.", "field practice"
    return _from(entry, steps, reason, source, num_segments=steps)


def _flow(family: str, variant: str, steps: int) -> LoraPlan:
    entry = next(entry for entry in _entries(family, variant) if entry.steps >= steps)
    if entry.steps == steps:
        return _from(entry, steps, f"The authors made this file for {steps} steps.")
    reason = f"Made for {entry.steps} steps, the next file above {steps}"
    rough = "; so few steps may leave the picture rough" if steps <= entry.steps // 2 else ""
    return _from(entry, steps, f"{reason}{rough}.", "derived")


def _merged(family: str, steps: int) -> LoraPlan:
    entry = _entries(family, "unified")[0]  # how the merged LoRA is sampled is the unified LoRA's way
    _require("A checkpoint with Hyper-SD inside", steps, *entry.step_range, "choose 4, which is usual")
    reason = "Hyper-SD is in the checkpoint already, so no LoRA is added; 4 steps are usual"
    if family == "sdxl":
        reason += ", at 1024x1024, with this sampler or the host's DPM++ SDE and Karras"
    source = "field practice" if (family, steps) == ("sdxl", 4) else "derived"
    changes: dict[str, Any] = {"variant": "merged", "entry_id": None, "file": None, "strength": 0.0, "cfg": 2.0}
    return _from(entry, steps, f"{reason}.", source, eta=UNIFIED_ETA[steps], **changes)
