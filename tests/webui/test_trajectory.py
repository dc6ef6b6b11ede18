"""A host's whole run against diffusers' TCDScheduler and UNet with the same weights, to 1e-3 in float32 latents."""

import json
from urllib.parse import quote

import pytest
import torch
from hyper_sd.samplers.schedule import NoiseSchedule, sigma_of
from hyper_sd.samplers.shift import shifted_timestep
from hyper_sd.tests.webui.panel import by_name
from hyper_sd.tests.webui.webui_host import GUIDED_FROM_THE_START

diffusers = pytest.importorskip("diffusers")
from hyper_sd.tests.webui import reference  # noqa: E402 - after the skip
from hyper_sd.tests.webui import tiny_checkpoint as tiny  # noqa: E402

TDD = [999, 751, 499, 251]  # its own list for 4 steps
_LAST = NoiseSchedule.from_betas().sigma(0)


@pytest.fixture(scope="module")
def unet(webui):
    """The checkpoint's network as diffusers has it."""
    return tiny.make_unet(tiny.SMALL if webui.reads_yaml else tiny.WIDE)


@torch.no_grad()
def _diffusers(unet, batch, *, steps=None, eta, cfg, seed=1, timesteps=None, **scheduler) -> list[torch.Tensor]:
    """Returns the latents before every step and after the last, from the host's text states and the host's seed."""
    tcd = diffusers.TCDScheduler(**reference.BETAS, **scheduler)
    tcd.set_timesteps(steps, timesteps=timesteps)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 8, 8, generator=generator)[None]
    trajectory = [x]
    for t in tcd.timesteps:
        predicted = unet(x, t, batch.tensors["0.cond"]).sample
        if cfg != 1:
            negative = unet(x, t, batch.tensors["0.uncond"]).sample
            predicted = negative + cfg * (predicted - negative)
        x = tcd.step(predicted, t, x, eta=eta, generator=generator).prev_sample
        trajectory.append(x)
    return trajectory


def _hosts(batch) -> list[torch.Tensor]:
    """Returns the host's latents, which are x0 + sigma * noise, in the scaling of diffusers; the last are at alpha_bar[0]."""
    xs, sigmas = [batch.x(i) for i in range(len(batch.sigmas))], [*batch.sigmas, _LAST]
    return [x / (1 + sigma**2) ** 0.5 for x, sigma in zip([*xs, batch.latents], sigmas, strict=True)]


def _settings(eta: float) -> dict:
    return {"hyper_sd_default_eta": eta, "hyper_sd_end": "alpha_bar[0]", **GUIDED_FROM_THE_START}  # diffusers ends there


@pytest.fixture
def tell(webui):
    """Tells the sampler what the panel does for SDXL alone, which is 7 GB on a host that knows it by its widths."""

    def told(**rule) -> None:
        webui.ask(f"/recorder/run?rule={quote(json.dumps(rule))}")

    yield told
    told()


@pytest.mark.parametrize(("steps", "eta"), [(1, 0.3), (2, 1.0), (4, 0.0), (4, 1.0), (8, 0.3)])
@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_trajectory_equals_diffusers(webui, unet, steps, eta, cfg):
    batch = webui.draw(steps=steps, cfg_scale=cfg, override_settings=_settings(eta))
    worst = reference.worst(_hosts(batch), _diffusers(unet, batch, steps=steps, eta=eta, cfg=cfg))
    assert worst <= 1e-3


@pytest.mark.parametrize(("method", "listed"), [("lcm", None), ("flash", [999, 749, 499, 249]), ("pcm-small-cfg", None)])
def test_other_methods_preset_equals_its_own_scheduler(webui, unet, method, listed):
    scheduler = reference.scheduler_of(method, listed)
    chosen = by_name(enabled=True, steps=4, variant="merged", method=method)
    batch = webui.draw(override_settings=GUIDED_FROM_THE_START, **chosen)
    assert reference.timesteps_asked(batch) == scheduler.timesteps.tolist()
    expected = reference.by_scheduler(scheduler, _network(unet, batch))
    assert reference.worst(reference.hosts_run(batch), expected) <= 1e-3


