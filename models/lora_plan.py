"""Which Hyper-SD LoRA to use for a number of steps, how strongly, and how to sample with it."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from ..errors import ScheduleError, UnsupportedModelError
from ..samplers.timesteps import LAST_TIMESTEP, hyper_sd_timesteps
from .catalog import load_catalog
from .embedded import EMBEDDED
from .entry import Entry
from .families import FAMILIES, title_of

VARIANTS = ("auto", "unified", "n-step", "cfg", "merged")
# "derived" follows from what the files were distilled for and how the sampler works; nobody has published or measured it. The
# last three are of a person's own file; "your choice" is also a start timestep of their own.
SOURCES = ("released recipe", "field practice", "measured here", "derived", "its own training", "your choice", "a guess")
AUTHORS = "The authors made this file"
MAX_STEPS = 16
MIN_CFG_STEPS = 3  # field practice with the 8-step LoRA for guidance
FIELD_CFG = 3.5  # field practice below its 8 steps; the authors give 5 to 8 for 8 and 12 steps

# The authors' examples have eta 1 and lower it at more steps, without numbers; TCD's usual value is 0.3. Between them, a line.
UNIFIED_ETA = {1: 1.0, 2: 1.0, 3: 0.9, 4: 0.8, 5: 0.6, 6: 0.5, 7: 0.4, 8: 0.3}

# (model, variant, steps) -> what was measured: strength, eta, num_segments, cfg or start_timestep; and "reason", the evidence.
# The model is a family, or EMBEDDED, whose LoRAs are not the released ones: its numbers say nothing certain about those.
_LOWER = "Measured on this model: nearest to its own 25-step pictures; strength 1 is behind by two standard errors or more."
MEASURED: dict[tuple[str, str, int], dict[str, Any]] = {
    (EMBEDDED, "unified", 1): {
        "strength": 1.0,
        "start_timestep": 800,
        "reason": "Measured on this model: one step from timestep 800 comes nearer to its own 25-step pictures than from 999.",
    },
    **{(EMBEDDED, "unified", steps): {"strength": 0.75, "eta": 1.0, "reason": _LOWER} for steps in (2, 3, 4)},
}


@dataclass(frozen=True)
class LoraPlan:
    """A LoRA and how to sample with it.

    Args:
        family: a key of FAMILIES.
        variant: one of VARIANTS but "auto".
        steps: model evaluations.
        entry_id: of the catalogue, by the file's content or name; None for a file of no entry, and without a file.
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
        lower = f" from timestep {self.start_timestep}" if self.start_timestep < LAST_TIMESTEP else ""
        parts += [f"{self.steps} step{'s' * (self.steps > 1)}", self.sampler, f"{self.grid} grid{lower}"]
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
    recommended = _merged(family, steps) if variant == "merged" else plan_of(_file_for(family, steps, variant), steps)
    return as_measured(recommended, family)


def plan_of(entry: Entry, steps: int, made: str = AUTHORS) -> LoraPlan:
    """Returns how to sample with one file, also at other steps than it was made for.

    Args:
        entry: a LoRA of a catalogue, or what stands for a file that none lists.
        steps: model evaluations, 1 to 16.
        made: the beginning of the reason, in place of AUTHORS.
    Raises: ScheduleError for a step count.
    """
    _require(f"A plan for {FAMILIES[entry.family].title}", steps, 1, MAX_STEPS, "Hyper-SD is made for few steps")
    rule = _flow if FAMILIES[entry.family].is_flow else {"unified": _unified, "n-step": _n_step, "cfg": _cfg}[entry.kind]
    return rule(entry, steps, made)


def as_measured(recommended: LoraPlan, model: str) -> LoraPlan:
    """Returns the plan with what was measured for a model in place of what is recommended.

    Args:
        recommended: the plan.
        model: a key of FAMILIES, or EMBEDDED.
    """
    row = MEASURED.get((model, recommended.variant, recommended.steps))
    return replace(recommended, **row, source="measured here") if row else recommended


def starting_at(chosen: LoraPlan, start_timestep: int | None) -> LoraPlan:
    """Returns the plan with the first timestep that a person chose, and says so in its reason.

    Args:
        chosen: the plan.
        start_timestep: 1 to 999; 0 or None leaves the plan's own.
    Raises: UnsupportedModelError for a plan on the host's own grid; ScheduleError for another number, and for one that leaves
        too few timesteps for the steps.
    """
    if start_timestep in (0, None):
        return chosen
    if chosen.grid == "default":
        title = FAMILIES[chosen.family].title
        raise UnsupportedModelError(
            f"start_timestep is for SD1.5 and SDXL; on {title} the host's own grid is walked from its start. Set it to 0, got "
            f"{start_timestep}."
        )
    is_whole = isinstance(start_timestep, int) and not isinstance(start_timestep, bool)
    if not is_whole or not 1 <= start_timestep <= LAST_TIMESTEP:
        raise ScheduleError(
            f"start_timestep must be 1 to {LAST_TIMESTEP}, got {start_timestep!r}; 0 takes what the file was made for."
        )
    if start_timestep == chosen.start_timestep:
        return chosen
    source = chosen.source if chosen.source == "a guess" else "your choice"
    reason = f"{chosen.reason} It starts at {start_timestep}, as you chose, in place of {chosen.start_timestep}."
    moved = replace(chosen, start_timestep=start_timestep, reason=reason, source=source)
    moved.timesteps()  # says now, and not while sampling, that they are too few
    return moved


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


