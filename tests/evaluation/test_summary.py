"""Means, differences and distances of arms, against the same by plain arithmetic."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hyper_sd.evaluation.intervals import bootstrap
from hyper_sd.evaluation.metrics import diversity, paired_kid
from hyper_sd.evaluation.scoring import Scores
from hyper_sd.evaluation.summary import DIVERSITY, KID, RETRIEVAL, SECONDS, Measure, kid_of, mean_of, summarise
from hyper_sd.evaluation.tables import as_markdown
from hyper_sd.tests.evaluation.evaluations import LORA, make_plan

PROMPTS = tuple(f"prompt {number}" for number in range(24))


def fake_scores(plan, shift=2.0):
    """The base at 25 steps scores what its prompt is worth, the LoRA `shift` more; features follow the same."""
    generator = torch.Generator().manual_seed(0)
    scores = Scores({"embedded_match": {}}, seen_by="a test")
    worth = torch.randn(len(plan.prompts), generator=generator) * 10
    for arm in plan.arms:
        for job in plan.jobs_of(arm):
            better = shift if arm.loras else -5.0 if arm.steps == 1 else 0.0
            noise = 0.1 * float(torch.randn(1, generator=generator))
            scores.by_metric["embedded_match"][plan.key(job)] = float(worth[job.number - 1]) + better + noise
            own = torch.Generator().manual_seed(job.noise_seed)
            vector = torch.randn(16, generator=own) + (0.5 if arm.steps == 1 else 0.0)
            scores.features[plan.key(job)] = torch.nn.functional.normalize(vector, dim=0)
            scores.right[plan.key(job)] = float(job.number % 2)
    return scores


def test_means_and_differences_are_those_of_the_pictures_paired():
    plan = make_plan(PROMPTS)
    scores = fake_scores(plan)
    summary = summarise(plan, scores, {})
    base, few = summary.row_of(plan.arms[1]), summary.row_of(plan.arms[2])
    values = {arm.slug: [scores.by_metric["embedded_match"][plan.key(job)] for job in plan.jobs_of(arm)] for arm in plan.arms}
    assert few.measures["embedded_match"].value == pytest.approx(np.mean(values["few-4-steps"]))
    apart = np.subtract(values["few-4-steps"], values["base-25-steps"])
    prompts = [job.number for job in plan.jobs_of(plan.arms[2])]
    assert few.differences["embedded_match"] == (apart.mean(), *bootstrap(apart.tolist(), prompts))
    assert few.differences["embedded_match"].is_clear
    assert few.differences["embedded_match"].value == pytest.approx(2, abs=0.1)
    # prompts differ far more than the arms: only the pairs show the difference
    assert few.measures["embedded_match"].low < base.measures["embedded_match"].value
    assert few.measures[RETRIEVAL].value == 50
    assert base.differences == {}
    assert KID not in base.measures


def test_kid_of_an_arm_is_that_of_its_pairs_and_0_for_the_same_pictures():
    plan = make_plan(PROMPTS)
    scores = fake_scores(plan)
    summary = summarise(plan, scores, {})
    first, few = summary.row_of(plan.arms[0]).measures[KID], summary.row_of(plan.arms[2]).measures[KID]
    assert few.value == pytest.approx(0, abs=1e-9)
    jobs = [plan.jobs_of(arm) for arm in plan.arms[:2]]
    x, y = (4 * torch.stack([scores.features[plan.key(job)] for job in part]) for part in jobs)
    assert first.value == pytest.approx(1000 * paired_kid(x, y, [job.number for job in jobs[0]]))
    assert first.low > 0
    assert first.low < first.value < first.high


def test_kids_interval_covers_the_value_of_many_pictures():
    """On arms whose distance is known from a great many pictures, the jackknife's interval holds it nearly always."""
    generator = torch.Generator().manual_seed(1)

    def arms(count):
        shared = torch.randn(count, 8, generator=generator)
        return tuple(torch.nn.functional.normalize(shared + shift, dim=1) for shift in (0.0, 0.3))

    truth = kid_of(*arms(2000), list(range(2000))).value
    covered = 0
    for _ in range(40):
        found = kid_of(*arms(60), list(range(60)))
        covered += found.low <= truth <= found.high
    assert covered >= 35


