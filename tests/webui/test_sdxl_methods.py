"""Methods that are SDXL's alone, on a host that reads a small SDXL checkpoint: whole runs equal the reference to 1e-3."""

import os

import numpy as np
import pytest
from hyper_sd.models.catalog import load_catalog
from hyper_sd.samplers.shift import shifted_timestep
from hyper_sd.tests.webui.panel import by_name
from hyper_sd.tests.webui.webui_host import GUIDED_FROM_THE_START, data_url

pytest.importorskip("diffusers")
from hyper_sd.tests.webui import reference, tiny_sdxl
from hyper_sd.tests.webui.tiny_checkpoint import write_tokenizer

SHIFTS = {recipe.name: recipe.timestep_shift for recipe in load_catalog().recipes if recipe.timestep_shift != 1}
TRAILING = [999, 749, 499, 249]
CUT = [749, 624, 499, 249]  # the grid at a strength of 0.75: four steps below its own first timestep


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


@pytest.mark.parametrize(("method", "listed"), [("dmd2", TRAILING), ("sdxl-lightning", None)])
def test_methods_preset_equals_its_own_scheduler(sdxl, unet, method, listed):
    batch = _draw(sdxl, method)
    assert reference.timesteps_asked(batch) == TRAILING
    expected = reference.by_scheduler(reference.scheduler_of(method, listed), _network(unet, batch))
    assert reference.worst(reference.hosts_run(batch), expected) <= 1e-3


@pytest.mark.parametrize("method", SHIFTS)
def test_network_is_asked_at_the_shifted_timestep(sdxl, unet, method):
    batch = _draw(sdxl, method)
    assert reference.timesteps_asked(batch) == [shifted_timestep(t, SHIFTS[method]) for t in TRAILING]
    assert f"Hyper-SD shift: {SHIFTS[method]:g}" in batch.infotext
    expected = reference.shifted_run(_network(unet, batch), TRAILING, SHIFTS[method], reference.alpha_bars())
    assert reference.worst(reference.hosts_run(batch), expected) <= 1e-3


@pytest.mark.parametrize("masked", [False, True], ids=["text", "mask"])
@pytest.mark.parametrize("kind", ["noise", "v", "v and zero terminal SNR"])
def test_shift_holds_with_a_mask_v_prediction_and_zero_terminal_snr(sdxl, unet, kind, masked):
    is_v, zero = kind != "noise", "zero" in kind
    wish = _inpainting() if masked else {}
    batch = _draw(sdxl, "nitrosd-realism", "sdxl_v" if is_v else "sdxl", zero_terminal_snr=zero, **wish)
    kept, grid, shift = (batch.tensors if masked else {}), CUT if masked else TRAILING, SHIFTS["nitrosd-realism"]
    expected = reference.shifted_run(
        _network(unet, batch), grid, shift, reference.alpha_bars(zero),
        v_prediction=is_v, image=kept.get("image"), changed=kept.get("mask"),
    )  # fmt: skip
    assert reference.worst(reference.hosts_run(batch), expected) <= 1e-3
    if masked:
        assert (batch.latents[..., :4] - kept["image"][..., :4]).abs().max() <= 1e-3


def _inpainting() -> dict:
    """Returns a request's part for a picture whose right half is made anew."""
    mask, picture = np.zeros((64, 64, 3), np.uint8), np.random.default_rng(3).integers(0, 255, (64, 64, 3), np.uint8)
    mask[:, 32:] = 255
    images = {"init_images": [data_url(picture)], "mask": data_url(mask), "mask_blur": 0, "inpainting_fill": 1}
    return {"route": "img2img", "denoising_strength": 0.75, **images}
