"""How a few-step student is asked for better pictures: the settings of human feedback, checked once."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import TrainingError
from ...samplers.timesteps import LAST_TIMESTEP
from ..checks import require_types


@dataclass(frozen=True)
class FeedbackSettings:
    """How a student is asked for better pictures, and by whom.

    What a score has to reach, and how much it counts beside the others, follows from the pictures that the student draws
    before it learns: rewards of any scale can be mixed, and one that a person has trained is no exception.

    Args:
        rewards: ids of the scorers that are learnt from; may be empty with an instance_weight.
        held_out: id of a scorer that nothing is learnt from. The run ends early where it falls; "" takes none.
        reach: how far above the mean of the student's first scores a score is good enough, in standard deviations of them.
            Higher asks for more, and burns pictures sooner. 2 is that of ImageReward's own training code, relu(2 - r), whose
            scores have mean 0 and deviation 1.
        steps: numbers of steps that the student is drawn with; one of them is drawn each time.
        num_segments: that the student was distilled on.
        start_timestep: of a single step, from noise of deviation 1.
        eta: of the steps, as samplers.tcd.sample_tcd() takes it.
        jitter: how far a picture is moved and scaled before it is scored, as a share of a side: what fools a scorer at exact
            pixels alone gains nothing. 0 is off.
        brake_weight: of the distance to what the student draws without the feedback. 5 was the best of a few trials on the
            embedded model; with less the scores of prompts that were not learnt from rose less.
        instance_weight: of the perceptual term.
        noised_to: (lowest, highest) timestep that a real picture is noised to for the perceptual term.
        check_every: optimizer steps between two looks at the held-out reward.
        check_prompts: how many pictures are looked at, at each number of steps; each has a prompt of its own where there are
            so many. It takes two to tell how far scores lie apart.
        patience: how many looks in a row may find it fallen before the run ends.
    Raises: TrainingError for numbers that are not allowed.
    """

    rewards: tuple[str, ...] = ()
    held_out: str = ""
    reach: float = 2.0
    steps: tuple[int, ...] = (1, 2, 4, 8)
    num_segments: int = 1
    start_timestep: int = LAST_TIMESTEP
    eta: float = 0.3
    jitter: float = 0.1
    brake_weight: float = 5.0
    instance_weight: float = 0.0
    noised_to: tuple[int, int] = (100, 400)
    check_every: int = 25
    check_prompts: int = 8
    patience: int = 2

    def __post_init__(self) -> None:
        require_types(self)
        if not self.rewards and not self.instance_weight:
            raise TrainingError("Feedback needs a reward, or an instance_weight above 0; name a scorer.")
        if len(set(self.rewards)) < len(self.rewards) or self.held_out in self.rewards:
            raise TrainingError(
                f"Each scorer of feedback has one part, got rewards {', '.join(self.rewards)} and held_out {self.held_out!r}; "
                'name each once, and as held_out one that is not learnt from, or "".'
            )
        if not self.steps or min(self.steps) < 1:
            raise TrainingError(f"The steps of feedback must be 1 or more each, got {self.steps}; (1, 2, 4, 8) is usual.")
        for name, (low, high, usual) in _RANGES.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise TrainingError(f"{name} of feedback must lie in [{low:g}, {high:g}], got {value}; {usual:g} is usual.")
        if min(self.steps) < self.num_segments:
            raise TrainingError(
                f"The steps of feedback must be {self.num_segments} or more, as num_segments is, got {self.steps}; draw with "
                "more steps, or take a student of fewer segments."
            )
        low, high = self.noised_to
        if not 0 <= low <= high <= LAST_TIMESTEP:
            raise TrainingError(f"noised_to must be (lowest, highest) of 0 to {LAST_TIMESTEP}, got {self.noised_to}.")


_RANGES = {
    "reach": (-100, 100, 2), "num_segments": (1, 1000, 1), "start_timestep": (1, LAST_TIMESTEP, LAST_TIMESTEP),
    "eta": (0, 1, 0.3),
    "jitter": (0, 0.5, 0.1), "brake_weight": (0, 1e6, 5), "instance_weight": (0, 1e6, 0), "check_every": (1, 2**31, 25),
    "check_prompts": (2, 2**16, 8), "patience": (1, 2**16, 2),
}  # fmt: skip
_LISTS = {"rewards": str, "steps": int, "noised_to": int}


def feedback_to_plain(settings: FeedbackSettings) -> dict[str, Any]:
    """Returns the settings as JSON values."""
    return {name: list(value) if name in _LISTS else value for name, value in dataclasses.asdict(settings).items()}


def feedback_from_plain(values: Any) -> FeedbackSettings:
    """Returns the settings of a JSON or TOML table.

    Raises: TrainingError for unknown names, and values of another type or range.
    """
    known = {field.name for field in dataclasses.fields(FeedbackSettings)}
    if not isinstance(values, Mapping) or values.keys() - known:
        given = sorted(values.keys() - known) if isinstance(values, Mapping) else repr(values)
        raise TrainingError(f"feedback must be a table with some of {', '.join(sorted(known))}, got {given}.")
    lists = {name: _as_tuple(name, values[name], kind) for name, kind in _LISTS.items() if name in values}
    if len(lists.get("noised_to", (0, 0))) != 2:
        given = values["noised_to"]
        raise TrainingError(f"noised_to must be a list of two numbers, got {given!r}; use for example [100, 400].")
    return FeedbackSettings(**{**values, **lists})


def _as_tuple(name: str, value: Any, kind: type) -> tuple:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_list or not all(isinstance(part, kind) and not isinstance(part, bool) for part in value):
        words = "texts in quotes" if kind is str else "whole numbers"
        raise TrainingError(f"{name} of feedback must be a list of {words}, got {value!r}.")
    return tuple(value)
