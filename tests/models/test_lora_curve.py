"""A LoRA's strength from step to step."""

import pytest
from hyper_sd.errors import ScheduleError
from hyper_sd.models.lora_curve import percent_between, read_strengths, strengths_of


def test_curves_start_and_end_where_they_are_told():
    assert strengths_of("constant", 3, 0.8, 0.1) == [0.8, 0.8, 0.8]
    assert strengths_of("linear", 5, 1.0, 0.0) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert strengths_of("cosine", 3, 1.0, 0.0) == pytest.approx([1.0, 0.5, 0.0])
    assert strengths_of("cosine", 5, 1.0, 0.0)[1] == pytest.approx(0.853553, abs=1e-6)


@pytest.mark.parametrize("curve", ["constant", "linear", "cosine"])
def test_one_step_has_the_first_strength(curve):
    assert strengths_of(curve, 1, 0.7, 0.1) == [0.7]


def test_list_repeats_its_last_number():
    assert strengths_of("list", 4, 0, 0, [1, 0.5]) == [1, 0.5, 0.5, 0.5]


def test_list_with_more_numbers_than_steps_is_refused():
    with pytest.raises(ScheduleError, match="3 numbers for 2 steps"):
        strengths_of("list", 2, 0, 0, [1, 2, 3])


def test_unknown_curve_names_the_known_ones():
    with pytest.raises(ScheduleError, match=r"one of constant, linear, cosine, list, got 'square'"):
        strengths_of("square", 2, 0, 0)


@pytest.mark.parametrize(
    ("text", "values"),
    [("1, 0.8, .5", [1, 0.8, 0.5]), (" 1 -2 ", [1, -2]), ("10", [10]), ("1\uff0c0.8\u3001 .5", [1, 0.8, 0.5])],
)
def test_numbers_are_read_with_commas_or_spaces(text, values):
    assert read_strengths(text) == values


@pytest.mark.parametrize("text", ["", "a", "1; 2", "11", "nan", "inf", ", ,"])
def test_text_that_is_no_numbers_is_refused(text):
    with pytest.raises(ScheduleError, match=r"for example 1, 0\.8, 0\.5"):
        read_strengths(text)


@pytest.mark.parametrize(
    ("text", "unclear"), [("0,8", "0,8"), ("1,0 0,8", "1,0"), ("1, 0,5", "0,5"), ("1,0.8,0.5", "1,0"), ("-0,75", "0,75")]
)
def test_comma_between_digits_is_refused_as_one_number_or_two(text, unclear):
    with pytest.raises(ScheduleError, match=f"'{unclear}'.*one number or two.* for example 1, 0\\.8, 0\\.5"):
        read_strengths(text)


@pytest.mark.parametrize("before_after", [(14.6, 5.1), (0.03, 0.0), (1.0, 0.75), (3.0, 2.999)])
def test_percent_lies_between_the_two_steps(before_after):
    def percent_to_sigma(percent):
        return 14.6146 * (1 - percent) ** 3

    before, after = before_after
    assert before > percent_to_sigma(percent_between(percent_to_sigma, before, after)) > after
