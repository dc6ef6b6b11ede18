"""One table in three forms, beside figures that others have published."""

import csv
import io
import json
import re
import sys

import pytest
from hyper_sd.errors import EvaluationError
from hyper_sd.evaluation.drawing import draw, missing
from hyper_sd.evaluation.plan import Model
from hyper_sd.evaluation.quality_chart import chart_by_seconds, chart_by_steps
from hyper_sd.evaluation.report import sheet, write_report
from hyper_sd.evaluation.summary import Column, Measure, Row, Summary
from hyper_sd.evaluation.tables import as_csv, as_markdown, as_plain, load_quoted, quoted_beside, write_tables, written
from hyper_sd.tests.evaluation.evaluations import Painter, make_plan
from PIL import Image

NAN = float("nan")
COLUMNS = (Column("clip", "CLIP score"), Column("kid", "KID", 1, "lower"), Column("seconds", "seconds a picture", 2, "lower"))
PNG = b"\x89PNG\r\n\x1a\n"


def _row(plan, number, measures, difference=None):
    differences = {"clip": Measure(*difference)} if difference else {}
    return Row(plan.arms[number], 8, {name: Measure(*ends) for name, ends in measures.items()}, differences)


def make_summary(plan=None):
    plan = plan or make_plan()
    rows = [
        _row(plan, 0, {"clip": (20.0, 18.5, 21.25), "kid": (9.0, NAN, NAN), "seconds": (0.5, 0.4, 0.6)}, (-11.0, -12.0, -10.0)),
        _row(plan, 1, {"clip": (31.0, 30.0, 32.0), "seconds": (5.0, 4.0, 6.0)}),
        _row(plan, 2, {"clip": (30.5, 29.0, 31.0), "kid": (1.0, -1.0, 3.0), "seconds": (0.7, 0.6, 0.8)}, (-0.5, -1.5, 0.5)),
    ]
    return Summary(plan, COLUMNS, tuple(rows), ("A note.",), "a machine")


def test_markdown_has_every_arm_with_its_interval_and_marks_clear_differences():
    text = as_markdown(make_summary())
    assert "| base, 1 step | 4 | 2 | 20.00 [18.50, 21.25] | 9.0 | 0.50 [0.40, 0.60] |" in text
    assert "| base, 25 steps | 4 | 50 | 31.00 [30.00, 32.00] |  | 5.00 [4.00, 6.00] |" in text
    assert "| base, 1 step | **-11.00 [-12.00, -10.00]** |" in text
    assert "| few, 4 steps | -0.50 [-1.50, +0.50] |" in text
    assert "- A note." in text
    assert "Machine: a machine." in text
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in text.split("\n\n")[2].splitlines()]
    assert len(set(widths)) == 1


def test_csv_and_json_hold_the_same_numbers():
    summary = make_summary()
    rows = [row for row in csv.DictReader(io.StringIO(as_csv(summary))) if row["source"] == "measured here"]
    plain = json.loads(json.dumps(as_plain(summary), allow_nan=False))
    assert [row["way_to_draw"] for row in rows] == [row["way_to_draw"] for row in plain["rows"]]
    for row, told in zip(rows, plain["rows"], strict=True):
        for part, ends in (
            ("measures", ("", "_low", "_high")),
            ("differences", ("_difference", "_difference_low", "_difference_high")),
        ):
            for name, measure in told[part].items():
                found = [float(row[name + end]) if row[name + end] else None for end in ends]
                assert found == [measure["value"], measure["low"], measure["high"]]
    assert plain["rows"][2]["loras"] == [{"file": "few.safetensors", "strength": 0.75}]
    assert plain["base"] == "base, 25 steps"


def test_quoted_figures_are_marked_with_their_source_and_what_differs():
    summary = make_summary()
    text = as_markdown(summary)
    for source in load_quoted():
        assert f"## Quoted, not measured here: {source.title}" in text
        assert source.differs in text
    assert "arXiv 2404.13686" in text
    assert "compare orders" in text
    rows = list(csv.DictReader(io.StringIO(as_csv(summary))))
    assert {row["source"].split(":")[0] for row in rows} == {"measured here", "quoted"}
    assert sum(row["source"] != "measured here" for row in rows) == sum(len(source.rows) for source in load_quoted())


