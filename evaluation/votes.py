"""What votes say: which picture each person liked better, and how well people agree with themselves."""

from collections.abc import Iterable

from .comparison import Comparison, Picture
from .intervals import Share
from .vote_file import Ballot

TIE = "tie"


def answers(comparison: Comparison, ballot: Ballot) -> dict[int, str]:
    """Returns what a person said to each pair that was shown, {number of the pair: id of the picture liked better, or TIE}.

    Skipped pairs have no answer.
    """
    said = {}
    for vote in ballot.votes:
        pair = comparison.pairs[vote.pair]
        answer = {"left": pair.left, "right": pair.right, "tie": TIE}.get(vote.choice)
        if answer:
            said[vote.pair] = answer
    return said


def counted(comparison: Comparison, ballot: Ballot) -> dict[int, str]:
    """Returns one answer for each two pictures, {number of the pair that showed them first: as in answers}.

    Of a pair that was shown twice the first answer counts, and the second only where the first was skipped.
    """
    said, once = answers(comparison, ballot), {}
    for number in sorted(said):
        first = comparison.pairs[number].first
        once.setdefault(number if first is None else first, said[number])
    return once


def preferences(comparison: Comparison, ballots: Iterable[Ballot]) -> list[tuple[Picture, Picture, str]]:
    """Returns (the picture liked better, the other one, voter) of every decision; ties and skipped pairs are left out.

    Of a pair that was shown twice one answer counts, as in `counted`.
    """
    decisions = []
    for ballot in ballots:
        for number, answer in counted(comparison, ballot).items():
            pair = comparison.pairs[number]
            if answer != TIE:
                loser = pair.right if answer == pair.left else pair.left
                decisions.append((comparison.pictures[answer], comparison.pictures[loser], ballot.voter))
    return decisions


def self_agreement(comparison: Comparison, ballot: Ballot, decided: bool = False) -> Share:
    """Returns how often a person answered alike when a pair came again: the test-retest share, with its interval.

    How often a judge of this person's taste can be right at most follows from it: see foreseeable() in evaluation/taste.py.

    Args:
        comparison: what was voted on.
        ballot: the person's votes.
        decided: leaves out the pairs that were a tie one time or both.
    """
    said = answers(comparison, ballot)
    repeats = [(pair.first, number) for number, pair in enumerate(comparison.pairs) if pair.first is not None]
    twice = [(said[first], said[again]) for first, again in repeats if first in said and again in said]
    twice = [both for both in twice if not (decided and TIE in both)]
    return Share(sum(first == again for first, again in twice), len(twice))
