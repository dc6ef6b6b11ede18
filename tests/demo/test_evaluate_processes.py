"""Two processes on the CPU share the pictures, and the first one scores and writes."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hyper_sd.evaluation.drawing import read_drawn
from hyper_sd.models.embedded import CHECKPOINT

pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")
pytestmark = pytest.mark.skipif(not CHECKPOINT.is_file(), reason="demo/model holds no weights")


def launch(*words):
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"USE_LIBUV": "0"} if sys.platform == "win32" else {}  # not in every build of torch for Windows
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
        str(Path(__file__).parent / "evaluate_module.py"), *map(str, words),
    ]  # fmt: skip
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=500, check=False
    )


def test_two_processes_draw_each_picture_once_and_one_table(tmp_path):
    words = ("--through", "diffusers", "--limit", "2", "--base-steps", "1", "--lora", "unified", "--steps", "1", "--batch", "1")
    done = launch(*words, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("8 pictures in") == 1
    assert "Drawn: 4 pictures" in done.stdout
    drawn = [read_drawn(path) for path in sorted((tmp_path / "images").rglob("*.png"))]
    assert len(drawn) == 8
    assert sum(each.first for each in drawn) == 4  # of each arm, the first one of each process
    rows = list(csv.DictReader((tmp_path / "table.csv").open(encoding="utf-8")))
    assert [row["pictures"] for row in rows if row["source"] == "measured here"] == ["4", "4"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "images").rglob("*.png")}
    again = launch(*words, "--out", tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "8 are there, 0 are drawn" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "images").rglob("*.png")}
