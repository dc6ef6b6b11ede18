"""What the scores of a plan say of each arm: means with intervals, and differences to the base on the same noise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from ..rewards.aesthetic import CLIP
from ..rewards.table import scorer_kind
from ..rewards.weights import remedy
from .intervals import bootstrap
from .metrics import diversity, paired_kid
from .plan import Arm, Job, Plan
from .scoring import Scores

RETRIEVAL, KID, DIVERSITY, SECONDS = "retrieval", "kid", "diversity", "seconds"
DECIMALS = {"hps": 4}  # of scores that are written with other than 2
BLOCKS = 20  # of prompts, each of which the jackknife leaves out once
MOST_FOR_KID = 2000  # pictures of an arm; the memory grows with the square


class Measure(NamedTuple):
    """A number with the ends of its 95 % interval, which are nan where there are too few prompts for one."""

    value: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Column:
    """Something that is measured.

    Args:
        id: its name in data.
        title: its name for people.
        decimals: how it is written.
        is_better: "higher" or "lower", "" for what is good only near the base's own.
    """

    id: str
    title: str
    decimals: int = 2
    is_better: str = "higher"


@dataclass(frozen=True)
class Row:
    """What was measured of one arm.

    Args:
        arm: the way to draw.
        pictures: how many were looked at.
        measures: by the columns' ids.
        differences: to the base's picture of the same prompt and noise, by the columns' ids; none of the base itself.
        added: the same to the arm without the last LoRA, of an arm with several.
    """

    arm: Arm
    pictures: int
    measures: dict[str, Measure]
    differences: dict[str, Measure] = field(default_factory=dict)
    added: dict[str, Measure] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """A whole table.

    Args:
        plan: what was drawn.
        columns: what was measured.
        rows: one for each arm, in the plan's order.
        notes: sentences that belong to the numbers.
        machine: where it was drawn.
    """

    plan: Plan
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    machine: str = ""

    def row_of(self, arm: Arm) -> Row:
        """Returns the row of an arm."""
        return next(row for row in self.rows if row.arm.slug == arm.slug)


def summarise(
    plan: Plan,
    scores: Scores,
    seconds: Mapping[str, Sequence[tuple[Job, float]]],
    machine: str = "",
    notes: Sequence[str] = (),
) -> Summary:
    """Returns what was measured of each arm.

    Args:
        plan: what was drawn.
        scores: of its pictures.
        seconds: of the pictures of each arm by its slug, as drawing.seconds_of().
        machine: where it was drawn, for people.
        notes: sentences that are put before those of the numbers.
    """
    columns = tuple(_columns(plan, scores))
    rows = tuple(_row(plan, arm, scores, seconds.get(arm.slug, ())) for arm in plan.arms)
    return Summary(plan, columns, rows, (*notes, *_notes(plan, scores)), machine)


def _columns(plan: Plan, scores: Scores) -> list[Column]:
    columns = [Column(metric, scorer_kind(metric).title, DECIMALS.get(metric, 2)) for metric in scores.by_metric]
    columns += [Column(RETRIEVAL, "its own label is nearest, %", 1)] if scores.right else []
    columns += [Column(KID, "KID to the base, x 1000", 1, "lower")] if plan.base and len(plan.arms) > 1 else []
    columns += [Column(DIVERSITY, "diversity", 3, "")] if plan.seeds > 1 else []
    return [*columns, Column(SECONDS, "seconds a picture", 2, "lower")]


def _row(plan: Plan, arm: Arm, scores: Scores, seconds: Sequence[tuple[Job, float]]) -> Row:
    jobs, base, alone = plan.jobs_of(arm), plan.base, plan.without_last(arm)
    prompts = [job.number for job in jobs]
    measures = {name: mean_of(values, prompts) for name, values in by_picture(plan, arm, scores).items()}
    if plan.seeds > 1:
        spreads = diversities(plan, arm, scores)
        measures[DIVERSITY] = mean_of(spreads, range(len(spreads)))
    differences = {}
    if base and arm.slug != base.slug:
        differences = differences_of(plan, arm, base, scores)
        measures[KID] = kid_of(features_of(plan, arm, scores), features_of(plan, base, scores), prompts)
    if seconds:
        taken = [part for _, part in seconds]
        measures[SECONDS] = mean_of(taken, taken)  # those drawn together have the same share, and count as one
    return Row(arm, len(jobs), measures, differences, differences_of(plan, arm, alone, scores) if alone else {})


def differences_of(plan: Plan, arm: Arm, other: Arm, scores: Scores) -> dict[str, Measure]:
    """Returns by how much an arm's pictures score more than another's of the same prompt and noise, by the columns' ids."""
    own, before = by_picture(plan, arm, scores), by_picture(plan, other, scores)
    prompts = [job.number for job in plan.jobs_of(arm)]
    found = {name: mean_of(np.subtract(values, before[name]), prompts) for name, values in own.items()}
    if plan.seeds > 1:
        apart = np.subtract(diversities(plan, arm, scores), diversities(plan, other, scores))
        found[DIVERSITY] = mean_of(apart, range(len(apart)))
    return found


