"""Methods that are SDXL's alone, on a host that reads a small SDXL checkpoint: whole runs equal the reference to 1e-3."""

import os

import pytest
from hyper_sd.models.catalog import load_catalog
from hyper_sd.samplers.shift import shifted_timestep
from hyper_sd.tests.webui.panel import by_name
from hyper_sd.tests.webui.webui_host import GUIDED_FROM_THE_START

pytest.importorskip("diffusers")
from hyper_sd.tests.webui import reference, tiny_sdxl
from hyper_sd.tests.webui.tiny_checkpoint import write_tokenizer

SHIFTS = {recipe.name: recipe.timestep_shift for recipe in load_catalog().recipes if recipe.timestep_shift != 1}


@pytest.fixture(scope="module")
def unet():
    return tiny_sdxl.make_unet()


@pytest.fixture(scope="module")
def sdxl(webui):
    """The host with small SDXL checkpoints for noise and for v."""
    if not webui.reads_yaml:
        pytest.skip("this host knows SDXL by its own widths only, 7 GB; test_trajectory.py has the sampler's lists and shift")
    folder = webui.data / "models" / "Stable-diffusion"
    files = folder / "sdxl.safetensors", folder / "sdxl_v.safetensors"
    tokenizer = write_tokenizer(webui.data / "tokenizer_sdxl", tiny_sdxl.SHAPE)
    tiny_sdxl.write_checkpoint(files[0])
    os.link(files[0], files[1])
    for file, kind in zip(files, ("eps", "v"), strict=True):
        tiny_sdxl.write_yaml(file, tokenizer, kind)
    webui.ask("/sdapi/v1/refresh-checkpoints", {})
    yield webui
    for file in files:
        file.unlink()
        file.with_suffix(".yaml").unlink()
    webui.ask("/sdapi/v1/refresh-checkpoints", {})


def _network(unet, batch):
    told = tiny_sdxl.sizes_of(64)
    return lambda x, t: unet(x, t, batch.tensors["0.cond"], added_cond_kwargs=told).sample


def _draw(host, method, checkpoint="sdxl", route="txt2img", zero_terminal_snr=False, **changes):
    settings = {"sd_model_checkpoint": f"{checkpoint}.safetensors", **GUIDED_FROM_THE_START}
    if zero_terminal_snr:
        settings["sd_noise_schedule"] = "Zero Terminal SNR"
    chosen = by_name(enabled=True, steps=4, variant="merged", method=method)
    return host.draw(route, override_settings=settings, **chosen, **changes)


@pytest.mark.parametrize(("method", "listed"), [("dmd2", reference.FULL), ("sdxl-lightning", None)])
def test_methods_preset_equals_its_own_scheduler(sdxl, unet, method, listed):
    batch = _draw(sdxl, method)
    assert reference.timesteps_asked(batch) == reference.FULL
    expected = reference.by_scheduler(reference.scheduler_of(method, listed), _network(unet, batch))
    assert reference.worst(reference.hosts_run(batch), expected) <= 1e-3


@pytest.mark.parametrize("method", SHIFTS)
def test_network_is_asked_at_the_shifted_timestep(sdxl, unet, method):
    batch = _draw(sdxl, method)
    assert reference.timesteps_asked(batch) == [shifted_timestep(t, SHIFTS[method]) for t in reference.FULL]
    assert f"Hyper-SD shift: {SHIFTS[method]:g}" in batch.infotext
    expected = reference.shifted_run(_network(unet, batch), reference.FULL, SHIFTS[method], reference.alpha_bars())
    assert reference.worst(reference.hosts_run(batch), expected) <= 1e-3


@pytest.mark.parametrize("masked", [False, True], ids=["text", "mask"])
@pytest.mark.parametrize("kind", ["noise", "v", "v and zero terminal SNR"])
def test_shift_holds_with_a_mask_v_prediction_and_zero_terminal_snr(sdxl, unet, kind, masked):
    is_v, zero = kind != "noise", "zero" in kind
    chosen = {"method": "nitrosd-realism", "checkpoint": "sdxl_v" if is_v else "sdxl", "zero_terminal_snr": zero}
    batch = _draw(sdxl, **chosen)
    if masked:  # after one from text, because A1111's img2img takes the noise levels of the image before
        batch = _draw(sdxl, **chosen, **reference.inpainting())
    kept, grid = (batch.tensors, reference.CUT) if masked else ({}, reference.FULL)
    expected = reference.shifted_run(
        _network(unet, batch), grid, SHIFTS["nitrosd-realism"], reference.alpha_bars(zero),
        v_prediction=is_v, image=kept.get("image"), changed=kept.get("mask"),
    )  # fmt: skip
    assert reference.worst(reference.hosts_run(batch), expected) <= 1e-3
    if masked:
        assert (batch.latents[..., :4] - kept["image"][..., :4]).abs().max() <= 1e-3
