"""What is read from votes: decisions, each counted once, and how well a person agrees with themself."""

import random

from hyper_sd.evaluation.vote_file import Ballot, Vote
from hyper_sd.evaluation.votes import TIE, answers, counted, preferences, self_agreement
from hyper_sd.tests.evaluation.comparisons import VOTER, ballot_of, comparison_of


def side_of(arm):
    """Returns somebody who always likes an arm better."""
    return lambda _, left, right: "left" if left.arm == arm else "right"


def test_decisions_name_winner_and_loser_and_count_repeats_once():
    comparison = comparison_of(40)
    decisions = preferences(comparison, [ballot_of(comparison, side_of("hyper"))])
    assert len(comparison.pairs) == 44
    assert len(decisions) == 40
    assert {(winner.arm, loser.arm, voter) for winner, loser, voter in decisions} == {("hyper", "base", VOTER)}
    assert all(winner.name == loser.name for winner, loser, _ in decisions)


def test_ties_and_skipped_pairs_are_no_decisions_and_a_skipped_pair_has_no_answer():
    comparison = comparison_of(4)
    choices = ["left", "tie", "skip", "right"]
    ballot = ballot_of(comparison, lambda number, *_: choices[number])
    assert set(answers(comparison, ballot)) == {0, 1, 3}
    assert answers(comparison, ballot)[1] == TIE
    assert len(preferences(comparison, [ballot])) == 2


def test_repeat_counts_only_where_the_first_time_was_skipped():
    comparison = comparison_of(8)
    again = next(number for number, pair in enumerate(comparison.pairs) if pair.first is not None)
    first = comparison.pairs[again].first

    def votes(before):
        return Ballot(comparison.id, VOTER, (Vote(again, "left", 1.0), Vote(first, before, 1.0)))

    assert counted(comparison, votes("skip")) == {first: comparison.pairs[again].left}
    assert counted(comparison, votes("tie")) == {first: TIE}
    assert counted(comparison, votes("left")) == {first: comparison.pairs[first].left}


def test_agreement_with_oneself_is_that_of_the_repeats():
    comparison = comparison_of(100)
    steady = self_agreement(comparison, ballot_of(comparison, side_of("base")))
    assert (steady.count, steady.total, steady.value) == (10, 10, 1)
    always_left = self_agreement(comparison, ballot_of(comparison, lambda *_: "left"))
    assert (always_left.count, always_left.total) == (0, 10)
    ties = ballot_of(comparison, lambda *_: "tie")
    assert self_agreement(comparison, ties).value == 1
    assert self_agreement(comparison, ties, decided=True).total == 0


def test_agreement_of_a_voter_with_known_consistency_is_found():
    rng, comparison = random.Random(5), comparison_of(4000)

    def choose(_, left, right):
        liked = "hyper" if rng.random() < 0.75 else "base"
        return "left" if left.arm == liked else "right"

    share = self_agreement(comparison, ballot_of(comparison, choose))
    assert share.total == 400
    assert share.interval.low < 0.75**2 + 0.25**2 < share.interval.high