def _file_for(family: str, steps: int, variant: str) -> Entry:
    """Returns the released file of a variant for a number of steps.

    With more steps than an n-step file's own every segment is still walked from its start, only in shorter jumps, so the file
    of the next fewer steps is used. The file of more steps would jump across its segments, which cost the embedded model
    nothing at 5 to 7 steps, but a lot at 3.
    """
    entries = _entries(family, variant)
    if FAMILIES[family].is_flow:
        return next(entry for entry in entries if entry.steps >= steps)
    if variant == "unified":
        _require("The unified LoRA", steps, *entries[0].step_range, "choose the variant cfg for more")
        return entries[0]
    if variant == "n-step":
        _require("An n-step LoRA", steps, entries[0].steps, MAX_STEPS, "choose the variant unified for 1")
        return [entry for entry in entries if entry.steps <= steps][-1]
    _require("A LoRA for guidance", steps, MIN_CFG_STEPS, MAX_STEPS, "choose the variant unified for fewer")
    low, high = entries
    return low if steps <= low.steps else high


def _unified(entry: Entry, steps: int, made: str) -> LoraPlan:
    low, high = entry.step_range
    reason, source = f"{made} for {low} to {high} steps", "released recipe"
    if not low <= steps <= high:
        reason, source = f"{reason}: set steps to {max(low, min(steps, high))}, others are untried", "derived"
    elif steps > 2:
        reason += "; its eta lies between the authors' 1 for few steps and TCD's usual 0.3, and is not measured"
    return _from(entry, steps, f"{reason}.", source, eta=UNIFIED_ETA.get(steps, UNIFIED_ETA[8]))


def _n_step(entry: Entry, steps: int, made: str) -> LoraPlan:
    if entry.steps == 1:
        return _one_step(entry, steps, made)
    if entry.steps == steps:
        return _from(entry, steps, f"{made} for exactly {steps} steps.")
    reason = f"{made} for {entry.steps} steps"
    if steps > entry.steps:
        reason += f"; its {entry.num_segments} segments are kept, the widest divided."
    else:
        reason += f": set steps to {entry.steps}, since fewer jump across its segments."
    return _from(entry, steps, reason, "derived", num_segments=min(entry.num_segments, steps))


def _one_step(entry: Entry, steps: int, made: str) -> LoraPlan:
    reason = f"{made} for exactly 1 step, from timestep {entry.settings.start_timestep}"
    if steps == 1:
        return _from(entry, steps, f"{reason}.")
    return _from(entry, steps, f"{reason}: set steps to 1, others are untried.", "derived")


def _cfg(entry: Entry, steps: int, made: str) -> LoraPlan:
    if steps == entry.steps:
        cfg = "5 to 8" if entry.settings.cfg == 5 else f"{entry.settings.cfg:g}"
        return _from(entry, steps, f"{made} for {steps} steps at CFG {cfg}.")
    # Artists sample these by DDIM on the trailing grid whatever the steps: one segment a step.
    changes: dict[str, Any] = {"num_segments": steps}
    reason, source = f"{made} for {entry.steps} steps", "derived"
    if entry.steps == 8 and steps < 8:
        reason += f"; artists use it from {MIN_CFG_STEPS} on, at a lower CFG"
        source, changes["cfg"] = "field practice" if steps >= MIN_CFG_STEPS else source, FIELD_CFG
    if (entry.steps, steps) == (12, 14):
        reason, source = f"{reason}; artists find that it wants about 14", "field practice"
    return _from(entry, steps, f"{reason}.", source, **changes)


def _flow(entry: Entry, steps: int, made: str) -> LoraPlan:
    if entry.steps == steps:
        return _from(entry, steps, f"{made} for {steps} steps.")
    rough = "; so few steps may leave the picture rough" if steps <= entry.steps // 2 else ""
    return _from(entry, steps, f"{made} for {entry.steps} steps{rough}.", "derived")


def _merged(family: str, steps: int) -> LoraPlan:
    entry = _entries(family, "unified")[0]  # how the merged LoRA is sampled is the unified LoRA's way
    _require("A checkpoint with Hyper-SD inside", steps, *entry.step_range, "choose 4, which is usual")
    reason = "Hyper-SD is in the checkpoint already, so no LoRA is added; 4 steps are usual"
    if family == "sdxl":
        reason += ", at 1024x1024, with this sampler or the host's DPM++ SDE and Karras"
    source = "field practice" if (family, steps) == ("sdxl", 4) else "derived"
    changes: dict[str, Any] = {"variant": "merged", "entry_id": None, "file": None, "strength": 0.0, "cfg": 2.0}
    return _from(entry, steps, f"{reason}.", source, eta=UNIFIED_ETA[steps], **changes)
