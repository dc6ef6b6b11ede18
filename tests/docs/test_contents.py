"""What a page repeats is what its original says: code, settings, names of files and functions."""

import importlib
import json
import re
import statistics
import textwrap
from dataclasses import fields
from pathlib import Path

import pytest
from hyper_sd.disk import format_bytes
from hyper_sd.models.catalog import load_catalog
from hyper_sd.models.entry import FOLDERS
from hyper_sd.models.host_folders import HOST_FOLDERS
from hyper_sd.models.progress import Progress, Row, State
from hyper_sd.rewards.table import SCORERS
from hyper_sd.tests.documents import DOCS, ROOT, Page, each, words_of
from hyper_sd.training.request import TrainRequest
from hyper_sd.webui_extension.settings_table import TABLE, read_settings

QUOTED = {"python", "toml"}
# Where a benchmark's result has the numbers of its answer; of a list the mean counts.
ANSWERS = {
    "sampler_overhead": ["devices/cpu/ratio_to_lcm/median"],
    "webui_overhead": ["without the network/ratio_quartiles/1", "CFG 1/ratio_quartiles/1"],
    "lora_apply": ["apply/ratio/median"],
    "second_lora": ["seconds/first/median", "before/seconds/first/median", "seconds/later/median"],
    "one_step_load": ["cases/2/time_ratio", "cases/1/time_ratio"],
    "download": ["gigabit/ratio/median", "unlimited/ratio/median"],
    "distillation": ["tables/a_against_teacher/kid/4/unified/share"],
    "one_step": [
        "met/pairs, 8 TSCD, rate 4e-4/worst_share_beside_tscd_that_goes_on",
        "scores/pairs/1 steps, 1 segments, eta 0, from 800/kid/mean",
    ],
    "feedback": [
        f"arms/one reward/strength 1/1/{judge}/{when}"
        for judge in ("embedded_match", "retrieval")
        for when in ("before", "after")
    ],
    "taste": [f"votes/{votes}/learnt/held out, {what}/mean" for votes in (100, 300) for what in ("votes", "best")]
    + [f"votes/300/lora/0.3/1/retrieval/{when}" for when in ("before", "after")],
    "style_finetune": ["style_distance_beside_stacked/distilled/4"],
    "training_cost": ["results/0/ratio_of_time/median"],
    "score_cost": ["results/0/ratio_of_time/median", "results/0/ratio_of_held"],
    "first_step": ["together/median", "before/together/median"],
    "op_count": [
        f"cases/{case}, bf16{how}/ratio/{what}"
        for case, how in (("sdxl narrow, finetune", ", plain"), ("embedded, tscd", "")) for what in ("computing", "operators")
    ],
    "train_lora": [
        f"cases/2/ratio_to/{side}/{what}/median" for side in ("plain", "checkpointing") for what in ("processor_time", "growth")
    ],
    "demo_quality": ["steps/25/retrieval_top1/mean", "reconstruction/retrieval_top1"],
    "demo_loras": [
        "scores/unified LoRA, 4 steps/retrieval_top1/mean", "teacher_25_steps/retrieval_top1",
        "scores/base, 4 steps/retrieval_top1/mean", "scores/one-step LoRA from 800/retrieval_top1/mean",
    ],
    "demo_scorers": ["accuracy/base, 25 steps/top1", "accuracy/drawings it has learnt from/top1"],
    "demo_controlnet": ["unified LoRA, 4 steps/0.8/met/mean", "unified LoRA, 4 steps/0/met/mean"],
}  # fmt: skip


def _page(name: str) -> Page:
    return next(page for page in DOCS if page.path == Path("docs", name))


def _stands_in(file: Path, code: str) -> bool:
    lines, size = file.read_text(encoding="utf-8").splitlines(), len(code.splitlines())
    windows = ("\n".join(lines[first : first + size]) for first in range(len(lines) - size + 1))
    return any(textwrap.dedent(window) == code for window in windows)


def test_page_of_downloads_has_the_files_of_every_score():
    text = _page("downloads.md").text
    for kind in SCORERS.values():
        files = ", ".join(f"`{entry_id}`" for entry_id in kind.files)
        assert not kind.files or f"| {kind.title} | {files} |" in text


def test_page_of_downloads_names_every_scorers_file_with_size_and_licence():
    lines = (ROOT / "docs" / "downloads.md").read_text(encoding="utf-8").splitlines()
    for entry in (entry for entry in load_catalog() if entry.is_reward):
        facts = (f"`{entry.id}`", entry.title, format_bytes(entry.approximate_size), entry.licence.title)
        assert any(all(fact in line for fact in facts) for line in lines), facts


@each([page for page in DOCS if QUOTED & {language for language, _ in page.blocks}])
def test_quoted_code_is_the_code_of_an_example(page):
    examples = [path for path in (ROOT / "examples").iterdir() if path.is_file()]
    for language, code in page.blocks:
        assert language not in QUOTED or any(_stands_in(file, code.rstrip("\n")) for file in examples), code


@each([page for page in DOCS if "json" in {language for language, _ in page.blocks}])
def test_json_can_be_read(page):
    assert all(json.loads(code) for language, code in page.blocks if language == "json")


def test_benchmarks_table_has_a_row_for_every_benchmark():
    page, programs = _page("benchmarks.md"), set()
    for file in (ROOT / "benchmarks").glob("*.py"):
        if '__name__ == "__main__"' in file.read_text(encoding="utf-8"):
            programs.add(f"hyper_sd.benchmarks.{file.stem}")
    assert {words_of(command)[2] for command in page.commands if "-m" in command} == programs
    assert page.tables[0] == (3, len(programs))


