"""A host's whole run against diffusers' TCDScheduler and UNet with the same weights, to 1e-3 in float32 latents."""

import pytest
import torch
from hyper_sd.samplers.schedule import NoiseSchedule
from hyper_sd.tests.webui import tiny_checkpoint as tiny
from hyper_sd.tests.webui.panel import by_name
from hyper_sd.tests.webui.webui_host import GUIDED_FROM_THE_START

diffusers = pytest.importorskip("diffusers")
_LAST = NoiseSchedule.from_betas().sigma(0)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture(scope="module")
def unet(webui):
    """The checkpoint's network as diffusers has it."""
    return tiny.make_unet(tiny.SMALL if webui.reads_yaml else tiny.WIDE)


@torch.no_grad()
def _diffusers(unet, batch, *, steps, eta, cfg, seed=1, **scheduler) -> list[torch.Tensor]:
    """Returns the latents before every step and after the last, from the host's text states and the host's seed."""
    tcd = diffusers.TCDScheduler(**BETAS, **scheduler)
    tcd.set_timesteps(steps)
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


def _worst(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    assert len(one) == len(other)
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


def _settings(eta: float) -> dict:
    return {"hyper_sd_default_eta": eta, "hyper_sd_end": "alpha_bar[0]", **GUIDED_FROM_THE_START}  # diffusers ends there


@pytest.mark.parametrize(("steps", "eta"), [(1, 0.3), (2, 1.0), (4, 0.0), (4, 1.0), (8, 0.3)])
@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_trajectory_equals_diffusers(webui, unet, steps, eta, cfg):
    batch = webui.draw(steps=steps, cfg_scale=cfg, override_settings=_settings(eta))
    worst = _worst(_hosts(batch), _diffusers(unet, batch, steps=steps, eta=eta, cfg=cfg))
    assert worst <= 1e-3


@torch.no_grad()
def _by(scheduler, unet, batch) -> list[torch.Tensor]:
    """Returns the latents before every step of a scheduler and after the last, from the host's text states and seed 1."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 8, 8, generator=generator)[None]
    trajectory = [x]
    more = {"generator": generator} if isinstance(scheduler, diffusers.LCMScheduler) else {}
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t, batch.tensors["0.cond"]).sample, t, x, **more).prev_sample
        trajectory.append(x)
    return trajectory


@pytest.mark.parametrize(("method", "listed"), [("lcm", None), ("flash", [999, 749, 499, 249]), ("pcm-small-cfg", None)])
def test_other_methods_preset_equals_its_own_scheduler(webui, unet, method, listed):
    if method == "pcm-small-cfg":  # eta 0 on the trailing grid, as SDXL-Lightning
        scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing")
    else:
        scheduler = diffusers.LCMScheduler(**BETAS, original_inference_steps=1000 if listed else 50)
    scheduler.set_timesteps(**({"timesteps": listed} if listed else {"num_inference_steps": 4}))
    chosen = by_name(enabled=True, steps=4, variant="merged", method=method)
    batch = webui.draw(override_settings=GUIDED_FROM_THE_START, **chosen)
    xs, sigmas = [batch.x(i) for i in range(4)], batch.sigmas
    assert [round(NoiseSchedule.from_betas().timestep(sigma)) for sigma in sigmas] == scheduler.timesteps.tolist()
    hosts = [*(x / (1 + sigma**2) ** 0.5 for x, sigma in zip(xs, sigmas, strict=True)), batch.latents]
    assert _worst(hosts, _by(scheduler, unet, batch)) <= 1e-3


def test_v_prediction_equals_diffusers(with_yaml, unet):
    batch = with_yaml.draw(override_settings={**_settings(0.3), "sd_model_checkpoint": "tiny_v.safetensors"})
    expected = _diffusers(unet, batch, steps=4, eta=0.3, cfg=1.0, prediction_type="v_prediction")
    worst = _worst(_hosts(batch), expected)
    assert worst <= 1e-3


def test_zero_terminal_snr_with_v_prediction_equals_diffusers(with_yaml, unet):
    settings = {**_settings(0.3), "sd_model_checkpoint": "tiny_v.safetensors", "sd_noise_schedule": "Zero Terminal SNR"}
    batch = with_yaml.draw(override_settings=settings)
    zero = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    worst = _worst(_hosts(batch), _diffusers(unet, batch, steps=4, eta=0.3, cfg=1.0, **zero))
    assert worst <= 1e-3
