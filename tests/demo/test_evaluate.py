"""`install.py evaluate` from the first picture to the last chart, through diffusers and on a real ComfyUI."""

import argparse
import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hyper_sd.demo import comfy_painter, evaluate
from hyper_sd.demo.evaluate_options import add_evaluate_options, check_evaluate
from hyper_sd.errors import EvaluationError, RewardError, UnsupportedModelError
from hyper_sd.models.embedded import CHECKPOINT
from hyper_sd.tests.models.synthetic_loras import write_lora
from hyper_sd.tests.training.launch.tiny_pipelines import save_pipeline
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")
pytestmark = pytest.mark.skipif(not CHECKPOINT.is_file(), reason="demo/model holds no weights")

COMFYUI = os.environ.get("COMFYUI_PATH")
SMALL = ("--limit", "2", "--base-steps", "2", "--steps", "1", "--lora", "unified", "--lora", "n-step")
FILES = {"table.md", "table.csv", "table.json", "sheet.png", "by_steps.png", "by_seconds.png", "scores.json", "plan.json"}


def run(out, *words, comfyui=None):
    parser = argparse.ArgumentParser()
    add_evaluate_options(parser)
    parsed = parser.parse_args([*map(str, words), "--out", str(out)])
    check_evaluate(parsed)
    return evaluate.run_evaluate(parsed, comfyui)


@pytest.fixture(autouse=True)
def signals_of_pytest(monkeypatch):
    """A run lets a termination end it like Ctrl-C, and that would last."""
    monkeypatch.setattr(evaluate, "stop_on_signals", lambda: None)


@pytest.fixture
def painted(monkeypatch):
    """How many pictures diffusers draws."""
    from hyper_sd.training.launch import painter

    counts, call = [], painter.DiffusersPainter.__call__

    def counted(self, jobs):
        counts.append(len(jobs))
        return call(self, jobs)

    monkeypatch.setattr(painter.DiffusersPainter, "__call__", counted)
    return counts


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), float)


def test_whole_run_through_diffusers_and_a_second_one_that_draws_nothing(tmp_path, painted, capsys):
    assert run(tmp_path, "--through", "diffusers", *SMALL) == 0
    assert sum(painted) == 3 * 2 * 2
    assert {path.name for path in tmp_path.iterdir()} == {*FILES, "images", "features"}
    rows = list(csv.DictReader((tmp_path / "table.csv").open(encoding="utf-8")))
    measured = [row for row in rows if row["source"] == "measured here"]
    assert [row["way_to_draw"] for row in measured] == ["base, 2 steps", "unified, 1 step", "n-step, 1 step"]
    assert all(float(row["embedded_match"]) > 30 and float(row["seconds"]) > 0 for row in measured)
    assert float(measured[1]["embedded_match_difference"]) > float(measured[1]["embedded_match_difference_low"])
    table = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert [row["strength"] for line in table["rows"] for row in line["loras"]] == [1, 1]
    said = capsys.readouterr().out
    assert "12 pictures" in said
    assert "install.py compare" in said
    names = [sorted(path.name for path in folder.iterdir()) for folder in (tmp_path / "images").iterdir()]
    assert len(names) == 3
    assert names[0] == names[1] == names[2]
    painted.clear()
    assert run(tmp_path, "--through", "diffusers", *SMALL) == 0
    assert painted == []
    assert "12 are there, 0 are drawn" in capsys.readouterr().out


def test_picture_is_the_same_alone_and_with_others(tmp_path):
    few = ("--through", "diffusers", "--limit", "2", "--base-steps", "1", "--steps", "2", "--lora", "unified", "--seeds", "1")
    run(tmp_path / "one", *few, "--batch", 1)
    run(tmp_path / "two", *few, "--batch", 2)
    for name in ("base-1-step/0002-0.png", "unified-2-steps/0002-0.png"):
        one, two = (pixels(tmp_path / folder / "images" / name) for folder in ("one", "two"))
        assert np.abs(one - two).mean() < 0.1


def test_changed_plan_is_refused_and_changes_nothing(tmp_path, painted):
    few = ("--through", "diffusers", "--limit", "1", "--seeds", "1", "--base-steps", "1", "--lora", "unified", "--steps", "1")
    run(tmp_path, *few)
    before = {path: path.read_bytes() for path in (tmp_path / "images").rglob("*.png")}
    with pytest.raises(EvaluationError, match=r"--out.*--again"):
        run(tmp_path, *few, "--cfg", "2")
    assert before == {path: path.read_bytes() for path in (tmp_path / "images").rglob("*.png")}
    painted.clear()
    assert run(tmp_path, *few, "--cfg", "2", "--again") == 0
    assert painted == [1]


