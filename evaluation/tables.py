"""The table of an evaluation as Markdown, CSV and JSON, beside figures that others have published."""

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..disk import explain, write_whole
from ..errors import EvaluationError
from ..models.families import title_of
from ..rewards.table import SCORERS
from .summary import Column, Measure, Row, Summary

QUOTED = Path(__file__).with_name("quoted.json")
NAME = "table"
FORMAT = "hyper-sd evaluation table 1"
PARTS = ("", "_low", "_high", "_difference", "_difference_low", "_difference_high")


@dataclass(frozen=True)
class Quoted:
    """A model's scores that somebody else has published.

    Args:
        family: of the model.
        model: its name.
        steps: model evaluations.
        scores: by the ids of rewards.table, on the scale of the pack's own scores.
    """

    family: str
    model: str
    steps: int
    scores: dict[str, float]


@dataclass(frozen=True)
class Source:
    """Where quoted scores stand.

    Args:
        id: a short name.
        title: for people.
        where: the publication.
        settings: how they were measured, as far as it is said.
        differs: which settings differ from those of a table of this pack, or are not known.
        rows: the scores.
    """

    id: str
    title: str
    where: str
    settings: str
    differs: str
    rows: tuple[Quoted, ...]


def load_quoted(path: Path = QUOTED) -> tuple[Source, ...]:
    """Returns the published figures that the pack knows."""
    sources = []
    for entry in json.loads(path.read_text(encoding="utf-8"))["sources"]:
        scale, rows = entry.pop("scale", {}), []
        for row in entry.pop("rows"):
            scores = {metric: value * scale.get(metric, 1) for metric, value in row.pop("scores").items()}
            rows.append(Quoted(**row, scores=scores))
        sources.append(Source(**entry, rows=tuple(rows)))
    return tuple(sources)


def quoted_beside(summary: Summary, sources: Sequence[Source] | None = None) -> list[tuple[Source, list[Quoted]]]:
    """Returns what was published on the family of the summary's model; beside the demo model, everything."""
    found = []
    for source in load_quoted() if sources is None else sources:
        model = summary.plan.model
        rows = [row for row in source.rows if model.is_embedded or row.family == model.family]
        found += [(source, rows)] if rows else []
    return found


def write_tables(summary: Summary, out: Path) -> list[Path]:
    """Writes table.md, table.csv and table.json into a folder, and returns their paths.

    Raises: EvaluationError where it cannot be written.
    """
    contents = {"md": as_markdown(summary), "csv": as_csv(summary), "json": as_json(summary)}
    paths = {ending: out / f"{NAME}.{ending}" for ending in contents}
    try:
        for ending, path in paths.items():
            write_whole(path, contents[ending].encode())
    except OSError as error:
        raise EvaluationError(f"The table cannot be kept: {explain(error, out)}.") from error
    return list(paths.values())


def as_markdown(summary: Summary) -> str:
    """Returns the tables of means, of differences to the base, and of what others have published, with what belongs to them."""
    blocks = ["# Evaluation", _head(summary), _grid(*_means(summary))]
    if any(row.differences for row in summary.rows):
        blocks += [
            f"Difference to the base ({summary.plan.base.label}), picture by picture on the same prompt and noise. In bold "
            "where the interval leaves out 0.",
            _grid(*_differences(summary, "differences")),
        ]
    if any(row.added for row in summary.rows):
        blocks += ["What the last LoRA adds to those before it, in the same way.", _grid(*_differences(summary, "added"))]
    blocks += ["\n".join(f"- {note}" for note in summary.notes)]
    for source, rows in quoted_beside(summary):
        metrics = [metric for metric in SCORERS if any(metric in row.scores for row in rows)]
        head = ["model", "steps", *(SCORERS[metric].title for metric in metrics)]
        body = [[r.model, str(r.steps), *(f"{r.scores[m]:.4g}" if m in r.scores else "" for m in metrics)] for r in rows]
        blocks += [f"## Quoted, not measured here: {source.title}", _told(source, summary), _grid(head, body)]
    return "\n\n".join(blocks) + "\n"


def _told(source: Source, summary: Summary) -> str:
    other = " They are of other models than the demo model, whose numbers cannot be held against them: compare orders."
    return f"{source.where}. {source.settings}. {source.differs}{other if summary.plan.model.is_embedded else ''}"


def _head(summary: Summary) -> str:
    plan = summary.plan
    source = plan.source.name if plan.source else "held-out labels of the demo model"
    pictures = f"{len(plan.prompts)} prompts ({source}), {plan.seeds} of each"
    parts = [
        f"Model: {plan.model.title}, {title_of(plan.model.family)}, {plan.model.size} px, drawn through {plan.through}",
        f"prompts as they stand, with an empty negative prompt: {pictures}",
    ]
    return "; ".join(parts) + (f". Machine: {summary.machine}." if summary.machine else ".")


