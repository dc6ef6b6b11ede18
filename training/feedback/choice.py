"""Which scorers a request for human feedback learns from, and which one watches: from its words to ids."""

from collections.abc import Collection
from typing import Protocol

from ...errors import TrainingError
from ...rewards.table import MY_TASTE, SCORERS
from ...samplers.timesteps import ONE_STEP_START
from ..words import AUTO, NONE
from .settings import FeedbackSettings

REWARD, SECOND, HELD_OUT = "reward", "second_reward", "held_out_reward"
SCORER_CHOICES = {
    REWARD: (AUTO, *SCORERS), SECOND: (AUTO, NONE, *SCORERS), HELD_OUT: (AUTO, NONE, *SCORERS),
}  # fmt: skip
# The rewards of other models are the paper's: Hyper-SD, arXiv 2404.13686, section 3.3.
EMBEDDED_REWARDS, PAPERS_REWARDS = ("embedded_match", "embedded_quality"), ("image_reward", "aesthetic")
# A person's taste knows nothing of what was asked for: at the usual brake and rate the demo model's match score falls until the
# run ends itself (docs/benchmarks.md, "A taste from votes").
TASTE_BRAKE, TASTE_RATE = 20.0, 0.4
WATCHERS = ("pick_score", "hps", "clip")  # best first, where "auto" finds their files


class Asked(Protocol):
    """What a person asks of human feedback.

    Args:
        reward: an id, or "auto".
        second_reward: an id, "none" or "auto".
        held_out_reward: the same; "auto" takes one whose files are there, and none where there is no such.
        perceptual_weight: of the perceptual term.
    """

    reward: str
    second_reward: str
    held_out_reward: str
    perceptual_weight: float


def feedback_of(request: Asked, *, is_embedded: bool, start_steps: int, ready: Collection[str]) -> FeedbackSettings:
    """Returns the settings of a request: the student draws as the LoRA to start from is used.

    Args:
        request: what a person asks for.
        is_embedded: whether the model that ships with the pack is trained.
        start_steps: that the LoRA is made for, 1 for any number.
        ready: ids of the scorers whose files are there.
    Raises: TrainingError where one scorer is named twice.
    """
    rewards, held_out = scorers_of(request, is_embedded, ready)
    drawn = {} if start_steps == 1 else {"steps": (start_steps,), "num_segments": start_steps}
    weights = {"instance_weight": request.perceptual_weight}
    if MY_TASTE in rewards:
        weights["brake_weight"] = TASTE_BRAKE
    return FeedbackSettings(rewards, held_out, start_timestep=ONE_STEP_START, **weights, **drawn)


def rate_of(settings: FeedbackSettings, usual: float) -> float:
    """Returns the learning rate of a feedback.

    Args:
        settings: of the feedback.
        usual: the rate of the preset.
    """
    return TASTE_RATE * usual if MY_TASTE in settings.rewards else usual


def scorers_of(request: Asked, is_embedded: bool, ready: Collection[str]) -> tuple[tuple[str, ...], str]:
    """Returns the ids of the scorers that are learnt from, and that of the held-out one, "" for none.

    Args:
        request: what a person asks for.
        is_embedded: whether the model that ships with the pack is trained.
        ready: ids of the scorers whose files are there.
    Raises: TrainingError where one scorer is named twice.
    """
    reward, second_reward, held_out_reward = request.reward, request.second_reward, request.held_out_reward
    first, second = EMBEDDED_REWARDS if is_embedded else PAPERS_REWARDS
    own = first if reward == AUTO else reward
    if second_reward == AUTO:
        second_reward = NONE if is_embedded or reward != AUTO else second
    rewards = tuple(name for name in (own, second_reward) if name != NONE)
    if held_out_reward == AUTO:
        watchers = EMBEDDED_REWARDS if is_embedded else WATCHERS
        held_out_reward = next((name for name in watchers if name in ready and name not in rewards), NONE)
    if len({*rewards, held_out_reward}) <= len(rewards):
        raise TrainingError(
            f"Each scorer has one part, got reward {own}, second_reward {second_reward}, held_out_reward {held_out_reward}; "
            f'name each once, or use "{NONE}" for the second and the held-out one.'
        )
    return rewards, "" if held_out_reward == NONE else held_out_reward
