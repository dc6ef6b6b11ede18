"""Intervals against published values, and against how often they hold the truth."""

import math

import numpy as np
import pytest
from hyper_sd.evaluation.intervals import Share, _student, bootstrap, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_equals_published_values(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_knows_nothing_without_a_case_and_refuses_more_successes_than_cases():
    assert wilson(0, 0) == (0, 1)
    assert wilson(2.5, 5) == pytest.approx((0.1694, 0.8306), abs=5e-3)
    with pytest.raises(ValueError, match="5 of 4"):
        wilson(5, 4)


def test_share_of_nothing_has_no_value():
    assert math.isnan(Share(0, 0).value)
    assert Share(3, 4).value == 0.75
    assert Share(3, 4).interval == wilson(3, 4)


@pytest.mark.parametrize(
    ("freedom", "share", "quantile"),
    [(1, 0.975, 12.7062), (2, 0.975, 4.3027), (4, 0.975, 2.7764), (9, 0.975, 2.2622), (9, 0.95, 1.8331), (1000, 0.975, 1.9623)],
)
def test_quantiles_of_students_t_are_those_of_the_tables(freedom, share, quantile):
    assert _student(share, freedom) == pytest.approx(quantile, rel=2e-3)


@pytest.mark.parametrize("draw", ["normal", "exponential", "coin"])
def test_95_percent_intervals_hold_the_mean_in_93_to_97_percent(draw):
    generator, held, trials = np.random.default_rng(7), 0, 1500
    for trial in range(trials):
        values = {
            "normal": lambda: generator.normal(0.3, 2, 30),
            "exponential": lambda: generator.exponential(0.3, 150),
            "coin": lambda: generator.binomial(1, 0.3, 120),
        }[draw]()
        low, high = bootstrap(values, resamples=400, seed=trial)
        held += low <= 0.3 <= high
    assert 0.93 <= held / trials <= 0.97


def test_intervals_of_groups_hold_the_mean_where_single_values_would_not():
    generator, held, alone, trials = np.random.default_rng(3), 0, 0, 1000
    groups = np.repeat(np.arange(25), 8)  # 25 prompts with 8 pictures each, the prompts differ far more than the pictures
    for trial in range(trials):
        values = generator.normal(0, 1, 25)[groups] + generator.normal(0, 0.5, 200)
        for which in (groups, None):
            low, high = bootstrap(values, which, resamples=300, seed=trial)
            inside = low <= 0 <= high
            held, alone = (held + inside, alone) if which is not None else (held, alone + inside)
    assert 0.93 <= held / trials <= 0.97
    assert alone / trials < 0.7


def test_interval_is_the_same_each_time_and_narrows_with_more_values():
    values = np.random.default_rng(0).normal(size=400)
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(values) != bootstrap(values, seed=1)
    few, many = bootstrap(values[:50]), bootstrap(values)
    assert many.high - many.low < 0.5 * (few.high - few.low)


def test_one_group_says_nothing_about_the_width():
    assert all(map(math.isnan, bootstrap([0.5])))
    assert all(map(math.isnan, bootstrap([0.5, 0.7], ["a", "a"])))


@pytest.mark.parametrize(("values", "groups"), [([], None), ([1.0, math.nan], None), ([1.0, 2.0], ["a"])])
def test_what_has_no_mean_is_refused(values, groups):
    with pytest.raises(ValueError, match="bootstrap needs"):
        bootstrap(values, groups)