def test_wrong_lora_metric_and_prompts_are_told_before_anything_is_drawn(tmp_path, painted):
    lora = write_lora(tmp_path / "sdxl.safetensors", "sdxl", rank=1)
    (tmp_path / "empty.txt").write_text("\n")
    through = ("--through", "diffusers")
    with pytest.raises(UnsupportedModelError, match="is a LoRA for SDXL"):
        run(tmp_path / "out", *through, "--lora", lora)
    with pytest.raises(RewardError, match="ImageReward lacks its files"):
        run(tmp_path / "out", *through, "--metric", "image_reward", "--scorers", tmp_path)
    with pytest.raises(EvaluationError, match="holds no prompt"):
        run(tmp_path / "out", *through, "--prompts", tmp_path / "empty.txt")
    assert painted == []
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_folder_of_a_diffusers_model_is_drawn_with_its_familys_published_figures_beside(tmp_path, family, capsys):
    save_pipeline(tmp_path / "model", family)
    (tmp_path / "prompts.txt").write_text("a red fox\nsnow\ntwo cats\n")
    words = ("--model", tmp_path / "model", "--prompts", tmp_path / "prompts.txt", "--base-steps", "1,3", "--limit", "3")
    assert run(tmp_path / "out", "--through", "diffusers", *words, "--scorers", tmp_path, "--machine", "a test") == 0
    said = capsys.readouterr().out
    assert "Left out: CLIP score lacks its files" in said
    table = json.loads((tmp_path / "out" / "table.json").read_text(encoding="utf-8"))
    assert (table["family"], table["machine"], table["prompts_from"]) == (family, "a test", "prompts.txt")
    assert [column["id"] for column in table["columns"]] == ["kid", "diversity", "seconds"]
    assert {row["family"] for source in table["quoted"] for row in source["rows"]} == {family}
    assert any("Not measured. CLIP score" in note for note in table["notes"])
    assert any("do not trust KID and diversity" in note and "reward-clip-vit-l-14" in note for note in table["notes"])


def test_flow_model_is_refused_before_anything_is_drawn(tmp_path):
    save_pipeline(tmp_path / "model", "sd3")
    (tmp_path / "prompts.txt").write_text("a red fox")
    words = ("--model", tmp_path / "model", "--prompts", tmp_path / "prompts.txt", "--scorers", tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"draws SD1\.5 and SDXL, this model is SD3"):
        run(tmp_path / "out", "--through", "diffusers", *words)
    assert not list((tmp_path / "out").rglob("*.png"))


def test_ctrl_c_says_that_nothing_is_lost(tmp_path, monkeypatch, capsys):
    from hyper_sd.training.launch import painter

    def stop(self, jobs):
        raise KeyboardInterrupt

    monkeypatch.setattr(painter.DiffusersPainter, "__call__", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--through", "diffusers", *SMALL)
    assert "the same command goes on there" in capsys.readouterr().out


def test_module_returns_codes_instead_of_tracebacks(tmp_path, capsys):
    assert evaluate.main(["--out", str(tmp_path)]) == 1
    assert "--through diffusers" in capsys.readouterr().err
    assert evaluate.main(["--out", str(tmp_path), "--lora", "none"]) == 1
    assert "there is no file none" in capsys.readouterr().err


@pytest.mark.skipif(not COMFYUI, reason="COMFYUI_PATH is not set: run python install.py test")
def test_whole_run_on_a_real_comfyui_draws_what_diffusers_draws(tmp_path, monkeypatch, real_comfyui, capsys):
    whole = comfy_painter.comfy_painter
    monkeypatch.setattr(comfy_painter, "comfy_painter", lambda *given: whole(*given, base_directory=tmp_path / "base"))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("pear\nwolf (animal)\n")
    few = (*SMALL[2:], "--prompts", prompts, "--seeds", "1")
    assert run(tmp_path / "comfyui", *few, comfyui=real_comfyui) == 0
    assert {path.name for path in (tmp_path / "comfyui").iterdir()} == {*FILES, "images", "features"}
    assert "ComfyUI runs at" in capsys.readouterr().out
    assert not list((tmp_path / "base").rglob("*.png"))  # each picture stands on the disk once
    assert run(tmp_path / "comfyui", *few, comfyui=Path("/none")) == 0  # everything is there: none is started
    assert run(tmp_path / "diffusers", "--through", "diffusers", *few) == 0
    for arm in ("base-2-steps", "unified-1-step", "n-step-1-step"):
        for name in ("0001-0.png", "0002-0.png"):
            one, two = (pixels(tmp_path / folder / "images" / arm / name) for folder in ("comfyui", "diffusers"))
            assert np.abs(one - two).mean() < 1, (arm, name)


@pytest.fixture
def real_comfyui():
    return Path(COMFYUI)