@pytest.mark.parametrize("benchmark", ANSWERS)
def test_answers_numbers_are_those_of_the_result(benchmark):
    row = next(line for line in _page("benchmarks.md").text.splitlines() if f"hyper_sd.benchmarks.{benchmark} " in line)
    answer = [float(number) for number in re.findall(r"[\d.]*\d", row.split("|")[2])]
    for path in ANSWERS[benchmark]:
        value = json.loads((ROOT / "benchmarks" / "results" / f"{benchmark}.json").read_text(encoding="utf-8"))
        for key in path.split("/"):
            value = value[int(key)] if isinstance(value, list) else value[key]
        value = statistics.mean(value) if isinstance(value, list) else value
        assert any(abs(number - value) < 0.0051 or abs(number - 100 * value) < 0.51 for number in answer), (path, value)


def test_table_of_operators_is_that_of_the_result():
    section = _page("benchmarks.md").text.split("## Operators and peak memory")[1].split("\nThe aim was half")[0]
    rows = [[float(cell) for cell in row.split("|")[2:8]] for row in section.splitlines()[-6:]]
    result = json.loads((ROOT / "benchmarks" / "results" / "op_count.json").read_text(encoding="utf-8"))
    counted = [case for case in result["cases"].values() if "before" in case]
    expected = []
    for case in counted:
        expected.append([])
        for what in ("computing", "operators"):
            expected[-1] += [case["before"][what], case[what], round(case["ratio"][what], 2)]
    assert sorted(rows) == sorted(expected)


def test_table_of_the_demo_model_is_that_of_the_result():
    section = _page("evaluation.md").text.split("### The demo model's table")[1].split("\n## ")[0]
    table = json.loads((ROOT / "benchmarks" / "results" / "evaluation.json").read_text(encoding="utf-8"))
    digits = {"embedded_match": 1, "embedded_quality": 2, "retrieval": 0, "kid": 0, "diversity": 2}
    expected = []
    for row in table["rows"]:
        found = [(row["measures"].get(name), places) for name, places in digits.items()]
        ends = [f"{m['value']:.{p}f} [{m['low']:.{p}f}, {m['high']:.{p}f}]" if m else "" for m, p in found]
        expected.append([row["way_to_draw"], str(row["network_calls"]), *ends])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]
    assert rows[2:] == expected


def test_map_of_training_has_a_row_for_every_file():
    page, folder = _page("training.md"), ROOT / "training"
    mapped = page.text[page.text.index("### A map of `training/`") :].split("\n## ")[0]
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if "__pycache__" not in path.parts}
    assert set(re.findall(r"^\| `([\w/]+\.\w+)`", mapped, re.MULTILINE)) == files


def test_training_page_has_the_settings_of_the_node_and_the_run_file():
    table = _page("training.md").text.split("| setting | meaning |")[1].split("\n\n")[0]
    names = re.findall(r"^\| ([a-z_, ]+) \|", table, re.MULTILINE)
    assert sorted(", ".join(names).split(", ")) == sorted(field.name for field in fields(TrainRequest))


def test_api_page_has_the_table_of_the_settings():
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|$", _page("api.md").text, re.MULTILINE)
    assert [(name, json.loads(default)) for name, default, _ in rows] == [(spec.name, spec.default) for spec in TABLE]
    for spec, (_, _, allowed) in zip(TABLE, rows, strict=True):
        numbers = re.match(r"([\d.]+) to ([\d.]+)", allowed)
        assert not numbers or [spec.low, spec.high] == [float(number) for number in numbers.groups()]
        assert tuple(re.findall(r'"([\w -]+)"', allowed)) == tuple(spec.options)


def test_api_page_has_the_fields_of_a_row():
    row = Row(next(iter(load_catalog())), Progress(State.MISSING)).to_json()
    sentence, table = _page("api.md").text.split("An entry has these fields.")[1].split("| field |")
    assert re.findall(r'"(\w+)"', sentence) == [state.value for state in State]
    names = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", table.split("\n\n")[0], re.MULTILINE)
    assert set(re.findall(r"\w+", " ".join(names))) == row.keys()


def test_downloads_page_has_the_folders_of_the_hosts():
    rows = re.findall(r"^\| [\w -]+ \| `(\w+)` \| `([\w-]+)`.* \|$", _page("downloads.md").text, re.MULTILINE)
    assert [comfyui for comfyui, _ in rows] == list(dict.fromkeys(FOLDERS.values()))
    for kind, webui in rows:
        assert HOST_FOLDERS["comfyui"][kind][0] == kind
        assert HOST_FOLDERS["a1111"][kind][0] == HOST_FOLDERS["forge"][kind][0] == webui


def test_arguments_of_the_api_page_are_read():
    asked = re.search(r"-d '(\{.*?\})' \|", _page("api.md").text, re.DOTALL)[1]
    arguments = json.loads(asked)["alwayson_scripts"]["Hyper-SD"]["args"]
    assert read_settings(arguments, {}).enabled


def test_page_of_a1111_has_the_settings_of_the_panel():
    labels = re.findall(r"^\| ([A-Z][\w ,-]+) \|", _page("a1111.md").text, re.MULTILINE)
    assert labels == [spec.label for spec in TABLE]


def test_functions_that_the_api_page_names_exist():
    named = re.findall(r"`(hyper_sd(?:\.\w+)+)\.(\w+)`", _page("api.md").text)
    assert len(named) > 5
    assert [name for module, name in named if not hasattr(importlib.import_module(module), name)] == []