def _network(unet, batch):
    return lambda x, t: unet(x, t, batch.tensors["0.cond"]).sample


def test_timestep_list_told_to_the_sampler_equals_its_own_scheduler(webui, unet, tell):
    tell(eta=1.0, to_clean=True, timesteps=reference.FULL)
    batch = webui.draw(override_settings=GUIDED_FROM_THE_START)
    assert reference.timesteps_asked(batch) == reference.FULL
    expected = reference.by_scheduler(reference.scheduler_of("dmd2", reference.FULL), _network(unet, batch))
    assert reference.worst(reference.hosts_run(batch), expected) <= 1e-3


def test_tdds_list_told_to_the_sampler_equals_tcds_scheduler_on_it(webui, unet, tell):
    tell(eta=0.2, timesteps=TDD)
    batch = webui.draw(override_settings=_settings(0.2))
    assert reference.timesteps_asked(batch) == TDD
    expected = _diffusers(unet, batch, eta=0.2, cfg=1.0, timesteps=TDD)
    assert reference.worst(_hosts(batch), expected) <= 1e-3


@pytest.mark.parametrize("levels", ["Default", "Zero Terminal SNR"])
@pytest.mark.parametrize("shift", [0.25, 0.5])
def test_timestep_shift_told_to_the_sampler_equals_the_rule(webui, unet, tell, shift, levels):
    tell(eta=1.0, to_clean=True, timesteps=reference.FULL, timestep_shift=shift)
    batch = webui.draw(override_settings={**GUIDED_FROM_THE_START, "sd_noise_schedule": levels})
    bars = reference.alpha_bars(levels in batch.infotext)  # Forge-classic gives such levels to v-prediction models alone
    schedule = NoiseSchedule.from_sigmas(sigma_of(bars))
    assert reference.timesteps_asked(batch, schedule) == [shifted_timestep(t, shift) for t in reference.FULL]
    expected = reference.shifted_run(_network(unet, batch), reference.FULL, shift, bars)
    assert reference.worst(reference.hosts_run(batch), expected) <= 1e-3


def test_shifted_question_shows_what_a_mask_keeps_by_the_images_own_noise(webui, unet, tell):
    tell(eta=1.0, to_clean=True, timesteps=reference.FULL, timestep_shift=0.25)
    webui.draw()  # A1111's img2img takes its noise levels before it sets them for the image: those of the image before
    batch = webui.draw(override_settings=GUIDED_FROM_THE_START, **reference.inpainting())
    bars, image, network = reference.alpha_bars(), batch.tensors["image"][..., :4], _network(unet, batch)
    seen = reference.hosts_run(batch)
    for t, x in zip(reference.CUT, seen, strict=False):  # Forge draws the noise there anew at every step, without a seed
        noise = (x[..., :4] - bars[t].sqrt() * image) / (1 - bars[t]).sqrt()
        assert 0.7 < noise.std() < 1.3
    last = shifted_timestep(reference.CUT[-1], 0.25)
    with torch.no_grad():
        x0 = (seen[-2] - (1 - bars[last]).sqrt() * network(seen[-2], last)) / bars[last].sqrt()
    assert reference.worst([batch.latents[..., 4:], batch.latents[..., :4]], [x0[..., 4:], image]) <= 1e-3


def test_v_prediction_equals_diffusers(with_yaml, unet):
    batch = with_yaml.draw(override_settings={**_settings(0.3), "sd_model_checkpoint": "tiny_v.safetensors"})
    expected = _diffusers(unet, batch, steps=4, eta=0.3, cfg=1.0, prediction_type="v_prediction")
    worst = reference.worst(_hosts(batch), expected)
    assert worst <= 1e-3


def test_zero_terminal_snr_with_v_prediction_equals_diffusers(with_yaml, unet):
    settings = {**_settings(0.3), "sd_model_checkpoint": "tiny_v.safetensors", "sd_noise_schedule": "Zero Terminal SNR"}
    batch = with_yaml.draw(override_settings=settings)
    zero = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    worst = reference.worst(_hosts(batch), _diffusers(unet, batch, steps=4, eta=0.3, cfg=1.0, **zero))
    assert worst <= 1e-3
