"""A shifted MODEL together with v-prediction, zero-terminal-SNR and an inpaint mask, against the rule written out, to 1e-3."""

import pytest
import torch
from hyper_sd.nodes.shifted_model import asked_shifted
from hyper_sd.samplers.schedule import NoiseSchedule, alpha_bar_of
from hyper_sd.samplers.shift import shifted_timestep
from hyper_sd.samplers.tcd import sample_tcd
from hyper_sd.samplers.timesteps import distinct_sigmas

RULE = {"eta": 1.0, "num_segments": 1, "to_clean": True}  # NitroSD's
FULL, CUT = [999, 749, 499, 249], [749, 624, 499, 249]
LATENT_SCALE = 0.18215  # of SD1.5, by which the host takes latents in and out
NOISES = [torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(50, 54)]


@pytest.fixture
def conds(host):
    return host.conditioning(1), host.conditioning(2)


@pytest.fixture
def inpainting(host):
    """A LATENT whose right half is made anew."""
    mask = torch.zeros(1, 16, 16)
    mask[..., 8:] = 1
    return {**host.latent(seed=4), "noise_mask": mask}


def _run(host, model, conds, timesteps, image=None):
    import comfy.samplers

    draws = iter(NOISES)
    options = {**RULE, "noise_sampler": lambda *_: next(draws)}
    sigmas = distinct_sigmas(NoiseSchedule.from_sigmas(model.get_model_object("model_sampling").sigmas), timesteps)
    sampler = comfy.samplers.KSAMPLER(sample_tcd, extra_options=options)
    return host.custom(model, *conds, sampler, sigmas, cfg=1.0, image=image)


def _written_out(host, model, conds, timesteps, shift, is_v, image=None):
    """Returns what the rule gives: the network is asked, and x0 taken, at floor(timestep * shift), all else as it is."""
    network, bars = host.network_of(model), alpha_bar_of(model.get_model_object("model_sampling").sigmas.double()).float()
    given = image or host.latent()
    start, kept, draws = host.initial_noise(given), given["samples"] * LATENT_SCALE, iter(NOISES)
    changed = given.get("noise_mask", torch.ones(1))
    x = bars[timesteps[0]].sqrt() * kept + (1 - bars[timesteps[0]]).sqrt() * start if image else start
    for t, t_next in zip(timesteps, [*timesteps[1:], None], strict=True):
        asked = shifted_timestep(t, shift)
        signal, spread = bars[asked].sqrt(), (1 - bars[asked]).sqrt()
        seen = x * changed + (bars[t].sqrt() * kept + (1 - bars[t]).sqrt() * start) * (1 - changed)  # by the image's own noise
        answer = network(seen, torch.tensor([float(asked)]), context=conds[0][0][0])
        x0 = signal * seen - spread * answer if is_v else (seen - spread * answer) / signal
        x0 = x0 * changed + kept * (1 - changed)
        if t_next is None:
            return x0 / LATENT_SCALE
        x = bars[t_next].sqrt() * x0 + (1 - bars[t_next]).sqrt() * next(draws)


@pytest.mark.parametrize("shift", [0.25, 0.5])
@pytest.mark.parametrize("masked", [False, True], ids=["text", "mask"])
@pytest.mark.parametrize("kind", ["noise", "v", "v and zero terminal SNR"])
def test_shift_holds_with_a_mask_v_prediction_and_zero_terminal_snr(host, unet, conds, inpainting, kind, masked, shift):
    is_v, image, timesteps = kind != "noise", inpainting if masked else None, CUT if masked else FULL
    model = host.with_sampling(unet, "v_prediction", "zero" in kind) if is_v else unet
    found = _run(host, asked_shifted(model, shift), conds, timesteps, image)
    expected = _written_out(host, model, conds, timesteps, shift, is_v, image)
    assert (found - expected).abs().max() * LATENT_SCALE <= 1e-3
    assert (found - _run(host, model, conds, timesteps, image)).abs().max() * LATENT_SCALE > 1e-2  # as without the shift
    if masked:
        assert (found - image["samples"])[..., :8].abs().max() <= 1e-3


def test_node_that_sets_the_sampling_behind_the_shift_takes_its_place(host, unet, conds):
    plain, before, behind = unet, host.with_sampling(unet, "eps"), host.with_sampling(asked_shifted(unet, 0.25), "eps")
    assert torch.equal(_run(host, behind, conds, FULL), _run(host, plain, conds, FULL))
    shifted = [_run(host, asked_shifted(model, 0.25), conds, FULL) for model in (plain, before)]
    torch.testing.assert_close(*shifted, rtol=0, atol=1e-4)
    assert (shifted[0] - _run(host, plain, conds, FULL)).abs().max() > 1e-2
