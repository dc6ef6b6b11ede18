"""Charts of an evaluation: each score against steps and against seconds, with intervals."""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import EvaluationError
from .summary import SECONDS, Column, Row, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT, ACROSS = 4.6, 3.5, 3  # of a panel, in inches; panels beside one another
# Told apart by people who do not see all colours alike. Source: Okabe and Ito, "Color universal design", 2008.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F")
MARKS = "osD^vPX*"
APART = 1.04  # lines of one step count beside one another, so that no interval hides another
TICKS = [factor * 10.0**power for power in range(-4, 5) for factor in (1, 2, 5)]


def chart_by_steps(summary: Summary) -> bytes:
    """Returns a PNG of every score against the steps. Raises: EvaluationError without matplotlib."""
    columns = [column for column in summary.columns if column.id != SECONDS]
    return _chart(summary, columns, "steps")


def chart_by_seconds(summary: Summary) -> bytes:
    """Returns a PNG of every score against the seconds that a picture takes. Raises: EvaluationError without matplotlib."""
    columns = [column for column in summary.columns if column.id != SECONDS]
    return _chart(summary, columns, "seconds")


def _chart(summary: Summary, columns: Sequence[Column], against: str) -> bytes:
    figure_class, canvas = _matplotlib()
    across = min(len(columns), ACROSS)
    down = math.ceil(len(columns) / across)
    figure = figure_class(figsize=(WIDTH * across, HEIGHT * down + 0.8), dpi=110, layout="constrained")
    canvas(figure)
    panels = figure.subplots(down, across, squeeze=False).flatten().tolist()
    series = list(dict.fromkeys(row.arm.series for row in summary.rows))
    for column, panel in zip(columns, panels, strict=False):
        for place, name in enumerate(series):
            rows = [row for row in summary.rows if row.arm.series == name]
            _draw_line(panel, column, sorted(rows, key=lambda row: row.arm.steps), name, place, against)
        _dress(panel, column, summary, against)
    for panel in panels[len(columns) :]:
        panel.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False)
    plan = summary.plan
    figure.suptitle(f"{plan.model.title}: {len(plan.prompts)} prompts, {plan.seeds} of each, 95 % intervals", fontsize=12)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _matplotlib() -> tuple[Any, Any]:
    """Returns the class of figures and the one that draws them without a screen."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EvaluationError(f"Charts need matplotlib ({error}); install it: pip install matplotlib") from error
    return Figure, FigureCanvasAgg


def _draw_line(panel: "Axes", column: Column, rows: Sequence[Row], name: str, place: int, against: str) -> None:
    points = []
    for row in rows:
        measure, seconds = row.measures.get(column.id), row.measures.get(SECONDS)
        if measure is None or math.isnan(measure.value) or (against == "seconds" and seconds is None):
            continue
        has_ends = not math.isnan(measure.low)
        below, above = (measure.value - measure.low, measure.high - measure.value) if has_ends else (0.0, 0.0)
        place_across = row.arm.steps * APART**place if against == "steps" else seconds.value
        points.append((place_across, measure.value, max(below, 0), max(above, 0)))
    across, up, below, above = zip(*points, strict=True) if points else ([], [], [], [])
    style = {"color": COLOURS[place % len(COLOURS)], "marker": MARKS[place % len(MARKS)], "markersize": 5, "capsize": 3}
    panel.errorbar(across, up, [below, above], label=name, linewidth=1.5, elinewidth=1, **style)


def _dress(panel: "Axes", column: Column, summary: Summary, against: str) -> None:
    """Writes titles and axes; steps lie as far apart as they are multiples of one another."""
    better = f" ({column.is_better} is better)" if column.is_better else ""
    panel.set_title(column.title + better, fontsize=9.5)
    panel.set_xscale("log")
    panel.set_xlabel("steps" if against == "steps" else "seconds a picture", fontsize=9)
    if against == "steps":
        places = sorted({float(row.arm.steps) for row in summary.rows})
        low, high = places[0] / 1.2, places[-1] * 1.3
    else:
        taken = [row.measures[SECONDS].value for row in summary.rows if SECONDS in row.measures] or [1.0]
        low, high = min(taken) / 1.3, max(taken) * 1.3
        places = [tick for tick in TICKS if low <= tick <= high]
    panel.set_xticks(places, [f"{place:g}" for place in places])
    panel.minorticks_off()
    panel.set_xlim(low, high)
    panel.tick_params(labelsize=8.5)
    panel.grid(visible=True, color="#e4e7eb", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
