"""The losses of a training run as a chart: every step, a smoothed line, and the stages they belong to."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from ..errors import TrainingError
from .contact_sheet import INK, PAPER, _font

Colour = tuple[int, int, int]
SIZE = (800, 480)
LEFT, RIGHT, TOP, BOTTOM = 76, 26, 74, 46  # margins around the plot
TITLE, TEXT, SMALL = 21, 14, 13  # font sizes
FINE = 3  # lines are drawn this much larger and scaled down, which smooths them
GRID, FRAME, BAND, GREY = (231, 234, 238), (150, 156, 164), (246, 248, 251), (105, 112, 122)
RAW, SMOOTH = (166, 199, 236), (22, 82, 158)
LOG_RANGE = 30  # highest / lowest loss from which the axis is logarithmic
ROUND = (1, 2, 5)
TICKS = 6  # about as many on each axis


@dataclass(frozen=True)
class Axis:
    """The range of values along one side of the chart.

    Args:
        low: the value at its beginning.
        high: the value at its end.
        ticks: round values that are marked.
        labels: how each of them is written.
        logarithmic: whether equal distances are equal ratios.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    labels: tuple[str, ...]
    logarithmic: bool = False

    def place(self, values: np.ndarray) -> np.ndarray:
        """Returns where values lie, 0 at the low end and 1 at the high one."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, values = math.log(low), math.log(high), np.log(values)
        return (np.asarray(values, float) - low) / (high - low)


def linear_axis(low: float, high: float, whole: bool = False) -> Axis:
    """Returns an axis from one round number to another around the values.

    Args:
        low: the smallest value.
        high: the largest value.
        whole: marks whole numbers only, and ends the axis with the values.
    """
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (*ROUND, 10) if factor * power >= rough * 0.999)
    step = max(step, 1.0) if whole else step
    first = math.floor(low / step + 1e-9)
    last = math.floor(high / step + 1e-9) if whole else math.ceil(high / step - 1e-9)
    ticks = tuple(step * number for number in range(first, last + 1))
    decimals = max(-math.floor(math.log10(step) + 1e-9), 0)
    plain = whole or (decimals < 6 and high < 1e5)
    labels = tuple(f"{tick:.{decimals}f}" if plain else _short(tick) for tick in ticks)
    return Axis(low, high, ticks, labels) if whole else Axis(ticks[0], ticks[-1], ticks, labels)


def logarithmic_axis(low: float, high: float) -> Axis:
    """Returns an axis a little beyond the values that marks powers of ten, and, where these are few, 2 and 5 times each."""
    low, high = low / 1.2, high * 1.2
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors, skip = (ROUND if len(decades) <= 5 else (1,)), math.ceil(len(decades) / 10)
    ticks = tuple(t for decade in decades[::skip] for f in factors if low <= (t := f * 10.0**decade) <= high)
    return Axis(low, high, ticks, tuple(map(_short, ticks)), logarithmic=True)


def _short(value: float) -> str:
    return f"{value:.6g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def loss_axis(losses: np.ndarray) -> Axis:
    """Returns the axis for losses: logarithmic where they span more than LOG_RANGE, and from 0 on where they come near it."""
    low, high = float(losses.min()), float(losses.max())
    if low > 0 and high / low > LOG_RANGE:
        return logarithmic_axis(low, high)
    if 0 < low < 0.4 * high:
        low = 0.0
    if high - low <= 1e-4 * abs(high):
        room = abs(high) / 10 or 0.5
        low, high = low - room, high + room
    return linear_axis(low, high)


def _smoothed(losses: np.ndarray, half: int, logarithmic: bool) -> np.ndarray:
    """Returns the mean over 2 x half + 1 neighbours of each loss, fewer at the ends; geometric on a logarithmic axis."""
    if logarithmic:
        return np.exp(_smoothed(np.log(losses), half, logarithmic=False))
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    first = np.clip(np.arange(len(losses)) - half, 0, None)
    last = np.clip(np.arange(len(losses)) + half + 1, None, len(losses))
    return (sums[last] - sums[first]) / (last - first)


def loss_chart(losses: Sequence[float], stages: Sequence[tuple[str, int]] = ()) -> Image.Image:
    """Returns an RGB chart of 800 x 480 pixels.

    Args:
        losses: one for each step; values that are not finite are left out, and the chart says how many.
        stages: (title, index of the first step) of each; the smoothed line begins anew at each.
    Raises: TrainingError when there is no finite loss.
    """
    values = np.asarray(losses, float)
    steps = np.flatnonzero(np.isfinite(values)) + 1
    if not len(steps):
        raise TrainingError(
            f"There is no loss to draw: {len(values)} steps, none of them finite. Train at least one step; where all losses "
            "are NaN, lower the learning_rate."
        )
    finite, spans = values[steps - 1], _spans(stages, len(values))
    across, up = linear_axis(0, max(len(values), 2), whole=True), loss_axis(finite)
    half = max(len(values) // 40, 2) if len(steps) >= 10 else 0
    parts = [part for _, first, last in spans if (part := (steps > first) & (steps <= last)).any()]
    curves = [_smoothed(finite[part], half, up.logarithmic) for part in parts]
    image = Image.new("RGB", (SIZE[0] * FINE, SIZE[1] * FINE), PAPER)
    pen = ImageDraw.Draw(image)
    _draw_ground(pen, across, up, spans)
    dots = len(steps) < 30  # each step is seen, and one alone is seen at all
    for part in parts:
        _draw_line(pen, across.place(steps[part]), up.place(finite[part]), *((RAW, 1.3) if half else (SMOOTH, 2.2)), dots)
    for part, curve in zip(parts, curves, strict=True) if half else ():
        _draw_line(pen, across.place(steps[part]), up.place(curve), SMOOTH, 2.6)
    image = image.reduce(FINE)
    _write_axes(image, across, up, spans)
    left_out = len(values) - len(steps)
    summary = f"{_steps(len(values))}, {_short(float(f'{curves[-1][-1]:.3g}'))} at the end"
    summary += f", {left_out} not finite and left out" if left_out else ""
    _write_head(image, summary, [(f"mean of {2 * half + 1}", SMOOTH), ("each step", RAW)] if half else [])
    return image


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"


def _spans(stages: Sequence[tuple[str, int]], count: int) -> list[tuple[str, int, int]]:
    """Returns (title, first, last + 1) of each stage that has steps, in order; what comes before the first has no title."""
    starts = sorted(((title, min(max(first, 0), count)) for title, first in stages), key=lambda stage: stage[1])
    if not starts or starts[0][1] > 0:
        starts.insert(0, ("", 0))
    ends = [first for _, first in starts[1:]] + [count]
    return [(title, first, end) for (title, first), end in zip(starts, ends, strict=True) if end > first]


def _x(place: float) -> float:
    return LEFT + place * (SIZE[0] - LEFT - RIGHT)


def _y(place: float) -> float:
    return SIZE[1] - BOTTOM - place * (SIZE[1] - TOP - BOTTOM)


def _between(first: int, across: Axis) -> float:
    """Returns the pixel column between a stage's first step and the one before."""
    return _x(float(across.place(np.array(first + 0.5)))) if first else _x(0)


