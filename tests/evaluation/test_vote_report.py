"""Win rates, strengths and sentences, from voters whose taste is known."""

import json
import math
import random

import pytest
from hyper_sd.evaluation.vote_chart import vote_chart
from hyper_sd.evaluation.vote_file import Ballot
from hyper_sd.evaluation.vote_report import fullest, report_of, sentences
from hyper_sd.evaluation.win_rates import meetings, outcomes, strengths
from hyper_sd.tests.evaluation.comparisons import ballot_of, comparison_of
from PIL import Image


def chooser(values, seed=0, ties=0.0):
    """Returns somebody who chooses as the Bradley-Terry model says.

    Args:
        values: the strength of each arm.
        seed: of the person's moods.
        ties: the share of answers that are a tie.
    """
    rng = random.Random(seed)

    def choose(_, left, right):
        if rng.random() < ties:
            return "tie"
        chance = 1 / (1 + math.exp(values[right.arm] - values[left.arm]))
        return "left" if rng.random() < chance else "right"

    return choose


def voters(comparison, values, count=1, ties=0.0):
    return [ballot_of(comparison, chooser(values, n, ties), f"{n:016x}") for n in range(count)]


def test_win_rate_counts_ties_half_and_repeats_once():
    comparison = comparison_of(40)
    liked = iter(["hyper"] * 24 + ["tie"] * 6 + ["base"] * 10)

    def choose(number, left, right):
        if comparison.pairs[number].first is not None:
            return "left"  # does not count
        arm = next(liked)
        return "tie" if arm == "tie" else "left" if left.arm == arm else "right"

    (meeting,) = meetings(comparison.arms, outcomes(comparison, [ballot_of(comparison, choose)]))
    assert (meeting.one, meeting.other, meeting.wins, meeting.losses, meeting.ties) == ("base", "hyper", 10, 24, 6)
    assert meeting.share.value == pytest.approx(13 / 40)
    low, high = meeting.interval
    assert low <= meeting.share.interval.low < 13 / 40 < meeting.share.interval.high <= high


def test_known_strengths_are_recovered_with_intervals_around_them():
    known = {"weak": -1.0, "fair": -0.1, "good": 0.3, "best": 0.8}
    comparison = comparison_of(150, tuple(known), seed=4)
    found = strengths(comparison.arms, outcomes(comparison, voters(comparison, known)), resamples=200)
    assert [strength.arm for strength in found] == ["best", "good", "fair", "weak"]
    for strength in found:
        assert strength.value == pytest.approx(known[strength.arm], abs=0.25)
        assert strength.interval.low < strength.value < strength.interval.high
        assert strength.interval.high - strength.interval.low < 0.8
    assert sum(strength.value for strength in found) == pytest.approx(0, abs=1e-9)


def test_strengths_hold_the_truth_about_as_often_as_they_say():
    known, held, trials = {"a": -0.5, "b": 0.0, "c": 0.5}, 0, 40
    for trial in range(trials):
        comparison = comparison_of(40, tuple(known), seed=trial)
        ballot = ballot_of(comparison, chooser(known, 1000 + trial))
        found = strengths(comparison.arms, outcomes(comparison, [ballot]), resamples=150, seed=trial)
        held += sum(s.interval.low <= known[s.arm] <= s.interval.high for s in found)
    assert 0.89 <= held / (3 * trials) <= 0.99  # 120 intervals: two standard errors are 4 in a hundred


def test_arm_that_always_wins_has_a_finite_strength():
    comparison = comparison_of(10, ("a", "b", "c"))
    order = {"a": 2, "b": 1, "c": 0}
    ballot = ballot_of(comparison, lambda _, left, right: "left" if order[left.arm] > order[right.arm] else "right")
    found = strengths(comparison.arms, outcomes(comparison, [ballot]), resamples=50)
    assert [strength.arm for strength in found] == ["a", "b", "c"]
    assert all(abs(strength.value) < 10 for strength in found)


def test_arms_that_never_met_are_not_put_on_one_scale():
    comparison = comparison_of(6, ("a", "b", "c", "d"))

    def choose(_, left, right):
        return "left" if {left.arm, right.arm} in ({"a", "b"}, {"c", "d"}) else "skip"

    report = report_of(comparison, [ballot_of(comparison, choose)])
    assert report.strengths == ()
    assert not any(sentence.startswith("Strengths") for sentence in sentences(report))
    one_left_out = ballot_of(comparison, lambda _, left, right: "skip" if "d" in {left.arm, right.arm} else "left")
    assert {strength.arm for strength in report_of(comparison, [one_left_out]).strengths} == {"a", "b", "c"}


