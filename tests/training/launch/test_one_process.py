"""One process that no launcher has started, beside the same run under accelerate."""

import signal
import sys

import pytest
import torch
from hyper_sd.errors import TrainingError
from hyper_sd.tests.training.launch.log_spy import Spy
from hyper_sd.tests.training.launch.tiny_pipelines import ADVERSARIAL, save_pipeline, write_images, write_preset_run, write_run
from hyper_sd.training.launch import __main__ as launch
from hyper_sd.training.launch import one_process
from hyper_sd.training.launch.one_process import OneProcess, is_launched, runs_alone
from safetensors.torch import load_file

accelerate = pytest.importorskip("accelerate")
pytestmark = pytest.mark.usefixtures("one_process")
HALF = "precision = 'bf16'\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("models") / "sd15")


@pytest.fixture
def alone(monkeypatch):
    """Starts a run file without a launcher, where accelerate must not be imported, or under one."""

    def start(path, is_alone=True):
        with monkeypatch.context() as patch:
            if is_alone:
                patch.delenv("ACCELERATE_USE_CPU")
                patch.setattr(torch.cuda, "is_available", lambda: False)
                for name in [name for name in sys.modules if name.endswith("launch.accelerate_engine")]:
                    patch.delitem(sys.modules, name)
                patch.setitem(sys.modules, "hyper_sd.training.launch.accelerate_engine", None)
            accelerate.state.AcceleratorState._reset_state(True)
            return launch.main([str(path)])

    return start


def same(folder, names=("one", "other")):
    # An interrupted run has saved at other steps, so the checkpoint before the last is another.
    found = ([p for p in (folder / name).rglob("*.safetensors") if not p.name.startswith("previous_")] for name in names)
    one, other = ({p.relative_to(folder / name): p for p in files} for name, files in zip(names, found, strict=True))
    assert one.keys() == other.keys() != set()
    for name, path in one.items():
        a, b = load_file(path), load_file(other[name])
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), name


@pytest.mark.parametrize("precision", ["", HALF], ids=["fp32", "bf16"])
def test_run_learns_the_same_as_under_accelerate_and_goes_on_under_either_to_the_bit(tmp_path, model, alone, caplog, precision):
    write_images(tmp_path / "images")
    data = "folder = 'images'"
    one, other = (write_run(tmp_path / f"{o}.toml", model, data, ADVERSARIAL, precision, out=o) for o in ("one", "other"))
    assert alone(one, is_alone=False) == 0
    before = len(caplog.records)
    with Spy(r"step 2/6", lambda: signal.raise_signal(signal.SIGINT)):
        assert alone(other) == launch.STOPPED
    text = "\n".join(record.getMessage() for record in caplog.records[before:])
    assert "1 process(es) on cpu" in text
    assert "Stopped after step 3 of 6" in text
    with Spy(r"step 4/6", lambda: signal.raise_signal(signal.SIGINT)):
        assert alone(other, is_alone=False) == launch.STOPPED
    assert alone(other) == 0
    same(tmp_path)


def test_run_by_preset_learns_the_same_as_under_accelerate(tmp_path, alone):
    paths = [write_preset_run(tmp_path / f"{out}.toml", out=out) for out in ("one", "other")]
    assert [alone(path, is_alone=is_alone) for path, is_alone in zip(paths, (False, True), strict=True)] == [0, 0]
    same(tmp_path)


def test_half_precision_of_cards_is_refused_on_a_processor_as_under_accelerate(tmp_path, model, alone, caplog):
    write_images(tmp_path / "images", 2)
    path = write_run(tmp_path / "run.toml", model, "folder = 'images'", training="precision = 'fp16'\n")
    assert alone(path) == alone(path, is_alone=False) == launch.FAILED
    first, second = (r.getMessage() for r in caplog.records if "needs a GPU" in r.getMessage())
    assert first == second == "precision 'fp16' needs a GPU, here is cpu; use bf16 or fp32."


def test_card_without_bf16_is_refused_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    with pytest.raises(TrainingError, match=r"'bf16' does not run here .*use fp16 or fp32"):
        OneProcess("bf16")
    engine = OneProcess("fp32")
    assert (engine.device, engine.records) == (torch.device("cuda", 0), True)


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"])
def test_process_that_a_launcher_has_started_is_told_by_its_variables(monkeypatch, name):
    for other in ("ACCELERATE_USE_CPU", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert runs_alone()
    monkeypatch.setenv(name, "1")
    assert is_launched()
    assert not runs_alone()


def test_device_of_a_plug_in_is_left_to_accelerate(monkeypatch):
    monkeypatch.setattr(one_process, "is_launched", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    for name, is_alone in (("cuda", True), ("hpu", False)):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda name=name: torch.device(name))
        assert runs_alone() == is_alone


def test_devices_that_only_accelerate_knows_are_left_to_it(monkeypatch):
    monkeypatch.setattr(one_process, "is_launched", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert not runs_alone()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert runs_alone()
