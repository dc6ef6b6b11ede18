import argparse
import json
import types

import numpy as np
import pytest
import torch
from hyper_sd.benchmarks import lora_strength as run
from hyper_sd.benchmarks import lora_strength_report as sweep
from hyper_sd.benchmarks.lora_strength_report import Draw
from hyper_sd.evaluation.metrics import kid
from hyper_sd.samplers.timesteps import hyper_sd_timesteps
from hyper_sd.tests.benchmarks.figures import figures_of

SWEEPS = {
    "strength": sweep.strength_sweep("1", sweep.STEPS, sweep.STRENGTHS),
    "strength_eta_1": sweep.strength_sweep("1", (2, 3, 4), sweep.STRENGTHS, eta=1.0),
    "eta": sweep.eta_sweep("1", sweep.STEPS, sweep.ETAS),
    "file": sweep.file_sweep(),
    "start": sweep.start_sweep({"unified": "1", "one-step file": "one step"}),
}


def around(level: float, *wobbles: float) -> list[float]:
    """A value on all prompts, and what leaving out each of four groups makes of it."""
    return [level, *(level + wobble for wobble in wobbles)]


def made_up(best: dict[int, float], groups: int = 16) -> dict:
    """Cells whose KID is a parabola over strength around `best`, and whose retrieval falls with it."""
    cells = {}
    for draw in sweep.draws_of(SWEEPS):
        value = 0.01 / draw.steps + (draw.strength - best[draw.steps]) ** 2
        kid_row = [value + 1e-4 * (i % 3) for i in range(groups + 1)]
        cells[draw.key] = {seed: {"kid": kid_row, "top1": [1 - v for v in kid_row]} for seed in "012"}
    return cells


def test_error_of_a_mean_is_the_jackknifes():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = sweep.replicates(lambda keep: float(values[keep].mean()), 48)
    assert len(rows) == 17
    groups = torch.stack([values[:48][g::16].mean() for g in range(16)])
    assert sweep.error_of(rows) == pytest.approx(float(groups.std() / 16**0.5), rel=1e-9)


def test_fewer_prompts_than_groups_are_left_out_one_by_one():
    seen = []
    sweep.replicates(lambda keep: seen.append(keep) or 0.0, 3)
    assert seen == [[0, 1, 2], [1, 2], [0, 2], [0, 1]]


def test_paired_kid_is_kid_without_the_pairs_of_one_prompt():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 12, 5, generator=generator, dtype=torch.float64)
    cross = (x @ y.T / 5 + 1) ** 3
    plain, paired = 2 * cross.mean(), 2 * (cross.sum() - cross.trace()) / (12 * 11)
    assert sweep.paired_kid(x, y) == pytest.approx(kid(x, y) + float(plain - paired))


def test_paired_kid_is_near_zero_where_each_prompt_has_pictures_of_its_own():
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randn(60, 8, generator=generator)
    x, y = (prompts + 0.3 * torch.randn(60, 8, generator=generator) for _ in range(2))
    assert abs(sweep.paired_kid(x, y)) < 0.02 < -kid(x, y)


def test_option_that_differs_by_less_than_its_error_is_not_told_from_the_best():
    options = {
        "0.75": [around(0.5, 0.01, -0.01, 0.02, -0.02)],
        "1": [around(0.3, 0.01, -0.01, 0.02, -0.02)],
        "1.25": [around(0.31, 0.02, -0.02, 0.01, -0.01)],
    }
    found = sweep.select(options)
    assert (found["best"], found["alike"]) == ("1", ["1", "1.25"])
    assert found["options"]["1"]["behind"] == found["options"]["1"]["error"] == 0
    assert found["options"]["1.25"]["behind"] == pytest.approx(0.01)


def test_what_all_options_share_does_not_count_as_doubt():
    wild = (0.3, -0.3, 0.2, -0.2)
    found = sweep.select({"a": [around(0.50, *wild)], "b": [around(0.49, *wild)]})
    assert found["alike"] == ["b"]


def test_highest_is_best_where_the_sign_says_so():
    found = sweep.select({"a": [[0.4, 0.4, 0.4]], "b": [[0.6, 0.6, 0.6]]}, sign=-1)
    assert found["best"] == "b"
    assert found["options"]["a"]["behind"] == pytest.approx(0.2)


def test_seeds_are_averaged_before_the_best_is_chosen():
    found = sweep.select({"a": [[0.1, 0.1, 0.1], [0.9, 0.9, 0.9]], "b": [[0.4, 0.4, 0.4]] * 2})
    assert found["best"] == "b"
    assert found["options"]["a"]["deviation"] == pytest.approx(0.32**0.5)


