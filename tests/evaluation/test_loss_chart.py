"""The loss chart: what is drawn where, which numbers stand beside it, and losses of every shape."""

import math

import numpy as np
import pytest
from hyper_sd.errors import TrainingError
from hyper_sd.evaluation import loss_chart as charts
from hyper_sd.evaluation.loss_chart import GRID, RAW, SMOOTH, linear_axis, loss_axis, loss_chart

NAN = float("nan")


@pytest.fixture
def written(monkeypatch):
    """The texts that are written, in order."""
    texts, original = [], charts.ImageDraw.ImageDraw.text

    def text(pen, at, content, *rest, **options):
        texts.append(content)
        return original(pen, at, content, *rest, **options)

    monkeypatch.setattr(charts.ImageDraw.ImageDraw, "text", text)
    return texts


def near(image, colour, tolerance=40) -> np.ndarray:
    """Returns where the picture has about this colour, [height, width]."""
    return np.abs(np.asarray(image).astype(int) - colour).max(-1) < tolerance


def falling(count: int, low=0.1, high=0.2) -> list[float]:
    noise = np.random.default_rng(0).normal(0, 0.01, count)
    return list(np.linspace(high, low, count) + noise)


def test_raw_losses_are_light_and_the_smoothed_line_dark_and_falling():
    image = loss_chart(falling(300))
    assert (image.size, image.mode) == ((800, 480), "RGB")
    rows, columns = np.nonzero(near(image, SMOOTH)[80:, :])
    left, right = rows[columns < 200].mean(), rows[columns > 650].mean()
    assert right > left + 100  # further down
    assert near(image, RAW, 25)[80:].sum() > 1000


@pytest.mark.parametrize("scale", [1e-6, 0.01, 1.0, 3.7, 1e7])
def test_numbers_on_the_axis_are_round_and_enclose_the_losses(scale):
    losses = np.array([1.3, 2.0, 4.9]) * scale
    axis = loss_axis(losses)
    assert 4 <= len(axis.ticks) <= 8
    assert axis.low <= losses.min()
    assert axis.high >= losses.max()
    assert axis.low == 0
    step = axis.ticks[1] / 10 ** math.floor(math.log10(axis.ticks[1]) + 1e-9)
    assert round(step, 6) in {1, 2, 5}
    assert [float(label) for label in axis.labels] == pytest.approx(axis.ticks)
    assert max(map(len, axis.labels)) <= 7


def test_axis_is_logarithmic_only_beyond_the_range():
    assert not loss_axis(np.array([1.0, 30.0])).logarithmic
    axis = loss_axis(np.array([1.0, 31.0]))
    assert axis.logarithmic
    assert axis.ticks == (1, 2, 5, 10, 20)
    assert not loss_axis(np.array([0.0, 31.0])).logarithmic
    assert not loss_axis(np.array([-1.0, 31.0])).logarithmic


@pytest.mark.parametrize(("low", "high"), [(1e-12, 1.0), (1e-3, 1e3), (1e-30, 1e30)])
def test_logarithmic_axis_has_few_ticks_within_it(low, high):
    axis = loss_axis(np.array([low, high]))
    assert 2 <= len(axis.ticks) <= 14
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)


@pytest.mark.parametrize(("count", "labels"), [(2, "0 1 2"), (7, "0 2 4 6"), (300, "0 50 100 150 200 250 300")])
def test_steps_are_whole_numbers(count, labels):
    assert " ".join(linear_axis(0, count, whole=True).labels) == labels


def test_logarithmic_losses_lie_evenly(written):
    loss_chart([10.0**-k for k in range(5)])
    assert "log loss" in written
    axis = loss_axis(np.array([1e-4, 1.0]))
    places = axis.place(np.array([1e-4, 1e-2, 1.0]))
    assert places[1] == pytest.approx((places[0] + places[2]) / 2)


def test_stages_have_titles_and_dashed_borders(written):
    image = loss_chart(falling(200), [("8 segments", 0), ("4 segments", 100)])
    assert {"8 segments", "4 segments"} <= set(written)
    middle = charts.LEFT + round(100.5 / 200 * (800 - charts.LEFT - charts.RIGHT))
    column = np.asarray(image)[100:400, middle - 2 : middle + 3].min(axis=(1, 2))
    assert 0.3 < (column < 200).mean() < 0.8


def test_smoothed_line_does_not_run_across_a_border():
    losses = [1.0] * 100 + [0.2] * 100
    border = charts.LEFT + round(100.5 / 200 * (800 - charts.LEFT - charts.RIGHT))
    apart = near(loss_chart(losses, [("a", 0), ("b", 100)]), SMOOTH)[80:430, border - 8 : border + 8]
    joined = near(loss_chart(losses), SMOOTH)[80:430, border - 8 : border + 8]
    assert not apart[100:250].any()
    assert joined[100:250].any()


def test_title_without_room_is_shortened_or_left_out(written):
    loss_chart(falling(100), [("style", 0), ("a stage with a very long title", 90), ("one more", 99)])
    assert "style" in written
    assert "a stage with a very long title" not in written
    assert any(text.startswith("a s") and text.endswith("..") for text in written)
    assert not any(text.startswith("one") for text in written)


def test_stage_beyond_the_end_is_not_drawn(written):
    loss_chart(falling(50), [("first", 10), ("never reached", 50), ("nor this", 900)])
    assert "first" in written
    assert not {"never reached", "nor this"} & set(written)


def test_one_loss_is_a_dot(written):
    image = loss_chart([0.137])
    rows, columns = np.nonzero(near(image, SMOOTH))
    assert 20 < len(rows) < 60
    assert np.ptp(rows) < 8
    assert np.ptp(columns) < 8
    assert "1 step, 0.137 at the end" in written


@pytest.mark.parametrize("value", [0.5, 0.0, -2.0, 1e-9, 1e9])
def test_constant_losses_are_a_level_line(value):
    rows, columns = np.nonzero(near(loss_chart([value] * 40), SMOOTH)[80:])
    assert np.ptp(rows) <= 4
    assert np.ptp(columns) > 600


def test_values_that_are_not_finite_are_left_out_and_counted(written):
    losses = falling(100)
    losses[3], losses[50], losses[99] = NAN, float("inf"), -float("inf")
    image = loss_chart(losses)
    assert any("3 not finite and left out" in text for text in written)
    clean = loss_chart(falling(100))
    assert np.abs(np.asarray(image).astype(int) - np.asarray(clean)).mean() < 5


@pytest.mark.parametrize("losses", [[], [NAN], [NAN, float("inf")]])
def test_no_finite_loss_is_an_error_that_says_what_to_do(losses):
    with pytest.raises(TrainingError, match=f"{len(losses)} steps, none of them finite.*learning_rate"):
        loss_chart(losses)


def test_single_step_stage_in_a_long_run_is_seen():
    image = loss_chart([1.0] * 50 + [0.1] + [1.0] * 49, [("a", 0), ("b", 50), ("c", 51)])
    assert near(image, SMOOTH)[300:430].sum() > 15


def test_grid_and_numbers_of_losses_too_close_to_tell_apart(written):
    image = loss_chart([1.0, 1.0 + 1e-9, 1.0])
    assert near(image, GRID, 6).sum() > 2000
    assert len(set(written)) == len(written)