def _draw_ground(pen: ImageDraw.ImageDraw, across: Axis, up: Axis, spans: Sequence[tuple[str, int, int]]) -> None:
    def box(left: float, top: float, width: int, height: int, fill: Colour) -> None:
        x, y = round(left) * FINE, round(top) * FINE
        pen.rectangle([x, y, x + width * FINE - 1, y + height * FINE - 1], fill)

    width, height = SIZE[0] - LEFT - RIGHT, SIZE[1] - TOP - BOTTOM
    borders = [_between(first, across) for _, first, _ in spans] + [_x(1)]
    for left, right in list(pairwise(borders))[1::2]:
        box(left, TOP, max(round(right - left), 1), height, BAND)
    for place in up.place(np.array(up.ticks)):
        box(LEFT, _y(place), width, 1, GRID)
    for place in across.place(np.array(across.ticks)):
        box(_x(place), _y(0), 1, 5, FRAME)
    for border in borders[1:-1]:
        for top in range(TOP, TOP + height, 8):
            box(border, top, 1, 4, FRAME)
    box(LEFT, _y(0), width, 1, FRAME)
    box(LEFT, TOP, 1, height, FRAME)


def _draw_line(
    pen: ImageDraw.ImageDraw, across: np.ndarray, up: np.ndarray, colour: Colour, width: float, dots: bool = False
) -> None:
    points = [(_x(a) * FINE, _y(u) * FINE) for a, u in zip(across, up, strict=True)]
    pen.line(points, colour, round(width * FINE), joint="curve")
    radius = 3 * FINE
    for x, y in points if dots or len(points) == 1 else ():
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], colour)


def _apart(places: Sequence[float], widths: Sequence[float]) -> Iterator[int]:
    """Yields the numbers of the labels that have room beside the one before."""
    end = -math.inf
    for number, (place, width) in enumerate(zip(places, widths, strict=True)):
        if place - width / 2 > end:
            yield number
            end = place + width / 2 + 6


def _write_axes(image: Image.Image, across: Axis, up: Axis, spans: Sequence[tuple[str, int, int]]) -> None:
    pen, font, small = ImageDraw.Draw(image), _font(TEXT), _font(SMALL)
    columns = [_x(place) for place in across.place(np.array(across.ticks))]
    for number in _apart(columns, [font.getlength(label) for label in across.labels]):
        label = across.labels[number]
        pen.text((columns[number] - font.getlength(label) / 2, _y(0) + 7), label, GREY, font)
    rows = [-_y(place) for place in up.place(np.array(up.ticks))]
    for number in _apart(rows, [TEXT] * len(rows)):
        label = up.labels[number]
        pen.text((LEFT - 8 - font.getlength(label), -rows[number] - TEXT * 0.6), label, GREY, font)
    pen.text((_x(1) - font.getlength("step"), SIZE[1] - 21), "step", GREY, font)
    pen.text((10, TOP - 25), "log loss" if up.logarithmic else "loss", GREY, font)
    for title, first, last in spans:
        left, right = _between(first, across), _between(last, across) if last < spans[-1][2] else _x(1)
        text = _shortened(title, small, right - left - 10)
        pen.text(((left + right - small.getlength(text)) / 2, TOP - 18), text, INK, small)


def _shortened(text: str, font, width: float) -> str:
    """Returns the text, or as much of it as fits with two dots at the end, or nothing."""
    if font.getlength(text) <= width:
        return text
    fits = (f"{text[:count].rstrip()}.." for count in range(len(text) - 1, 2, -1))
    return next((part for part in fits if font.getlength(part) <= width), "")


def _write_head(image: Image.Image, summary: str, legend: Sequence[tuple[str, Colour]]) -> None:
    pen, title, font = ImageDraw.Draw(image), _font(TITLE), _font(TEXT)
    pen.text((10, 12), "Training loss", INK, title)
    pen.text((10 + title.getlength("Training loss") + 16, 18), summary, GREY, font)
    right = SIZE[0] - RIGHT
    for text, colour in legend:
        right -= font.getlength(text)
        pen.text((right, 18), text, GREY, font)
        pen.rectangle([right - 26, 25, right - 8, 27], colour)
        right -= 44
