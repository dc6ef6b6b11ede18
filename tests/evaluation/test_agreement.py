"""Agreement beyond chance, against published examples."""

import math

import pytest
from hyper_sd.evaluation.agreement import agreement_of, cohen_kappa, fleiss_kappa

# Ten subjects, fourteen raters, five categories; Fleiss' kappa 0.210. The example of many textbooks, after Fleiss 1971.
FLEISS = [
    (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
    (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
]  # fmt: skip


def test_cohens_kappa_of_a_known_table():
    answers = [("yes", "yes")] * 20 + [("yes", "no")] * 5 + [("no", "yes")] * 10 + [("no", "no")] * 15
    assert cohen_kappa(answers) == pytest.approx(0.4)
    assert cohen_kappa([("a", "a"), ("b", "b")]) == 1
    assert math.isnan(cohen_kappa([("a", "a")] * 5))


def test_fleiss_kappa_of_a_known_table():
    rows = [[kind for kind, count in enumerate(row) for _ in range(count)] for row in FLEISS]
    assert fleiss_kappa(rows) == pytest.approx(0.210, abs=5e-4)


def test_people_are_compared_on_the_questions_that_they_share():
    one, other, third = {1: "a", 2: "b", 3: "tie"}, {2: "b", 3: "a", 9: "a"}, {8: "a"}
    both = agreement_of([one, other])
    assert (both.share.count, both.share.total, both.kind, both.questions) == (1, 2, "Cohen", 2)
    many = agreement_of([one, other, third, {2: "a"}])
    assert (many.share.count, many.share.total, many.kind, many.questions) == (1, 4, "Fleiss", 2)
    assert agreement_of([one, third]) is None
    assert agreement_of([one]) is None