def test_quoted_figures_are_on_the_scale_of_the_packs_own_scores():
    paper, other = load_quoted()
    base = next(row for row in paper.rows if (row.model, row.steps) == ("SDXL base", 25))
    assert base.scores == pytest.approx({"clip": 33.16, "aesthetic": 5.54, "image_reward": 0.87, "pick_score": 22.9})
    hyper = next(row for row in other.rows if row.model == "Hyper-SDXL")
    assert hyper.scores == pytest.approx({"clip": 32.54, "hps": 0.3, "pick_score": 22.98, "image_reward": 0.978})
    assert all(source.settings and source.differs and source.where for source in (paper, other))
    for metric, low, high in (("clip", 30, 34), ("pick_score", 20, 24), ("hps", 0.2, 0.35), ("aesthetic", 5, 6)):
        values = [row.scores[metric] for source in (paper, other) for row in source.rows if metric in row.scores]
        assert values
        assert all(low <= value <= high for value in values)


def test_only_figures_of_the_models_family_stand_beside_it(tmp_path):
    model = Model("my sd15", "sd15", "abc", 512, tmp_path / "a.safetensors")
    found = quoted_beside(make_summary(make_plan(model=model)))
    assert [source.id for source, _ in found] == ["paper"]
    assert {row.family for _, rows in found for row in rows} == {"sd15"}
    assert "compare orders" not in as_markdown(make_summary(make_plan(model=model)))


def test_number_without_interval_or_value_is_written_so():
    column = Column("hps", "HPS", 4)
    assert written(Measure(0.31236, NAN, NAN), column) == "0.3124"
    assert written(Measure(NAN, NAN, NAN), column) == written(None, column) == ""
    assert written(Measure(0.1, -0.1, 0.3), column, "+") == "+0.1000 [-0.1000, +0.3000]"


def test_table_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EvaluationError, match="table cannot be kept"):
        write_tables(make_summary(), tmp_path / "file")


@pytest.fixture
def results(tmp_path):
    plan = make_plan()
    list(draw(plan, tmp_path, missing(plan, tmp_path), Painter()))
    return tmp_path


def test_report_has_tables_sheet_and_charts(results):
    pytest.importorskip("matplotlib")
    paths = write_report(make_summary(), results, shown=2)
    assert [path.name for path in paths] == [
        "table.md", "table.csv", "table.json", "sheet.png", "by_steps.png", "by_seconds.png",
    ]  # fmt: skip
    for path in paths[3:]:
        with Image.open(path) as image:
            assert len(image.convert("RGB").resize((64, 64)).getcolors(4096)) > 10


def test_charts_show_an_arm_without_an_interval_and_one_without_seconds():
    pytest.importorskip("matplotlib")
    summary = make_summary()
    for chart in (chart_by_steps, chart_by_seconds):
        assert chart(summary).startswith(PNG)
    for row in summary.rows:
        row.measures.pop("seconds")
    assert chart_by_seconds(summary).startswith(PNG)


def test_charts_without_matplotlib_say_what_to_install_when_the_rest_is_written(results, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(EvaluationError, match="pip install matplotlib"):
        write_report(make_summary(), results)
    assert {path.name for path in results.iterdir()} >= {"table.md", "table.csv", "table.json", "sheet.png"}


def test_sheet_has_a_row_for_each_arm_and_a_column_for_each_prompt(results):
    plan = make_plan()
    with Image.open(io.BytesIO(sheet(plan, results, 2))) as two, Image.open(io.BytesIO(sheet(plan, results, 4))) as four:
        assert four.width - two.width == 2 * (128 + 8)
    few = make_plan(arms=plan.arms[:1])
    with Image.open(io.BytesIO(sheet(few, results, 4))) as one, Image.open(io.BytesIO(sheet(plan, results, 4))) as three:
        assert three.height - one.height == 2 * (128 + 8)