def test_diversity_is_the_mean_over_prompts():
    plan = make_plan(PROMPTS)
    scores = fake_scores(plan)
    jobs = plan.jobs_of(plan.arms[2])
    features = torch.stack([scores.features[plan.key(job)] for job in jobs])
    expected = diversity(features, [job.number for job in jobs])
    row = summarise(plan, scores, {}).row_of(plan.arms[2])
    assert row.measures[DIVERSITY].value == pytest.approx(expected)
    assert row.differences[DIVERSITY].value == pytest.approx(0, abs=1e-6)
    assert DIVERSITY not in summarise(make_plan(PROMPTS, 1), fake_scores(make_plan(PROMPTS, 1)), {}).rows[0].measures


def test_one_prompt_has_values_without_intervals():
    plan = make_plan(("pear",), 1)
    row = summarise(plan, fake_scores(plan), {}).row_of(plan.arms[2])
    assert math.isnan(row.measures["embedded_match"].low)
    assert math.isnan(row.measures[KID].value)
    assert not row.differences["embedded_match"].is_clear


def test_without_a_base_nothing_is_compared():
    plan = make_plan(PROMPTS)
    plan = make_plan(PROMPTS, arms=plan.arms[2:])
    summary = summarise(plan, fake_scores(plan), {})
    assert summary.rows[0].differences == {}
    assert [column.id for column in summary.columns] == ["embedded_match", RETRIEVAL, DIVERSITY, SECONDS]


def test_seconds_are_the_mean_of_what_is_told_and_those_drawn_together_count_as_one():
    plan = make_plan(PROMPTS)
    jobs = plan.jobs_of(plan.arms[0])
    summary = summarise(plan, fake_scores(plan), {plan.arms[0].slug: [(job, 1.0 + job.number % 2) for job in jobs]})
    found = summary.rows[0].measures[SECONDS]
    assert found.value == pytest.approx(1.5)
    assert found.high - found.low > 0.9  # two times, though of many pictures
    alone = summarise(plan, fake_scores(plan), {plan.arms[0].slug: [(job, 1.0) for job in jobs]}).rows[0].measures[SECONDS]
    assert alone.value == 1
    assert math.isnan(alone.low)
    assert SECONDS not in summary.rows[1].measures


def test_mean_draws_whole_prompts():
    values, prompts = [1.0, 1.1, 5.0, 5.1, 9.0, 9.1], [1, 1, 2, 2, 3, 3]
    assert mean_of(values, prompts) == Measure(pytest.approx(5.05), *bootstrap(values, prompts))


def test_second_lora_is_compared_with_the_first_alone():
    plan = make_plan(PROMPTS)
    few = plan.arms[2]
    more = replace(few, label="few + more, 4 steps", loras=(LORA, replace(LORA, mark="more")), slug="more")
    other = replace(more, label="more, 8 steps", steps=8, slug="other")
    plan = make_plan(PROMPTS, arms=(*plan.arms, more, other))
    assert plan.without_last(more) == few
    scores = fake_scores(plan)
    summary = summarise(plan, scores, {})
    found = [scores.by_metric["embedded_match"][plan.key(job)] for job in plan.jobs_of(more)]
    before = [scores.by_metric["embedded_match"][plan.key(job)] for job in plan.jobs_of(few)]
    assert summary.row_of(more).added["embedded_match"].value == pytest.approx(np.mean(found) - np.mean(before))
    assert not any(row.added for row in summary.rows if row.arm.slug != "more")
    text = as_markdown(summary)
    assert "What the last LoRA adds" in text
    assert text.count("| few + more, 4 steps |") == 3
