"""Recipes of a person's own catalogue: chosen as a method, told by a checkpoint's name, brought back by an infotext."""

import json
from pathlib import Path

import pytest
import torch
from hyper_sd.tests.webui_extension.lora_files import own_file
from hyper_sd.tests.webui_extension.stub_run import Processing, load_extension, paste, process_images
from hyper_sd.webui_extension.settings_table import TABLE

MINE = {
    "method": "My distillation", "like": "LCM", "families": ["sd15"], "eta": 1, "to_clean": True, "grid": "trailing",
    "timesteps": {"3": [950, 600, 300]}, "start_timestep": 950, "cfg": 1.5, "steps": [3, 3], "lora_names": ["mydistil"],
    "checkpoint_names": ["mydistil"],
}  # fmt: skip


@pytest.fixture
def mine(host):
    """A host whose owner has a recipe of their own, and one that is called as a known method is."""
    (host.root / "hyper_sd").mkdir()
    twin = {**MINE, "method": "LCM", "lora_names": [], "checkpoint_names": []}
    catalog = {"entries": [], "recipes": {"mine": MINE, "lcm-of-mine": twin}}
    (host.root / "hyper_sd" / "catalog.json").write_text(json.dumps(catalog), encoding="utf-8")
    load_extension(host)  # as Reload UI
    return host


def make(host, prompt: str = "cat", **named) -> Processing:
    p = Processing(prompt=prompt, args=[{"enabled": True, "steps": 3, **named}])
    p.images = process_images(host, p)
    return p


def test_the_page_offers_the_persons_own_methods_behind_the_packs(mine):
    choices = mine.scripts[0].controls[-1].choices
    assert choices[0] == "by the file"
    assert choices[-2:] == ["My distillation", "LCM (lcm-of-mine)"]
    assert choices.count("LCM") == 1


@pytest.mark.parametrize("method", ["mine", "My distillation"])
def test_a_persons_own_method_is_taken_by_name_and_by_label(mine, method):
    own_file(mine, "ink")
    p = make(mine, "cat <lora:ink:1>", method=method)
    assert p.extra_generation_params["Hyper-SD timesteps"] == "950 600 300"
    assert (p.cfg_scale, p.extra_generation_params["Hyper-SD method"]) == (1.5, "My distillation")
    again = paste(mine, mine.scripts[0], p.infotext)
    again.prompt = p.prompt
    again.images = process_images(mine, again)
    assert torch.equal(again.images[0], p.images[0])
    assert again.infotext == p.infotext


def test_a_checkpoint_is_told_by_the_persons_own_words(mine, monkeypatch):
    from hyper_sd.webui_extension import chosen_model, script

    model = chosen_model.Model("sd15", Path("photo_mydistil.safetensors"), "SD1.5")
    monkeypatch.setattr(script.Model, "of", classmethod(lambda cls, sd_model: model))
    p = make(mine)
    assert p.extra_generation_params["Hyper-SD timesteps"] == "950 600 300"
    assert p.extra_generation_params["Hyper-SD method"] == "My distillation"
    assert "has My distillation inside by its name alone" in p.comments[0]


def test_a_recipe_that_is_no_longer_there_is_refused_by_name(mine):
    (mine.root / "hyper_sd" / "catalog.json").unlink()
    p = make(mine, method="mine")
    assert p.images == []
    assert "Method: got 'mine', allowed is by-file (by the file), lcm (LCM), " in p.comments[0]
    assert next(spec for spec in TABLE if spec.name == "method").choices[-1] == "SDXL Turbo"