def test_many_votes_on_few_pictures_are_no_independent_votes():
    comparison, rng = comparison_of(8), random.Random(1)
    better = {number: rng.choice(comparison.arms) for number in range(8)}  # every picture divides alike, people do not
    ballots = [
        ballot_of(comparison, lambda _, left, right: "left" if better[int(left.name)] == left.arm else "right", f"{n:016x}")
        for n in range(25)
    ]
    (meeting,) = meetings(comparison.arms, outcomes(comparison, ballots))
    naive = meeting.share.interval
    assert meeting.interval.high - meeting.interval.low > 3 * (naive.high - naive.low)


def test_report_says_what_can_be_said():
    comparison = comparison_of(120)
    report = report_of(comparison, voters(comparison, {"base": 0.0, "hyper": 1.5}, 3, ties=0.1))
    said = sentences(report)
    assert said[0].startswith('"hyper" is liked better than "base": ')
    assert "of them ties that count half" in said[0]
    assert any("repeated pairs as the first time" in sentence for sentence in said)
    assert any("Fleiss's kappa" in sentence for sentence in said)
    assert not any("one person's" in sentence for sentence in said)
    assert report.others.share.total == 3 * 120
    assert len(report.selves) == 3


def test_report_says_what_cannot_be_said_and_how_many_votes_would_do():
    comparison = comparison_of(30)
    liked = iter(["base"] * 13 + ["hyper"] * 17)

    def choose(number, left, right):
        if comparison.pairs[number].first is not None:
            return "skip"
        return "left" if left.arm == next(liked) else "right"

    said = sentences(report_of(comparison, [ballot_of(comparison, choose)]))
    assert said[0].startswith('Whether "hyper" or "base" is liked better cannot be said: 57 % of 30 answers')
    assert "about 217 answers are needed" in said[0]
    assert "not known how steady" in said[1]
    assert any("one person's" in sentence for sentence in said)


def test_report_tells_equal_from_unknown_and_habit_from_taste():
    comparison = comparison_of(2500)
    said = sentences(report_of(comparison, [ballot_of(comparison, lambda *_: "left")]))
    assert "are liked alike" in said[0]
    assert "not surely better than guessing" in said[1]
    assert any("left picture was chosen in 100 %" in sentence for sentence in said)


def test_person_who_saved_several_times_counts_once():
    comparison = comparison_of(20)
    (whole,) = voters(comparison, {"base": 0, "hyper": 1})
    half = Ballot(whole.comparison, whole.voter, whole.votes[:5])
    assert fullest([half, whole, half]) == [whole]
    assert report_of(comparison, [half, whole]).answers == 20


def test_report_of_three_arms_has_strengths_in_words_json_and_chart(tmp_path):
    comparison = comparison_of(20, ("a", "b", "an arm with a name that is far too long for a chart"))
    report = report_of(comparison, voters(comparison, dict.fromkeys(comparison.arms, 0.0), 2))
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert len(content["meetings"]) == 3
    assert len(content["strengths"]) == 3
    assert content["meetings"][0]["interval"].keys() == {"low", "high"}
    assert any(sentence.startswith("Strengths") for sentence in content["sentences"])
    assert any(sentence.startswith("3 pairs of arms") for sentence in content["sentences"])
    assert any("Cohen's kappa" in sentence for sentence in content["sentences"])
    (tmp_path / "chart.png").write_bytes(vote_chart(report))
    with Image.open(tmp_path / "chart.png") as chart:
        assert chart.format == "PNG"
        assert chart.width > 800


def test_nothing_but_skipped_pairs_says_nothing():
    comparison = comparison_of(5)
    report = report_of(comparison, [ballot_of(comparison, lambda *_: "skip")])
    assert sentences(report) == ["Nothing can be said: no pair has an answer."]
    assert report.skipped == len(comparison.pairs)
    assert json.dumps(report.to_json(), allow_nan=False)


@pytest.mark.parametrize("names", [1, 12])
@pytest.mark.parametrize("choice", ["best", "tie"])
def test_strengths_from_prompts_that_are_all_alike_claim_no_interval(names, choice):
    comparison = comparison_of(names, ("a", "b", "c"))
    ballot = ballot_of(
        comparison, lambda _, left, right: "tie" if choice == "tie" else "left" if left.arm < right.arm else "right"
    )
    report = report_of(comparison, [ballot])
    assert all(math.isnan(strength.interval.low) for strength in report.strengths)
    (said,) = [sentence for sentence in sentences(report) if sentence.startswith("Strengths")]
    assert "how sure these are is not known" in said
    assert vote_chart(report)[:4] == b"\x89PNG"
    json.dumps(report.to_json(), allow_nan=False)
