"""Everything that an evaluation leaves beside its pictures: tables, charts and a sheet of a few prompts."""

import io
from pathlib import Path

from PIL import Image

from ..disk import explain, write_whole
from ..errors import EvaluationError
from .contact_sheet import grid_sheet
from .plan import Plan
from .prompts import spread
from .quality_chart import chart_by_seconds, chart_by_steps
from .summary import Summary
from .tables import write_tables

SHEET, BY_STEPS, BY_SECONDS = "sheet.png", "by_steps.png", "by_seconds.png"
SHOWN = 6  # prompts on the sheet


def write_report(summary: Summary, out: Path, shown: int = SHOWN) -> list[Path]:
    """Writes the tables, the sheet and the charts, and returns their paths.

    Args:
        summary: what was measured.
        out: the folder of results, with the pictures.
        shown: prompts on the sheet.
    Raises: EvaluationError where a file cannot be written, and for the charts without matplotlib, when all else is written.
    """
    paths = write_tables(summary, out)
    paths.append(_write(out / SHEET, sheet(summary.plan, out, shown)))
    paths.append(_write(out / BY_STEPS, chart_by_steps(summary)))
    paths.append(_write(out / BY_SECONDS, chart_by_seconds(summary)))
    return paths


def sheet(plan: Plan, out: Path, shown: int = SHOWN) -> bytes:
    """Returns a PNG with a row for each arm and a column for each of a few prompts, all of a column from the same noise."""
    numbers = spread(range(len(plan.prompts)), shown)
    rows = []
    for arm in plan.arms:
        jobs = [plan.jobs_of(arm)[number] for number in numbers]  # the first seed's come first
        rows.append([_opened(job.path(out)) for job in jobs])
    content = io.BytesIO()
    headings = [plan.prompts[number] for number in numbers]
    headings = [text if len(text) <= 60 else f"{text[:57]}..." for text in headings]
    title = f"{plan.model.title}: the same noise in every row"
    grid_sheet(rows, [arm.label for arm in plan.arms], headings, title).save(content, "PNG")
    return content.getvalue()


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _write(path: Path, content: bytes) -> Path:
    try:
        write_whole(path, content)
    except OSError as error:
        raise EvaluationError(f"{path.name} cannot be kept: {explain(error, path.parent)}.") from error
    return path