def test_every_draw_of_the_sweeps_has_a_grid_and_a_key_of_its_own():
    draws = sweep.draws_of(SWEEPS)
    assert len({draw.key for draw in draws}) == len(draws)
    for draw in draws:
        grid = hyper_sd_timesteps(draw.steps, draw.num_segments, start_timestep=draw.start_timestep)
        assert (len(grid), grid[0]) == (draw.steps, draw.start_timestep)


def test_start_sweep_has_every_start_of_both_files_at_one_step():
    ((steps, row),) = SWEEPS["start"].items()
    starts = {(draw.lora, draw.start_timestep) for draw in row.values()}
    assert steps == 1
    assert starts == {(lora, t) for lora in ("1", "one step") for t in (700, 750, 800, 850, 900, 950, 999)}
    assert len(row) == len(starts)
    assert row["unified, 800"].key == "1, 1 steps, strength 1, 1 segments, eta 0, from 800"
    assert row["unified, 999"].key == Draw("1", 1).key  # what an earlier run has kept of 999 is not drawn again


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ([], set(run.SWEEPS)),
        (["--only", "start"], {"start"}),
        (["--checkpoint", "a", "--lora", "b", "--num-segments", "4"], {"strength", "strength_eta_1", "eta"}),
        (["--checkpoint", "a", "--lora", "b"], set(run.SWEEPS) - {"file"}),
    ],
)
def test_sweeps_are_those_of_the_command_line(monkeypatch, flags, names):
    monkeypatch.setattr("sys.argv", ["lora_strength", "--starts", "800", "999", *flags])
    sweeps = run.sweeps_of(run.options())
    assert set(sweeps) == names
    if "start" in sweeps:
        assert {draw.start_timestep for draw in sweeps["start"][1].values()} == {800, 999}


@pytest.mark.parametrize("start", [700, 800, 999])
def test_recipe_starts_from_exact_unit_noise(start):
    pytest.importorskip("diffusers")
    from hyper_sd.demo.recipe.sample import generate

    seen = []

    def unet(x, timestep, text):
        seen.append((x, int(timestep[0])))
        return types.SimpleNamespace(sample=torch.zeros_like(x))

    text = types.SimpleNamespace(last_hidden_state=torch.zeros(1, 77, 4))
    denoiser = types.SimpleNamespace(unet=unet, text=lambda tokens: text)
    config = types.SimpleNamespace(scaling_factor=1.0)
    vae = types.SimpleNamespace(config=config, decode=lambda x: types.SimpleNamespace(sample=torch.zeros(len(x), 3, 8, 8)))
    generate(vae, denoiser, ["a"], steps=1, cfg=1.0, start_timestep=start, seed=3)
    ((x, t),) = seen
    assert t == start
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(x, noise, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("draw", "other"), [(Draw("1", 1), Draw("1", 1, eta=1.0)), (Draw("8", 8, 1.0, 8), Draw("8", 8, 1.0, 8, 0.0))]
)
def test_draws_that_eta_does_not_change_are_drawn_once(draw, other):
    assert draw.key == other.key


def test_report_finds_the_best_strength_of_each_step_count():
    best = {n: 0.75 if n % 2 else 1.0 for n in sweep.STEPS}
    found = sweep.report(SWEEPS, made_up(best))
    for n, row in found["strength"].items():
        assert float(row["kid"]["best"]) == float(row["top1"]["best"]) == best[n]
    table = sweep.strength_table(found["strength"])
    assert len(table.splitlines()) == 2 + len(sweep.STEPS)
    assert "| 3 | 0.75 | 0.75 | 0.0033 ± 0.0000 |" in table


def test_options_not_told_from_the_best_are_bold():
    rows = {3: {m: sweep.select({"a": [[0.1, 0.1, 0.1]], "b": [[0.2, 0.2, 0.2]]}) for m in sweep.METRICS}}
    lines = sweep.option_table(rows).splitlines()
    assert lines[2] == "| 3 | **a** | 0.1000 ± 0.0000 |  | 10.0 ± 0.0 % |"
    assert lines[3] == "| 3 | b | 0.2000 ± 0.0000 | 0.1000 ± 0.0000 | 20.0 ± 0.0 % |"


def score_of(draw):
    return {"kid": [0.0, 0.0], "top1": [float(draw.steps), 0.0]}


