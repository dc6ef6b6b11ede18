"""The programs in examples/ run as a newcomer runs them, and leave what they promise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hyper_sd.tests.documents import ROOT
from PIL import Image

STEPS = 2
# `python examples/...` where the package is not installed.
START = """
import runpy, sys
sys.path.insert(0, ".")
import install
install.bind_package()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_example(*arguments: str) -> str:
    """Runs an example in a process of its own and returns what it printed."""
    command, environment = [sys.executable, "-c", START, *arguments], {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """(folder, what was printed) of a short run of train_lora.py."""
    folder = tmp_path_factory.mktemp("example")
    return folder, run_example("examples/train_lora.py", "--steps", str(STEPS), "--out", str(folder))


def test_train_lora_tells_every_step_and_where_the_files_are(first_run):
    folder, printed = first_run
    lines = printed.splitlines()
    assert [line.split(",")[0] for line in lines[:-1]] == [f"step {step} of {2 * STEPS}" for step in range(1, 2 * STEPS + 1)]
    assert str(folder) in lines[-1]


def test_train_lora_writes_loras_that_fit_the_demo_model(first_run):
    from hyper_sd.training.export import load_lora
    from hyper_sd.training.launch.embedded_model import load_embedded_model
    from hyper_sd.training.lora_layers import LoraLayers

    layers = LoraLayers(load_embedded_model("fp32").network, rank=8)
    for segments in (4, 1):
        load_lora(first_run[0] / f"segments-{segments}.safetensors", layers, f"{segments} segments")
        assert any(bool(up.any()) for up in layers.sets[f"{segments} segments"].up)


def test_train_lora_draws_what_changed(first_run):
    with Image.open(first_run[0] / "before-and-after.png") as sheet:
        assert sheet.width > 5 * 256
        assert sheet.height > 2 * 256


def test_train_lora_goes_on_where_it_was(first_run):
    again = run_example("examples/train_lora.py", "--steps", str(STEPS), "--out", str(first_run[0]))
    assert len(again.splitlines()) == 1


def test_train_style_is_a_run_file_whose_data_is_there():
    from hyper_sd.training.launch.run_file import read_run_file

    file = read_run_file(ROOT / "examples" / "train_style.toml")
    assert file.model.embedded
    assert len(list(Path(file.data.folder).glob("*.png"))) == 20
    assert Path(file.output.folder).resolve() == ROOT / "trained-example"


def test_examples_are_short():
    for file in (ROOT / "examples").glob("*.py"):
        assert len(file.read_text(encoding="utf-8").splitlines()) < 100, file.name
