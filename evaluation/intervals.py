"""Intervals that say how far a measured share or mean can be trusted."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
RESAMPLES = 2000
CHUNK = 2**21  # numbers that are drawn at a time, so that many values need little memory


class Interval(NamedTuple):
    """The ends of an interval; both are nan where nothing was measured."""

    low: float
    high: float


@dataclass(frozen=True)
class Share:
    """How many of `total` cases are of one kind; a tie may count as half a case."""

    count: float
    total: int

    @property
    def value(self) -> float:
        """The share, nan where there is no case."""
        return self.count / self.total if self.total else float("nan")

    @property
    def interval(self) -> Interval:
        """The share's Wilson interval."""
        return wilson(self.count, self.total)


def wilson(successes: float, n: int, level: float = LEVEL) -> Interval:
    """Returns the score interval of a share, which is right for few cases too and never leaves [0, 1].

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    Args:
        successes: 0 to n; halves are ties, with which the interval is a little too wide rather than too narrow.
        n: the number of cases, each independent of the others; without any the interval is all of [0, 1].
        level: the share of such intervals that hold the true share.
    Raises: ValueError for more successes than cases.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie in [0, n], got {successes} of {n}.")
    if not n:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * (share * (1 - share) / n + spread / (4 * n)) ** 0.5
    return Interval(max(centre - half, 0.0), min(centre + half, 1.0))


def resamples_of(count: int, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """Yields how often each of `count` things is in each resample, integers [some, count] until there are `resamples` rows.

    Args:
        count: how many things are drawn from, and drawn each time.
        resamples: how many times they are drawn.
        seed: the same seed gives the same draws.
    """
    generator = np.random.default_rng(seed)
    rows = max(CHUNK // max(count, 1), 1)
    for first in range(0, resamples, rows):
        yield generator.multinomial(count, np.full(count, 1 / count), min(rows, resamples - first))


def percentiles(draws: np.ndarray, count: int, level: float = LEVEL) -> Interval:
    """Returns the interval between two percentiles of a bootstrap's draws, set wider for few groups.

    The plain percentiles cover too little for few groups, since they know nothing of Student's t.
    Source: Hesterberg, "What teachers should know about the bootstrap", 2015, section 4.2 (expanded percentiles).
    Args:
        draws: float [resamples], the statistic of each resample.
        count: groups that were drawn from, at least 2.
        level: the share of such intervals that hold the true value.
    """
    wide = (count / (count - 1)) ** 0.5 * _student(0.5 + level / 2, count - 1)
    tail = NormalDist().cdf(-wide)
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(float(low), float(high))


def bootstrap(
    values: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Returns the bootstrap interval of the mean; its ends are nan for a single group, which says nothing about the width.

    Args:
        values: finite numbers, at least one.
        groups: what each value belongs to, such as its prompt; whole groups are drawn. None takes each value as one of its own.
        level: the share of such intervals that hold the true mean.
        resamples: how many times the groups are drawn.
        seed: the same seed gives the same interval.
    Raises: ValueError for no value, one that is not finite, or another number of groups.
    """
    numbers = np.asarray(values, float)
    if not numbers.size or not np.isfinite(numbers).all():
        raise ValueError(f"bootstrap needs finite values, at least one; got {numbers.size}, some of them not finite or none.")
    if groups is not None and len(groups) != len(numbers):
        raise ValueError(f"bootstrap needs a group for each value, got {len(numbers)} values and {len(groups)} groups.")
    order: dict[Hashable, int] = {}
    places = [order.setdefault(group, len(order)) for group in (range(len(numbers)) if groups is None else groups)]
    sums, counts = np.bincount(places, numbers), np.bincount(places)
    if len(order) < 2:
        return Interval(float("nan"), float("nan"))
    means = [drawn @ sums / (drawn @ counts) for drawn in resamples_of(len(order), resamples, seed)]
    return percentiles(np.concatenate(means), len(order), level)


def _student(share: float, freedom: int) -> float:
    """Returns a quantile of Student's t by its expansion around the normal one; exact for 1 and 2 degrees of freedom.

    Source: Abramowitz and Stegun, 26.7.5.
    """
    if freedom == 1:
        return float(np.tan(np.pi * (share - 0.5)))
    if freedom == 2:
        return (2 * share - 1) * (2 / (4 * share * (1 - share))) ** 0.5
    z = NormalDist().inv_cdf(share)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))