def test_interrupted_run_draws_only_what_is_left(tmp_path):
    kept, seen = tmp_path / "kept.json", []
    draws = [Draw("1", n) for n in (1, 2, 3)]

    def score(draw, seed):
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append((draw.key, seed))
        return score_of(draw)

    with pytest.raises(KeyboardInterrupt):
        run.measure(lambda: score, draws, [0, 1], kept, "a model")
    before = len(seen)
    cells = run.measure(lambda: lambda d, s: seen.append((d.key, s)) or score_of(d), draws, [0, 1], kept, "a model")
    assert before == 4
    assert len(seen) == len(set(seen)) == 6
    assert [cells[d.key]["1"]["top1"][0] for d in draws] == [1, 2, 3]
    assert run.measure(None, draws, [0, 1], kept, "a model") == cells


def test_cells_of_another_model_are_refused(tmp_path):
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps({"what": "a model", "cells": {}}))
    with pytest.raises(SystemExit, match="another model"):
        run.measure(None, [], [0], kept, "another model")


class FakeModel:
    """Remembers at which strength and from which noise it was asked to draw."""

    batch, prompts = 2, ["a", "b", "c"]

    def __init__(self):
        from hyper_sd.training.lora_layers import LoraLayers

        self.layers, self.seen = LoraLayers(torch.nn.Sequential(torch.nn.Linear(2, 2)), 1), []
        self.layers.add("1")

    def generate(self, prompts, draw, seed):
        scale = self.layers.sets["1"].scale if self.layers.active else None
        self.seen.append((len(prompts), scale, seed, float(torch.rand(()))))


def test_strength_reaches_the_adapters_and_the_noise_stays():
    model, seen = FakeModel(), []
    for draw in (Draw("1", 2, 0.5), Draw("1", 4, 1.25), Draw(None, 25)):
        list(run.paint(model, draw, 7))
        seen.append(model.seen)
        model.seen = []
    assert [[scale for _, scale, *_ in row] for row in seen] == [[0.5, 0.5], [1.25, 1.25], [None, None]]
    assert [row[0] for row in seen[0]] == [2, 1]
    assert len({tuple(noise for *_, noise in row) for row in seen}) == 1


def test_plot_has_a_panel_for_each_step_count(tmp_path):
    pytest.importorskip("matplotlib")
    found = sweep.report(SWEEPS, made_up(dict.fromkeys(sweep.STEPS, 1.0)))
    (figure,) = figures_of(lambda: sweep.plot(found["strength"], tmp_path / "plot.png", "made up"))
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title().split(":")[0] for axis in shown] == [f"{n} step{'s' * (n > 1)}" for n in sweep.STEPS]
    for axis, row in zip(shown, found["strength"].values(), strict=True):
        table = row["kid"]["options"]
        strengths, kids = axis.lines[0].get_data()
        assert list(strengths) == [float(strength) for strength in table]
        assert list(kids) == [cell["mean"] for cell in table.values()]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_own_model_is_drawn_with_its_lora_at_the_strength(tmp_path, family):
    pytest.importorskip("diffusers")
    from hyper_sd.tests.training.launch.tiny_pipelines import make_pipeline, save_pipeline
    from hyper_sd.training.export import save_lora
    from hyper_sd.training.lora_layers import LoraLayers

    folder, lora = save_pipeline(tmp_path / "model", family), tmp_path / "lora.safetensors"
    layers = LoraLayers(make_pipeline(family).unet, 2, lora_alpha=1)
    for up in layers.add("made").up:
        torch.nn.init.normal_(up, std=0.5)
    save_lora(lora, layers, "made")
    given = {"checkpoint": folder, "lora": lora, "family": None, "config": None, "size": 64, "cfg": 4.0, "prompts": None}
    model = run.OwnModel(argparse.Namespace(**given))
    model.prompts = model.prompts[:3]

    def drawn(*how) -> np.ndarray:
        return np.concatenate(list(run.paint(model, Draw(*how), 0))).astype(float)

    assert abs(drawn("lora", 1, 1.0, 1, 0.3, 800) - drawn("lora", 1)).mean() > 0  # the start reaches the sampler
    base, none, half, full = drawn(None, 2), drawn("lora", 2, 0.0), drawn("lora", 2, 0.5), drawn("lora", 2, 1.0)
    assert base.shape == (3, 224, 224, 3)
    assert (drawn("lora", 2, 0.5) == half).all()
    assert 0 < abs(half - none).mean() < abs(full - none).mean()
    assert abs(base - none).mean() > 0  # the base has guidance