def by_picture(plan: Plan, arm: Arm, scores: Scores) -> dict[str, list[float]]:
    """Returns every score of an arm's pictures, in the order of the plan's jobs; retrieval in per cent."""
    keys = [plan.key(job) for job in plan.jobs_of(arm)]
    found = {metric: [values[key] for key in keys] for metric, values in scores.by_metric.items()}
    return found | ({RETRIEVAL: [100 * scores.right[key] for key in keys]} if scores.right else {})


def features_of(plan: Plan, arm: Arm, scores: Scores) -> torch.Tensor:
    """Returns the features of an arm's pictures, [count, width]."""
    return torch.stack([scores.features[plan.key(job)] for job in plan.jobs_of(arm)])


def diversities(plan: Plan, arm: Arm, scores: Scores) -> list[float]:
    """Returns for each prompt how far the features of its pictures are apart."""
    features = features_of(plan, arm, scores).view(plan.seeds, len(plan.prompts), -1)
    return [diversity(features[:, number], [0] * plan.seeds) for number in range(len(plan.prompts))]


def mean_of(values: Sequence[float], prompts: Sequence[float]) -> Measure:
    """Returns the mean of scores of pictures, with the bootstrap interval over whole prompts."""
    return Measure(float(np.mean(values)), *bootstrap(list(map(float, values)), list(prompts)))


def kid_of(features: torch.Tensor, reference: torch.Tensor, prompts: Sequence[int]) -> Measure:
    """Returns 1000 times the KID between the pictures of two arms, with the interval of a jackknife over blocks of prompts.

    A bootstrap would show the same picture twice, which the kernel takes for likeness.

    Source: Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 11.
    Args:
        features: unit vectors [count, width] of one arm.
        reference: of the other, in the same order.
        prompts: the number of each picture's prompt.
    """
    if len(set(prompts)) < 2:
        return Measure(*[float("nan")] * 3)
    features, reference, numbers = features[:MOST_FOR_KID], reference[:MOST_FOR_KID], torch.tensor(prompts[:MOST_FOR_KID])
    wide = features.shape[1] ** 0.5  # a value of 1 on average, which the kernel of Inception's features is made for
    x, y, blocks = features * wide, reference * wide, numbers % min(BLOCKS, len(set(prompts)))
    value, count = paired_kid(x, y, numbers.tolist()), len(set(blocks.tolist()))
    if count < 3:
        return Measure(1000 * value, float("nan"), float("nan"))
    without = np.array([_without(x, y, numbers, blocks != block) for block in range(count)])
    error = float(((count - 1) / count * np.square(without - without.mean()).sum()) ** 0.5)
    return Measure(1000 * value, 1000 * (value - 1.96 * error), 1000 * (value + 1.96 * error))


def _without(x: torch.Tensor, y: torch.Tensor, numbers: torch.Tensor, left: torch.Tensor) -> float:
    return paired_kid(x[left], y[left], numbers[left].tolist())


def _notes(plan: Plan, scores: Scores) -> list[str]:
    base = plan.base
    notes = [
        f"Brackets hold 95 % intervals: a bootstrap over the {len(plan.prompts)} prompts, for KID a jackknife over blocks of "
        "them. Every way to draw begins with the same noise for a prompt and seed.",
        "Without a LoRA the sampler has no fresh noise (eta 0), which is DDIM; LoRAs are sampled as their own plans say.",
    ]
    if base:
        notes.append(
            f"KID is measured to the pictures of {base.label!r}, on features of {scores.seen_by}. No two pictures of one "
            "prompt are held against each other, since the noise is the same; it may be a little below 0."
        )
    if not scores.knows:
        notes.append(
            f"{scores.seen_by.capitalize()} knows small drawings alone: do not trust KID and diversity. {remedy(CLIP)}"
        )
    if base and len(plan.prompts) * plan.seeds > MOST_FOR_KID:
        notes.append(f"For KID the first {MOST_FOR_KID} pictures of each way to draw were taken.")
    if scores.right:
        notes.append("Retrieval: of all labels of the demo model, the picture's own is the nearest to it by the demo scorer.")
    if plan.seeds > 1:
        notes.append(
            f"Diversity: how far the features of a prompt's {plan.seeds} pictures are apart, from 0 to 2. Spoilt pictures are "
            "apart, too, so more is not better by itself."
        )
    return notes
