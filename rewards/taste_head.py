"""A head on frozen features of pictures that learns from votes which of two pictures a person likes: logistic regression."""

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..errors import RewardError

STRENGTHS = (1.0, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)  # of the regularisation that are tried
FOLDS = 5
FEWEST = 10  # votes, below which there is nothing to learn
STEPS, CLOSE = 30, 1e-8  # of Newton's method, which takes about six
SEED = 0  # of the folds
SMALLEST = 1e-6  # deviation of a feature that tells pictures apart


@dataclass(frozen=True)
class Head:
    """What a person likes, as numbers: score = weight . (features - mean) / deviation.

    Args:
        mean: of the features over the pictures that were seen, float64 [width].
        deviation: how far the features of the two pictures of a vote lie apart, as root mean square, [width].
        weight: of the standardised features; the scores of the pictures that were seen have a deviation of 1.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    weight: torch.Tensor

    def score(self, features: torch.Tensor) -> torch.Tensor:
        """Returns the scores [count] of features [count, width]."""
        return ((features - self.mean) / self.deviation) @ self.weight


@dataclass(frozen=True)
class Learnt:
    """A head, and how well heads like it foresee votes that they have not learnt from.

    Args:
        head: learnt from all votes.
        right: for each vote, whether a head that has not seen its pictures gives the winner the higher score.
        strength: of the regularisation, chosen by cross-validation.
    """

    head: Head
    right: tuple[bool, ...]
    strength: float


def learn_head(winners: torch.Tensor, losers: torch.Tensor, groups: Sequence[Hashable]) -> Learnt:
    """Learns a head from votes: the mean of -log sigmoid(score of the winner - score of the loser), regularised.

    The strength of the regularisation is the one with the least loss in cross-validation. Which votes are foreseen is found in
    an outer cross-validation that chooses the strength anew without the votes that it foresees. The same votes in the same
    order always give the same head.

    Source: Bradley and Terry, Biometrika 39 (1952), with the strengths as a linear function of features.
    Args:
        winners: features of the picture that was liked better, [votes, width].
        losers: features of the other one.
        groups: of each vote: votes whose pictures may be the same have the same one, for example their prompt.
    Raises: RewardError for fewer votes than 10, or fewer groups than 5.
    """
    if len(groups) < FEWEST or len(set(groups)) < FOLDS:
        raise RewardError(
            f"A taste is learnt from {FEWEST} votes on {FOLDS} names or more, got {len(groups)} votes on {len(set(groups))}; "
            "vote on more pairs. Ties and skipped pairs do not count."
        )
    winners, losers = winners.double(), losers.double()
    folds, right = folds_of(groups), torch.zeros(len(groups), dtype=torch.bool)
    for fold in range(FOLDS):
        seen, held = folds != fold, folds == fold
        head = _fitted(winners[seen], losers[seen], _best_strength(winners[seen], losers[seen], folds[seen]))
        right[held] = head.score(winners[held]) > head.score(losers[held])
    strength = _best_strength(winners, losers, folds)
    return Learnt(_fitted(winners, losers, strength), tuple(right.tolist()), strength)


def folds_of(groups: Sequence[Hashable]) -> torch.Tensor:
    """Returns a number from 0 to 4 for each vote, int [votes]; votes of one group have the same one."""
    names = sorted(set(groups), key=str)
    random.Random(SEED).shuffle(names)
    fold = {name: place % FOLDS for place, name in enumerate(names)}
    return torch.tensor([fold[group] for group in groups])


def _best_strength(winners: torch.Tensor, losers: torch.Tensor, folds: torch.Tensor) -> float:
    """Returns the strength with the least loss on held-out votes.

    Args:
        winners: features, [votes, width].
        losers: the same.
        folds: of each vote; each of the numbers that occur is held out once.
    """
    losses = torch.zeros(len(STRENGTHS), dtype=torch.float64)
    for fold in folds.unique():
        seen, held = folds != fold, folds == fold
        deviation = _statistics(winners[seen], losers[seen])[1]
        learnt, kept = ((winners[rows] - losers[rows]) / deviation for rows in (seen, held))
        weight = None
        for place, strength in enumerate(STRENGTHS):
            weight = _newton(learnt, strength, weight)
            losses[place] += F.softplus(-kept @ weight).sum()
    return STRENGTHS[int(losses.argmin())]


def _fitted(winners: torch.Tensor, losers: torch.Tensor, strength: float) -> Head:
    mean, deviation = _statistics(winners, losers)
    weight = _newton((winners - losers) / deviation, strength)
    scores = ((torch.cat([winners, losers]) - mean) / deviation) @ weight
    return Head(mean, deviation, weight / scores.std().clamp(min=SMALLEST))


def _statistics(winners: torch.Tensor, losers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and deviation [width] as a Head has them; a feature that is never different is left as it is.

    What tells prompts apart tells nothing of a taste, so it is no part of the deviation.
    """
    deviation = (winners - losers).square().mean(0).sqrt()
    return torch.cat([winners, losers]).mean(0), torch.where(deviation > SMALLEST, deviation, 1)


def _newton(differences: torch.Tensor, strength: float, start: torch.Tensor | None = None) -> torch.Tensor:
    """Returns the weight [width] with the least mean of softplus(-differences . weight) + strength * width / 2 * |weight|^2.

    With fewer votes than features the weight is a sum of the differences, which is found in the smaller space.

    Args:
        differences: of the winner's and the loser's standardised features, float64 [votes, width].
        strength: of the regularisation.
        start: where to begin; None for zero.
    """
    votes, width = differences.shape
    basis = torch.linalg.qr(differences.T)[0] if votes < width else None
    rows = differences if basis is None else differences @ basis
    weight = rows.new_zeros(rows.shape[1]) if start is None else (start if basis is None else basis.T @ start)
    pull = strength * width
    for _ in range(STEPS):
        wrong = torch.sigmoid(-rows @ weight)
        slope = pull * weight - rows.T @ wrong / votes
        curve = (rows.T * (wrong * (1 - wrong) / votes)) @ rows
        curve.diagonal().add_(pull)
        step = torch.linalg.solve(curve, slope)
        weight = weight - step
        if float(step.norm()) <= CLOSE * max(float(weight.norm()), CLOSE):
            break
    return weight if basis is None else basis @ weight
