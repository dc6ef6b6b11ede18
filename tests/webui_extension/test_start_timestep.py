"""The start timestep on the stub host: exact unit noise at any start, the file's own, infotext, API, grids, and refusals."""

from types import SimpleNamespace

import pytest
import torch
from hyper_sd.tests.models import synthetic_checkpoints
from hyper_sd.tests.webui_extension.lora_files import FOUR, UNIFIED, lora_bytes, place
from hyper_sd.tests.webui_extension.stub_host import StubHost
from hyper_sd.tests.webui_extension.stub_run import ImageRNG, Processing, parse, paste, process_images
from hyper_sd.webui_extension.settings_table import TABLE
from safetensors.torch import load_file, save_file

OURS = {"sampler_name": "Hyper-SD TCD", "cfg_scale": 1.0, "steps": 1}
START = [spec.name for spec in TABLE].index("start_timestep")


def make(host: StubHost, named: dict, **given) -> Processing:
    """Makes an image with the panel's settings by name, and notes in `seen` every (x in the scale of training, timestep)."""
    p = Processing(**{"args": [named], "seen": [], **given})
    apply_model = host.model.apply_model

    def seeing(x, t, *more, **named):
        p.seen.append((x.clone(), int(t.flatten()[0])))
        return apply_model(x, t, *more, **named)

    host.model.apply_model = seeing
    try:
        p.images = process_images(host, p)
    finally:
        host.model.apply_model = apply_model
    return p


@pytest.mark.parametrize(("start", "steps"), [(800, 1), (700, 1), (999, 1), (800, 4)])
@pytest.mark.parametrize("forge", [False, True])
def test_a_picture_starts_from_exact_unit_noise(make_host, forge, start, steps):
    host = make_host(forge=forge)
    place(host, UNIFIED)
    p = make(host, {"enabled": True, "steps": steps, "variant": "unified", "start_timestep": start})
    x, t = p.seen[0]
    assert (t, len({t for _, t in p.seen})) == (start, steps)
    torch.testing.assert_close(x, ImageRNG([1]).next(), rtol=0, atol=1e-6)
    assert p.extra_generation_params["Hyper-SD timesteps"].split()[0] == str(start)


def test_zero_is_the_files_own_start_and_leaves_no_note(host):
    place(host, UNIFIED)
    p = make(host, {"enabled": True, "steps": 1})
    assert p.seen[0][1] == 999
    assert "Hyper-SD start" not in p.infotext


def test_the_sampler_alone_takes_the_start_too(host):
    p = make(host, {"start_timestep": 800}, **OURS)
    torch.testing.assert_close(p.seen[0][0], ImageRNG([1]).next(), rtol=0, atol=1e-6)
    assert p.seen[0][1] == 800
    assert make(host, {"start_timestep": 800}).infotext.count("Hyper-SD") == 0  # another sampler's image says nothing of it


@pytest.mark.parametrize(("strength", "first"), [(0.5, 499), (0.75, 739), (1.0, 799)])
def test_an_image_is_cut_at_its_strength_below_the_start(host, strength, first):
    image = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(99))
    p = make(host, {"start_timestep": 800}, init_latent=image, denoising_strength=strength, **OURS)
    assert p.seen[0][1] == first


@pytest.mark.parametrize(("steps", "said"), [(1, "n-step"), (4, "n-step")])
def test_a_lora_for_one_step_in_the_prompt_brings_its_start(host, steps, said):
    source = host.root / "source.safetensors"
    source.write_bytes(lora_bytes("sd15"))
    save_file(
        load_file(source), host.root / "Lora" / "one.safetensors",
        {"hyper_sd_stages": "8-4-2-1", "hyper_sd_start_timestep": "750"},
    )  # fmt: skip
    host.list_loras()
    p = make(host, {"enabled": True, "steps": steps}, prompt="cat <lora:one:1>")
    assert p.seen[0][1] == 750
    torch.testing.assert_close(p.seen[0][0], ImageRNG([1]).next(), rtol=0, atol=1e-6)
    notes = p.extra_generation_params
    assert (notes["Hyper-SD variant"], notes["Hyper-SD segments"], notes["Hyper-SD eta"]) == (said, 1, "0")
    again = paste(host, host.scripts[0], p.infotext)
    again.prompt = p.prompt
    assert torch.equal(process_images(host, again)[0], p.images[0])


@pytest.mark.parametrize("panel", [{"enabled": True, "steps": 1, "variant": "unified"}, {}])
@pytest.mark.parametrize("before", [0, 640])
@pytest.mark.parametrize("start", [0, 800])
def test_a_pasted_infotext_gives_the_same_image_whatever_the_page_had(host, panel, before, start):
    place(host, UNIFIED)
    first = make(host, panel | {"start_timestep": start}, **OURS)
    assert parse(first.infotext).get("Hyper-SD start") == (str(start) if start else None)
    host.scripts[0].controls[START].value = before
    again = paste(host, host.scripts[0], first.infotext)
    assert again.args[START] == start
    assert torch.equal(process_images(host, again)[0], first.images[0])


def test_another_samplers_infotext_leaves_the_start_as_it_is(host):
    first = make(host, {})
    host.scripts[0].controls[START].value = 800
    assert paste(host, host.scripts[0], first.infotext).args[START] == 800


def test_a_grids_axis_counts_before_the_panel(host):
    p = make(host, {"start_timestep": 800}, hyper_sd_axes={"start_timestep": 700}, **OURS)
    assert p.seen[0][1] == 700


def test_the_line_of_the_panel_says_the_start(host):
    from hyper_sd.webui_extension import accordion

    place(host, UNIFIED)
    text, _ = accordion.look(True, 1, "unified", 0, 0, True, True, 0.3, 0, 800)
    assert "tcd grid from timestep 800" in text
    assert "It starts at 800, as you chose, in place of 999. (your choice)" in text


def test_a_start_that_leaves_too_few_timesteps_or_is_none_stops_the_run(host):
    place(host, FOUR, UNIFIED)
    p = make(host, {"enabled": True, "steps": 4, "variant": "unified", "start_timestep": 2})
    assert p.images == []
    assert "start_timestep 2 leaves 3 timesteps, too few for 4 steps" in p.comments[0]
    p = make(host, {"enabled": True, "start_timestep": 1000})
    assert p.images == []
    assert "Start timestep: got 1000, allowed is 0 to 999" in p.comments[0]


def test_a_start_is_refused_on_a_flow_model(host):
    from hyper_sd.webui_extension import accordion

    path = host.root / "chosen.safetensors"
    synthetic_checkpoints.write_checkpoint(path, synthetic_checkpoints.flux())
    host._modules["modules.sd_models"].model_data.sd_model = object()
    host.chosen = SimpleNamespace(filename=str(path))
    text, button = accordion.look(True, 8, "auto", 0, 0, True, True, 0.3, 0, 800)
    assert "start_timestep is for SD1.5 and SDXL; on FLUX.1-dev the host's own grid is walked from its start" in text
    assert button == {"visible": False}
