"""A batch in the order of its scores: prompts, order, how many are kept, and the text."""

import pytest
import torch
from hyper_sd.errors import RewardError
from hyper_sd.rewards.ranking import best_first, kept, prompts_of, ranking_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a cat", ["a cat"] * 3), ("", [""] * 3), ("\n a cat \n", ["a cat"] * 3), ("a\n b\n\n", None), ("a\n\nc", ["a", "", "c"])],
)
def test_one_line_is_for_all_pictures_and_more_are_for_one_each(text, expected):
    if expected is None:
        with pytest.raises(RewardError, match="prompt has 2 lines for 3 pictures; write it in one line for all"):
            prompts_of(text, 3)
    else:
        assert prompts_of(text, 3) == expected


def test_highest_score_comes_first_and_equal_ones_stay_in_order():
    assert best_first(torch.tensor([0.5, 2.0, -1.0, 2.0, 0.5])) == [1, 3, 0, 4, 2]


def test_order_of_equal_scores_is_that_of_a_large_batch_too():
    assert best_first(torch.zeros(500)) == list(range(500))


@pytest.mark.parametrize(("keep", "expected"), [(0, 5), (1, 1), (4, 4), (5, 5), (9, 5), (2.0, 2)])
def test_number_of_kept_pictures(keep, expected):
    assert kept(5, keep) == expected


@pytest.mark.parametrize("keep", [-1, 1.5, True, "4", float("nan")])
def test_number_that_cannot_be_kept_is_refused(keep):
    with pytest.raises(RewardError, match=r"keep must be a whole number from 0 on, got .*; 0 keeps all"):
        kept(5, keep)


def test_text_has_place_number_and_score_of_every_picture():
    text = ranking_text([0.25, 31.0], [1, 0], 2)
    assert text.splitlines() == ["1. picture 2: 31.000", "2. picture 1: 0.250"]


def test_text_shows_which_are_not_kept():
    lines = ranking_text([3.0, 2.0, 1.0], [0, 1, 2], 1).splitlines()
    assert lines == ["1. picture 1: 3.000", "not kept:", "2. picture 2: 2.000", "3. picture 3: 1.000"]
