"""A LoRA and how to sample with it, as one plan that both hosts, the command line and the page read."""

from dataclasses import dataclass, replace

from ..errors import ScheduleError, UnsupportedModelError
from ..samplers.schedule import TRAIN_TIMESTEPS
from ..samplers.timesteps import LAST_TIMESTEP, hyper_sd_timesteps, listed_timesteps
from .entry import OTHER
from .families import FAMILIES
from .recipe import Recipe

VARIANTS = ("auto", "unified", "n-step", "cfg", "merged", OTHER)
MAX_STEPS = 16
LISTED = "listed"
# "derived" follows from what the files were distilled for and how the sampler works; nobody has published or measured it. The
# last three are of a person's own file; "your choice" is also a start timestep of their own.
SOURCES = ("released recipe", "field practice", "measured here", "derived", "its own training", "your choice", "a guess")


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
        grid: "tcd"; "trailing", whose widest gaps the steps beyond num_segments divide; "listed", a method's own timesteps; or
            "default", the host's for the model.
        sampler: "hyper_sd_tcd" or "euler".
        guidance: FLUX's distilled guidance, None elsewhere.
        start_timestep: the grid's first.
        reason: a sentence for people.
        source: one of SOURCES.
        listed: the timesteps one by one, where neither grid of num_segments gives them; empty elsewhere.
        to_clean: as samplers.tcd.plan_steps takes it.
        timestep_shift: as samplers.shift.shifted_timestep takes it.
        recipe: the other method's that all this is by, None for Hyper-SD.
        made_for: the exact number of steps that the other method's file was made for, 0 where there is none.
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
    listed: tuple[int, ...] = ()
    to_clean: bool = False
    timestep_shift: float = 1.0
    recipe: Recipe | None = None
    made_for: int = 0

    @property
    def rule(self) -> dict[str, float]:
        """What samplers.tcd.sample_tcd takes of the plan."""
        shared = {"eta": self.eta, "num_segments": self.num_segments}
        return shared | {"to_clean": self.to_clean, "timestep_shift": self.timestep_shift}

    def timesteps(self, denoise: float = 1.0) -> list[int] | None:
        """Returns the grid, strictly decreasing from start_timestep; None where it is the host's own.

        Args:
            denoise: share of the noise to start from; below 1 the grid is cut anew.
        """
        if self.grid == "default":
            return None
        if self.listed:
            return listed_timesteps(self.listed, min(denoise, (self.start_timestep + 1) / TRAIN_TIMESTEPS))
        return hyper_sd_timesteps(self.steps, self.num_segments, denoise, start_timestep=self.start_timestep)

    def __str__(self) -> str:
        parts = [f"{self.file}, strength {self.strength:g}" if self.file else f"no LoRA ({self.variant} checkpoint)"]
        lower = f" from timestep {self.start_timestep}" if self.start_timestep < LAST_TIMESTEP else ""
        grid = f"timesteps {' '.join(map(str, self.timesteps()))}" if self.grid == LISTED else f"{self.grid} grid{lower}"
        parts += [f"{self.steps} step{'s' * (self.steps > 1)}", self.sampler, grid]
        if self.grid != "default":
            parts += [f"{self.num_segments} segment{'s' * (self.num_segments > 1)}", f"eta {self.eta:g}"]
        parts += [f"asked at {self.timestep_shift:g} of the timestep"] if self.timestep_shift != 1 else []
        parts += [f"CFG {self.cfg:g}"] + ([f"guidance {self.guidance:g}"] if self.guidance else [])
        return f"{', '.join(parts)}. {self.reason} ({self.source})"


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


def require_steps(what: str, steps: int, low: int, high: int, remedy: str) -> None:
    """Raises: ScheduleError where a step count is no whole number from low to high.

    Args:
        what: what takes the steps, as the sentence begins.
        steps: the count.
        low: the fewest.
        high: the most.
        remedy: what to do instead.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or not low <= steps <= high:
        raise ScheduleError(f"{what} takes {low} to {high} steps, got {steps!r}; {remedy}.")
