"""An infotext, pasted, gives the same image: with the panel on and off, with axes, options, LoRA tags and other methods."""

import json

import pytest
import torch
from hyper_sd.models.inside import FEW_STEP
from hyper_sd.tests.webui_extension.lora_files import FOUR, UNIFIED, own_file, place
from hyper_sd.tests.webui_extension.stub_host import StubHost
from hyper_sd.tests.webui_extension.stub_run import Processing, parse, paste, process_images
from safetensors.torch import save_file


def run(host: StubHost, p: Processing) -> torch.Tensor:
    """Returns the image; options of an infotext are set for it alone."""
    before = dict(host.shared.opts.data)
    host.shared.opts.data.update(p.override_settings)
    (image,) = process_images(host, p)
    host.shared.opts.data = before
    return image


@pytest.mark.parametrize(
    ("panel", "given"),
    [
        ((True, 4), {}),
        ((True, 3, "unified", 0.75), {}),
        ((True, 4, "auto", 0, 0, True, False, 0.55, 2), {}),
        ((True, 1, "auto", 0, 0, False), {"steps": 6, "cfg_scale": 1.5, "sampler_name": "Euler"}),
        ((True, 4, "merged checkpoint"), {}),
        ((True, 6), {"prompt": f"cat <lora:{FOUR}:0.5>"}),
        ((False, 4, "auto", 0, 0, True, False, 0.85, 2), {"sampler_name": "Hyper-SD TCD", "steps": 5, "cfg_scale": 1.0}),
        ((False,), {"sampler_name": "Hyper-SD TCD", "steps": 5, "scheduler": "Karras"}),
        ((False,), {}),
    ],
)
def test_pasted_infotext_gives_the_same_image(host, panel, given):
    place(host, FOUR, UNIFIED)
    first = Processing(args=list(panel), **given)
    image = run(host, first)
    again = paste(host, host.scripts[0], first.infotext)
    again.prompt = first.prompt
    assert torch.equal(run(host, again), image)
    assert again.infotext == first.infotext


@pytest.mark.parametrize(("name", "value"), [("hyper_sd_end", "alpha_bar[0]"), ("hyper_sd_noise", "as ComfyUI")])
def test_pasted_infotext_brings_the_settings_pages_choice(host, name, value):
    host.shared.opts.data[name] = value
    first = Processing(args=[False, 4, "auto", 0, 0, True, False, 1.0], sampler_name="Hyper-SD TCD", steps=4)
    image = run(host, first)
    del host.shared.opts.data[name]
    again = paste(host, host.scripts[0], first.infotext)
    assert again.override_settings == {name: value}
    assert torch.equal(run(host, again), image)


def test_pasting_another_samplers_image_switches_the_panel_off(host):
    place(host, FOUR)
    script = host.scripts[0]
    script.controls[0].value = True
    first = Processing(args=[False])
    image = run(host, first)
    again = paste(host, script, first.infotext)
    assert again.args[0] is False
    assert torch.equal(run(host, again), image)


def test_hires_strength_is_pasted(host):
    place(host, FOUR)
    first = Processing(args=[True, 4, "auto", 0, 0.4], enable_hr=True)
    run(host, first)
    assert parse(first.infotext)["Hyper-SD hires strength"] == "0.4"
    assert paste(host, host.scripts[0], first.infotext).args[4] == 0.4


def test_default_eta_of_the_settings_page_is_written_like_any_other(host):
    host.shared.opts.data["hyper_sd_default_eta"] = 0.7
    first = Processing(args=[False], sampler_name="Hyper-SD TCD", steps=4)
    image = run(host, first)
    assert parse(first.infotext)["Hyper-SD eta"] == "0.7"
    host.shared.opts.data["hyper_sd_default_eta"] = 0.1
    assert torch.equal(run(host, paste(host, host.scripts[0], first.infotext)), image)


BAKED = {"file": "x", "strength": 1.0, "evidence": "metadata", "variant": "n-step"}


@pytest.mark.parametrize(
    ("prompt", "checkpoint", "note", "settings"),
    [
        ("<lora:quick:1>", "model", None, {}),  # by content
        ("<lora:quick:1>", "model", None, {"steps": 8}),
        ("<lora:quick:1>", "model", None, {"start_timestep": 900}),
        ("<lora:photo_lcm-lora:1>", "model", None, {}),  # by name
        ("<lora:quick:1>", "model", None, {"method": "tcd"}),  # by choice
        ("<lora:ink:1>", "model", None, {"method": "lcm"}),
        ("<lora:quick:1>", "model", None, {"variant": "unified"}),
        ("", "photoLCM", None, {"steps": 5}),  # merged, by name
        ("", "photo-hyper", None, {}),
        ("", "model", None, {"variant": "merged", "method": "pcm-lcm-like"}),
        ("<lora:quick:1>", "photoLCM", None, {"variant": "merged"}),
        ("", "baked", {**BAKED, "steps": 4}, {"steps": 6}),  # merged, by the note of a bake
        ("", "baked", {**BAKED, "steps": 1, "start_timestep": 800}, {"steps": 1}),
        ("", "baked", {**BAKED, "variant": "other", "recipe": "flash", "steps": 0}, {}),
    ],
)
def test_pasted_infotext_of_another_method_gives_the_same_image_and_the_panel_shows_it(
    host, flash, monkeypatch, prompt, checkpoint, note, settings
):
    from hyper_sd.webui_extension import accordion, script
    from hyper_sd.webui_extension.chosen_model import Model

    for name in ("ink", "photo_lcm-lora"):
        own_file(host, name)
    path = host.root / f"{checkpoint}.safetensors"
    if note:
        save_file({"x": torch.zeros(1)}, path, {FEW_STEP: json.dumps(note)})
    for name in ("of", "on_page"):
        monkeypatch.setattr(script.Model, name, staticmethod(lambda *_: Model("sd15", path, "SD1.5")))
    first = Processing(prompt=f"cat {prompt}", args=[{"enabled": True, **settings}])
    image = run(host, first)
    again = paste(host, host.scripts[0], first.infotext)
    again.prompt = first.prompt
    shown = [accordion.look(*by_order(host, args), first.prompt)[0] for args in (first.args, again.args)]
    assert shown[0].split(". ")[0] == shown[1].split(". ")[0]
    assert shown[1].startswith("**") is False
    assert torch.equal(run(host, again), image)
    assert again.infotext == first.infotext


def by_order(host: StubHost, args: list) -> list:
    """Returns the values of the panel's controls for named or listed settings."""
    from hyper_sd.webui_extension.settings_table import TABLE, read_settings

    settings = read_settings(args, {})
    return [getattr(settings, spec.name) for spec in TABLE]
