"""The file of one person's votes, and that nothing but whole votes of this comparison is read."""

import json

import pytest
from hyper_sd.errors import EvaluationError
from hyper_sd.evaluation.vote_file import CHOICES, check_of, load_ballot, save_ballot
from hyper_sd.tests.evaluation.comparisons import VOTER, ballot_of, comparison_of


@pytest.fixture
def comparison():
    """Twelve pairs, one of them twice."""
    return comparison_of(12)


@pytest.fixture
def saved(comparison, tmp_path):
    """A file of votes with every choice."""
    save_ballot(ballot_of(comparison, lambda number, *_: CHOICES[number % 4]), tmp_path / "votes.json")
    return tmp_path / "votes.json"


def test_votes_are_read_as_they_were_given(comparison, saved):
    ballot = load_ballot(saved, comparison)
    assert ballot == ballot_of(comparison, lambda number, *_: CHOICES[number % 4])
    assert saved.stat().st_size < 600


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(format="hyper-sd votes 2"), "no file of votes: its format is 'hyper-sd votes 2'"),
        (lambda c: c.update(comparison="deadbeef"), "belongs to another comparison"),
        (lambda c: c["votes"].__setitem__(0, [99, "left", 1.0]), "the pair 99; this comparison has the pairs 0 to 12"),
        (lambda c: c["votes"].__setitem__(0, [True, "left", 1.0]), "the pair True"),
        (lambda c: c["votes"].__setitem__(0, [0, "both", 1.0]), "the choice 'both' for pair 0; allowed are left, right"),
        (lambda c: c["votes"].__setitem__(0, [0, "left", "1"]), "seconds for pair 0"),
        (lambda c: c["votes"].__setitem__(0, [0, "left", -1]), "seconds for pair 0"),
        (lambda c: c["votes"].__setitem__(0, [0, "left", float("nan")]), "seconds for pair 0"),
        (lambda c: c["votes"].__setitem__(0, [0, "left"]), "the pair None"),
        (lambda c: c["votes"].append(c["votes"][0]), "answers a pair twice"),
        (lambda c: c["votes"][0].__setitem__(1, "right"), "changed or damaged after it was saved"),
        (lambda c: c["votes"].pop(), "changed or damaged after it was saved"),
        (lambda c: c.update(voter="f" * 16), "changed or damaged after it was saved"),
        (lambda c: c.pop("check"), "changed or damaged after it was saved"),
        (lambda c: c.update(voter="../../x"), "no voter or no list of votes"),
        (lambda c: c.update(votes=None), "no voter or no list of votes"),
    ],
)
def test_tampered_or_foreign_file_is_refused_and_says_why(comparison, saved, change, words):
    content = json.loads(saved.read_text(encoding="utf-8"))
    change(content)
    saved.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(EvaluationError, match=words.replace("(", r"\(")) as refused:
        load_ballot(saved, comparison)
    assert str(saved) in str(refused.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '"votes"', "[" * 100_000])
def test_what_is_no_file_of_votes_is_refused(comparison, tmp_path, text):
    (tmp_path / "votes.json").write_text(text, encoding="utf-8")
    with pytest.raises(EvaluationError, match="votes"):
        load_ballot(tmp_path / "votes.json", comparison)


def test_file_that_is_not_there_is_named(comparison, tmp_path):
    with pytest.raises(EvaluationError, match=r"nowhere\.json cannot be read as votes"):
        load_ballot(tmp_path / "nowhere.json", comparison)


def test_check_is_that_of_the_text_that_the_rule_describes():
    assert check_of("c", VOTER, [[0, "left", 1.234], [3, "tie", 2]]) == (
        # printf 'hyper-sd votes 1\nc\n0123456789abcdef\n0 left 1234\n3 tie 2000' | sha256sum
        "69e14e992bb16bf79eee50132b2cd36916e86cf128c5e6e73bf1f8ac5f7b5df4"
    )
