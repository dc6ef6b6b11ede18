"""A chart of what votes say: win rates of each two arms, and strengths of many, with their intervals."""

import io
import math

from ..errors import EvaluationError
from .vote_report import VoteReport
from .win_rates import Meeting

BLUE, GREY, ORANGE = "#1f52c4", "#8a8d94", "#d55e00"
ROW = 0.55  # inches of a row
LONGEST = 28  # signs of an arm's name


def vote_chart(report: VoteReport) -> bytes:
    """Returns a PNG with a row for each two arms, and one for each arm where there are more than two.

    Raises: EvaluationError without matplotlib, or without a vote.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EvaluationError(f"A chart needs matplotlib ({error}); install it: pip install matplotlib") from error
    if not report.meetings:
        raise EvaluationError("There is no vote to draw; give files of votes with at least one answer.")
    rows = [len(report.meetings), len(report.strengths)] if report.strengths else [len(report.meetings)]
    figure = Figure(figsize=(8, ROW * sum(rows) + 1.5 * len(rows)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), 1, squeeze=False, height_ratios=[count + 1 for count in rows])[:, 0]
    _draw_meetings(panels[0], report)
    if report.strengths:
        _draw_strengths(panels[1], report)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _draw_meetings(panel, report: VoteReport) -> None:
    for row, meeting in enumerate(report.meetings):
        value, (low, high) = meeting.share.value, meeting.interval
        colour = GREY if low <= 0.5 <= high else BLUE
        _point(panel, row, 100 * value, 100 * low, 100 * high, colour)
        panel.text(103, row, f"{100 * value:.0f} % of {meeting.share.total}", va="center", fontsize=9)
    panel.axvline(50, color="#444444", linewidth=1, linestyle="--")
    panel.set_xlim(0, 100)
    _label(panel, [_versus(meeting) for meeting in report.meetings])
    voters = "1 voter" if report.voters == 1 else f"{report.voters} voters"
    panel.set_title(f"How often the first is liked better ({voters}, {report.answers} answers)", fontsize=11, loc="left")
    panel.set_xlabel("% of answers, ties count half, with 95 % intervals", fontsize=9)


def _draw_strengths(panel, report: VoteReport) -> None:
    for row, strength in enumerate(report.strengths):
        _point(panel, row, strength.value, *strength.interval, ORANGE)
    panel.axvline(0, color="#444444", linewidth=1, linestyle="--")
    _label(panel, [_short(strength.arm) for strength in report.strengths])
    panel.set_title("Strength beside the mean of all (Bradley-Terry)", fontsize=11, loc="left")
    panel.set_xlabel("1 more: wins 73 % against; with 95 % intervals", fontsize=9)


def _point(panel, row: int, value: float, low: float, high: float, colour: str) -> None:
    if not math.isnan(low):
        panel.plot([low, high], [row, row], color=colour, linewidth=2.5, solid_capstyle="butt")
    panel.plot([value], [row], marker="o", color=colour, markersize=8)


def _label(panel, labels: list[str]) -> None:
    panel.set_yticks(range(len(labels)), labels, fontsize=9)
    panel.set_ylim(len(labels) - 0.4, -0.6)
    panel.grid(axis="x", color="#dddddd")
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)


def _versus(meeting: Meeting) -> str:
    return f"{_short(meeting.one)} against\n{_short(meeting.other)}"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 2]}.."
