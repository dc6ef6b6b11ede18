"""Whole trajectories against a few lines written from the papers' formulas, for every kind of model the host knows."""

import math

import pytest
import torch

TCD_GRID = [999, 759, 499, 259]  # diffusers TCDScheduler.set_timesteps(4)


def _model_and_table(host, kind):
    """Returns the MODEL and its sigmas at timesteps 0..999."""
    if kind == "mmdit":
        model = host.small_mmdit()
    elif kind in {"v_prediction_patch", "zero_terminal_snr"}:
        model = host.with_sampling(host.small_unet(), "v_prediction", kind == "zero_terminal_snr")
    else:
        model = host.small_unet(kind)
    table = model.get_model_object("model_sampling").sigmas.double()
    return model, table[len(table) // 1000 - 1 :: len(table) // 1000]


def _diffusion_reference(denoise, noise, table, eta, draws):
    """TCD in x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps, ending on the model's x0."""
    alpha_bar = 1 / (1 + table**2)
    x = noise.double()
    for t, t_next in zip(TCD_GRID, [*TCD_GRID[1:], None], strict=True):
        ab = alpha_bar[t]
        x0 = denoise(x / ab.sqrt(), table[t])
        if t_next is None:
            return x0
        s = math.floor((1 - eta) * t_next)
        eps = (x - ab.sqrt() * x0) / (1 - ab).sqrt()
        x_s = alpha_bar[s].sqrt() * x0 + (1 - alpha_bar[s]).sqrt() * eps
        ratio = alpha_bar[t_next] / alpha_bar[s]
        x = ratio.sqrt() * x_s + ((1 - ratio).sqrt() * next(draws) if eta else 0)


def _flow_reference(denoise, noise, table, eta, draws):
    """TCD in x = (1 - sigma) x0 + sigma eps."""
    x = noise.double()
    for t, t_next in zip(TCD_GRID, [*TCD_GRID[1:], None], strict=True):
        x0 = denoise(x, table[t])
        if t_next is None:
            return x0
        low, high = table[math.floor((1 - eta) * t_next)], table[t_next]
        eps = (x - (1 - table[t]) * x0) / table[t]
        scale = (1 - high) / (1 - low)
        x = scale * ((1 - low) * x0 + low * eps)
        if eta:
            x = x + (high**2 - (scale * low) ** 2).sqrt() * next(draws)


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "v_prediction_patch", "zero_terminal_snr", "FLOW", "FLUX", "mmdit"])
def test_trajectory_equals_the_formulas(host, pack, positive, draws, kind, eta):
    model, table = _model_and_table(host, kind)
    channels = model.model.latent_format.latent_channels
    image = host.latent(channels=channels)
    (sampler,) = pack["HyperSDSampler"].execute(eta, 1).args
    (sigmas,) = pack["HyperSDScheduler"].execute(model, 4, 1, 1.0).args
    torch.testing.assert_close(sigmas[:-1], table[TCD_GRID].float(), rtol=1e-5, atol=0)
    result = host.custom(model, positive, positive, sampler, sigmas, image=image)
    assert torch.isfinite(result).all()
    assert len(draws) == (3 if eta else 0)

    (states, extra) = positive[0]
    y = {"y": extra["pooled_output"]} if kind == "mmdit" else {}

    def denoise(x, sigma):
        with host.sampling_patched(model):
            return model.model.apply_model(x.float(), sigma.float()[None], c_crossattn=states, **y).double()

    reference = _flow_reference if table[-1] <= 1 else _diffusion_reference
    expected = reference(denoise, host.initial_noise(image), table, eta, iter(draws))
    expected = model.model.process_latent_out(expected)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=2e-4 * expected.std().item())


@pytest.mark.parametrize("kind", ["zero_terminal_snr", "FLOW", "FLUX", "mmdit"])
@pytest.mark.parametrize("steps", [1, 2, 8])
def test_ksampler_equals_the_nodes_for_unusual_schedules(host, pack, positive, negative, kind, steps):
    model, _ = _model_and_table(host, kind)
    image = host.latent(channels=model.model.latent_format.latent_channels)
    (sampler,) = pack["HyperSDSampler"].execute(0.3, 1).args
    (sigmas,) = pack["HyperSDScheduler"].execute(model, steps, 1, 1.0).args
    whole = host.ksampler(model, positive, negative, steps=steps, cfg=3.0, image=image)
    assert torch.isfinite(whole).all()
    assert torch.equal(whole, host.custom(model, positive, negative, sampler, sigmas, cfg=3.0, image=image))


def test_zero_terminal_snr_moves_the_first_sigma(host, pack):
    model, table = _model_and_table(host, "zero_terminal_snr")
    (sigmas,) = pack["HyperSDScheduler"].execute(model, 4, 1, 1.0).args
    assert sigmas[0] > 4000
    assert host.small_unet().get_model_object("model_sampling").sigma_max < 15
    assert sigmas[0] == table[-1].float()