def _means(summary: Summary) -> tuple[list[str], list[list[str]]]:
    arrows = {"higher": "(more is better)", "lower": "(less is better)", "": ""}
    head = ["way to draw", "CFG", "network calls", *(f"{c.title} {arrows[c.is_better]}".rstrip() for c in summary.columns)]
    rows = []
    for row in summary.rows:
        told = [row.arm.label, f"{row.arm.cfg:g}", str(row.arm.cost)]
        rows.append([*told, *(written(row.measures.get(column.id), column) for column in summary.columns)])
    return head, rows


def _differences(summary: Summary, kind: str) -> tuple[list[str], list[list[str]]]:
    """Returns the table of one of a row's two kinds of differences."""
    told = [(row.arm.label, found) for row in summary.rows if (found := getattr(row, kind))]
    columns, rows = [c for c in summary.columns if any(c.id in found for _, found in told)], []
    for label, found in told:
        cells = [(found[c.id], written(found[c.id], c, "+")) for c in columns]
        rows.append([label, *(f"**{text}**" if measure.is_clear else text for measure, text in cells)])
    return ["way to draw", *(column.title for column in columns)], rows


def written(measure: Measure | None, column: Column, sign: str = "") -> str:
    """Returns "12.3 [11.0, 13.5]", without brackets where there is no interval, "" where nothing was measured."""
    if measure is None or math.isnan(measure.value):
        return ""
    form = f"{sign}.{column.decimals}f"
    ends = "" if math.isnan(measure.low) else f" [{measure.low:{form}}, {measure.high:{form}}]"
    return f"{measure.value:{form}}{ends}"


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    marks = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, marks, *rows))


def as_csv(summary: Summary) -> str:
    """Returns one row for each arm and for each quoted model; a measure has its value, interval and difference to the base."""
    quoted = quoted_beside(summary)
    metrics = [column.id for column in summary.columns]
    metrics += [m for m in SCORERS if m not in metrics and any(m in row.scores for _, rows in quoted for row in rows)]
    fields = ["source", "model", "way_to_draw", "steps", "network_calls", "cfg", "pictures"]
    content = io.StringIO()
    writer = csv.DictWriter(content, [*fields, *(metric + part for metric in metrics for part in PARTS)], lineterminator="\n")
    writer.writeheader()
    for row in summary.rows:
        arm, told = row.arm, {"source": "measured here", "model": summary.plan.model.title, "pictures": row.pictures}
        told |= {"way_to_draw": arm.label, "steps": arm.steps, "network_calls": arm.cost, "cfg": arm.cfg}
        writer.writerow(told | dict(_cells(row)))
    for source, rows in quoted:
        for entry in rows:
            told = {"source": f"quoted: {source.title}", "model": entry.model, "steps": entry.steps}
            writer.writerow(told | {metric: f"{value:g}" for metric, value in entry.scores.items()})
    return content.getvalue()


def _cells(row: Row) -> Iterator[tuple[str, str]]:
    for parts, measures in ((PARTS[:3], row.measures), (PARTS[3:], row.differences)):
        for metric, measure in measures.items():
            numbers = zip(parts, measure, strict=True)
            yield from ((metric + part, f"{number:.6g}") for part, number in numbers if not math.isnan(number))


def as_plain(summary: Summary) -> dict[str, Any]:
    """Returns the table as data for JSON; nan becomes None."""
    rows = [
        {
            "way_to_draw": row.arm.label, "series": row.arm.series, "network_calls": row.arm.cost, **row.arm.settings,
            "pictures": row.pictures, "measures": _plain(row.measures), "differences": _plain(row.differences),
            "added_by_the_last_lora": _plain(row.added),
        }
        for row in summary.rows
    ]  # fmt: skip
    for plain, row in zip(rows, summary.rows, strict=True):
        plain["loras"] = [{"file": use.path.name, "strength": use.strength} for use in row.arm.loras]
    plan = summary.plan
    quoted = [
        {key: getattr(source, key) for key in ("title", "where", "settings", "differs")} | {"rows": [vars(r) for r in rows]}
        for source, rows in quoted_beside(summary)
    ]
    return {
        "format": FORMAT, "model": plan.model.title, "family": plan.model.family, "size": plan.model.size,
        "through": plan.through, "machine": summary.machine, "prompts": len(plan.prompts),
        "prompts_from": plan.source.name if plan.source else "held-out labels of the demo model", "seeds": plan.seeds,
        "base": plan.base.label if plan.base else None, "columns": [vars(column) for column in summary.columns],
        "rows": rows, "notes": list(summary.notes), "quoted": quoted,
    }  # fmt: skip


def _plain(measures: dict[str, Measure]) -> dict[str, dict[str, float | None]]:
    def number(value: float) -> float | None:
        return None if math.isnan(value) else float(f"{value:.6g}")

    return {name: {key: number(value) for key, value in measure._asdict().items()} for name, measure in measures.items()}


def as_json(summary: Summary) -> str:
    """Returns the table as JSON."""
    return json.dumps(as_plain(summary), indent=1, ensure_ascii=False) + "\n"
