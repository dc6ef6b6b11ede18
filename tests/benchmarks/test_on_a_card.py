import json
import sys

import pytest
import torch
from hyper_sd.benchmarks import card_arms, on_a_card
from hyper_sd.benchmarks.card_arms import Arm, arms, bars
from hyper_sd.tests.conftest import ROOT


@pytest.fixture
def importable(monkeypatch, tmp_path):
    """Lets a child process import the package, as one that is installed."""
    pytest.importorskip("diffusers")
    try:
        (tmp_path / "hyper_sd").symlink_to(ROOT, target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no links")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.fixture
def without_a_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)


def run(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["on_a_card", *options])
    on_a_card.main()


def test_narrow_trial_runs_an_arm_and_says_what_it_leaves_out(importable, without_a_card, monkeypatch, tmp_path):
    out = tmp_path / "result.json"
    run(monkeypatch, "--narrow", "--minutes", "10", "--only", "finetune", "style", "--out", str(out))
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["narrow"]
    assert result["card"] is None
    assert "bars" not in result
    assert result["arms"]["style"]["status"] == "not run"
    assert "COMFYUI_PATH" in result["arms"]["style"]["why"]
    (found,) = result["arms"]["finetune"]["runs"]
    assert found["measured_steps"] > 1
    assert 0 < found["walls"]["min"] <= found["wall"]
    assert found["said"] > 0
    assert found["work"]["profiled_seconds"] > 0


def test_arm_that_fails_or_takes_too_long_says_so(importable):
    failed = on_a_card.run_arm(Arm("a", "training_cost", ("--way", "no such way")), None, 600)
    assert failed["status"] == "failed"
    assert "no such way" in failed["why"]
    late = on_a_card.run_arm(Arm("b", "training_cost", ("--sdxl", "narrow", "--way", "tscd")), None, 0.2)
    assert (late["status"], late["why"]) == ("out of time", "ended after 0 s")


def test_arms_that_find_no_time_left_are_not_run(without_a_card, monkeypatch, tmp_path):
    out = tmp_path / "result.json"
    run(monkeypatch, "--narrow", "--only", "tscd", "--minutes", "0.1", "--out", str(out))
    assert "minutes are over" in json.loads(out.read_text(encoding="utf-8"))["arms"]["tscd"]["why"]


def test_no_card_is_said_plainly(without_a_card, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch)
    assert on_a_card.NEEDS_A_CARD in capsys.readouterr().err


def test_arm_that_does_not_exist_is_refused_with_those_that_do(without_a_card, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--narrow", "--only", "nothing")
    assert "style, host; tscd" in capsys.readouterr().err


@pytest.mark.parametrize("narrow", [False, True])
def test_every_arm_has_a_name_of_its_own_and_a_benchmark_that_exists(narrow):
    planned = arms(narrow, "cuda", with_comfyui=False)
    assert len({arm.name for arm in planned}) == len(planned) > 10
    assert all((ROOT / "benchmarks" / f"{arm.benchmark}.py").is_file() for arm in planned)


def step(wall, growth, said, busy=0.5):
    return {"wall": wall, "growth": growth, "said": said, "until_first": 5.0, "work": {"busy_share": busy}}


def test_bars_are_met_missed_or_not_measured():
    runs = {
        card_arms.STYLE: [step(0.3, 10, 11), step(0.5, 10, 11)], card_arms.STYLE_HOST: [step(1.1, 8, None)],
        card_arms.TSCD: [step(1, 10, 20, busy=0.9)],
        card_arms.SAMPLER: [{"devices": {"cuda": {"samplers": {"hyper_sd_tcd": {"waits_for_cuda": False}}}}}],
    }  # fmt: skip
    found = {bar["what"]: (bar["found"], bar["met"]) for bar in bars(runs)}
    assert found["style step: time beside the host's node"] == (0.364, True)
    assert found["style step: growth beside the host's node"] == (1.25, False)
    assert found["style step, checkpointing: growth beside the host's node"] == (None, None)
    assert found["TSCD step: share of its time that the card works"] == (0.9, True)
    assert found["style: memory said before beside what it grew by, how far from 1"] == (0.1, True)
    assert found["tscd: memory said before beside what it grew by, how far from 1"] == (1.0, False)
    assert found["sampler: waits for the card"] == (0, True)
    assert found["sampler: time per step beside lcm"] == (None, None)
