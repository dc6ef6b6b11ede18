"""Which arm people like better: win rates of each two arms, and strengths of many, both with intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ..errors import EvaluationError
from .comparison import Comparison
from .intervals import Interval, Share, bootstrap, percentiles, resamples_of
from .vote_file import Ballot
from .votes import TIE, counted

RESAMPLES = 1000
PRIOR = 0.5  # votes each way that every two arms have in advance, so that an arm that always wins has a finite strength
NAN = float("nan")


@dataclass(frozen=True)
class Meeting:
    """What people said when they saw two arms.

    Args:
        one: an arm.
        other: the other arm.
        wins: answers for the one.
        losses: answers for the other.
        ties: answers that neither is better.
        over_prompts: the bootstrap interval of the one's share when prompts are drawn anew with all their votes.
    """

    one: str
    other: str
    wins: int
    losses: int
    ties: int
    over_prompts: Interval

    @property
    def share(self) -> Share:
        """How often the one won; a tie is half a win. Its Wilson interval takes each vote for independent."""
        return Share(self.wins + self.ties / 2, self.wins + self.losses + self.ties)

    @property
    def interval(self) -> Interval:
        """The wider ends of both intervals: several people's votes on one picture are no independent ones."""
        ends = [interval for interval in (self.share.interval, self.over_prompts) if not math.isnan(interval.low)]
        return Interval(min(low for low, _ in ends), max(high for _, high in ends))


@dataclass(frozen=True)
class Strength:
    """How strong an arm is beside the mean of all, in the Bradley-Terry model.

    Args:
        arm: its name.
        value: P(i wins over j) = 1 / (1 + exp(value_j - value_i)); the values of all arms have the mean 0.
        interval: from a bootstrap over prompts; not a number where all prompts gave the same answers.
    """

    arm: str
    value: float
    interval: Interval


@dataclass(frozen=True)
class Outcome:
    """One answer that counts.

    Args:
        prompt: of the two pictures; their name where prompts are not known, or all the same.
        arms: of the two pictures, in the comparison's order.
        win: 1 where the first arm's picture is liked better, 0 where the second's is, 0.5 for a tie.
    """

    prompt: str
    arms: tuple[str, str]
    win: float


def outcomes(comparison: Comparison, ballots: Sequence[Ballot]) -> list[Outcome]:
    """Returns every answer that counts, with the arms in the comparison's order; of a repeated pair one answer counts."""
    place = {arm: number for number, arm in enumerate(comparison.arms)}
    several = len({picture.prompt for picture in comparison.pictures.values()}) > 1
    found = []
    for ballot in ballots:
        for number, answer in counted(comparison, ballot).items():
            pair = comparison.pairs[number]
            keys = sorted((pair.left, pair.right), key=lambda key: place[comparison.pictures[key].arm])
            one, other = (comparison.pictures[key] for key in keys)
            prompt = one.prompt if several and one.prompt else one.name
            found.append(Outcome(prompt, (one.arm, other.arm), 0.5 if answer == TIE else float(answer == keys[0])))
    return found


def meetings(arms: Sequence[str], answers: Sequence[Outcome], seed: int = 0) -> list[Meeting]:
    """Returns a meeting for every two arms that met, in the order of the arms.

    Args:
        arms: in order.
        answers: that count.
        seed: of the bootstrap.
    """
    met = []
    for one, other in combinations(arms, 2):
        own = [answer for answer in answers if answer.arms == (one, other)]
        wins = [answer.win for answer in own]
        if own:
            interval = bootstrap(wins, [answer.prompt for answer in own], seed=seed)
            met.append(Meeting(one, other, wins.count(1.0), wins.count(0.0), wins.count(0.5), interval))
    return met


def can_be_ranked(answers: Sequence[Outcome]) -> bool:
    """Returns whether answers put three arms or more on one scale: each met each other one, if only by way of others."""
    groups: list[set[str]] = []
    for met in {answer.arms for answer in answers}:
        joined = [group for group in groups if group & set(met)]
        groups = [group for group in groups if group not in joined] + [set(met).union(*joined)]
    return len(groups) == 1 and len(groups[0]) > 2


def strengths(arms: Sequence[str], answers: Sequence[Outcome], resamples: int = RESAMPLES, seed: int = 0) -> list[Strength]:
    """Returns every arm's Bradley-Terry strength, the strongest first.

    Source: Bradley and Terry, "Rank analysis of incomplete block designs", 1952; fitted as Maystre and Grossglauser do,
    "Fast and accurate inference of Plackett-Luce models", 2015, in the package choix. A tie is half a win for both.

    Args:
        arms: in order; those without an answer are left out.
        answers: that count, of arms that can_be_ranked().
        resamples: of the bootstrap, which draws prompts with all their answers.
        seed: of the bootstrap.
    Raises: EvaluationError without choix.
    """
    arms = [arm for arm in arms if any(arm in answer.arms for answer in answers)]
    place = {arm: number for number, arm in enumerate(arms)}
    prompts = {prompt: number for number, prompt in enumerate(dict.fromkeys(answer.prompt for answer in answers))}
    wins = np.zeros((len(prompts), len(arms), len(arms)))
    for answer in answers:
        one, other = (place[arm] for arm in answer.arms)
        wins[prompts[answer.prompt], one, other] += answer.win
        wins[prompts[answer.prompt], other, one] += 1 - answer.win
    values = _fit(wins.sum(0))
    intervals = [Interval(NAN, NAN)] * len(arms)
    if not (wins == wins[0]).all():  # prompts that are all alike, or a single one, do not tell how far others might differ
        drawn = (row for rows in resamples_of(len(prompts), resamples, seed) for row in rows)
        fits = np.array([_fit(np.tensordot(row, wins, 1)) for row in drawn])
        intervals = [percentiles(fits[:, number], len(prompts)) for number in range(len(arms))]
    found = [Strength(arm, float(values[number]), intervals[number]) for arm, number in place.items()]
    return sorted(found, key=lambda strength: -strength.value)


def _fit(wins: np.ndarray) -> np.ndarray:
    """Returns the strengths, float [arms] with mean 0, of a matrix of wins [winner, loser]."""
    try:
        import choix
    except ImportError as error:
        raise EvaluationError(f"Strengths of more than two arms need choix ({error}); install it: pip install choix") from error
    values = choix.ilsr_pairwise_dense(wins + PRIOR * (1 - np.eye(len(wins))), max_iter=10_000)
    return values - values.mean()
