"""The host's own schedulers where they repeat noise levels: more steps / denoise than the model has levels."""

import pytest
import torch


def last_levels(model, scheduler, steps, denoise):
    """Returns what KSampler samples: the last steps of a list for steps / denoise."""
    import comfy.samplers

    whole = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, int(steps / denoise))
    return whole[-(steps + 1) :]


@pytest.mark.parametrize(
    ("sampling", "scheduler", "steps", "denoise"),
    [
        ("eps", "simple", 20, 0.01),
        ("eps", "hyper_sd", 20, 0.01),
        ("lcm", "simple", 8, 0.1),
        ("lcm", "simple", 60, 1.0),
        ("lcm", "hyper_sd", 60, 0.5),
    ],
)
def test_ksampler_takes_what_its_schedulers_repeat(host, pack, unet, positive, negative, sampling, scheduler, steps, denoise):
    patched = host.with_sampling(unet, sampling)
    listed, image, told = last_levels(patched, scheduler, steps, denoise), host.latent(seed=3), []
    model, calls = host.watched(patched)
    given = {"image": image, "steps": steps, "denoise": denoise, "scheduler": scheduler}
    host.on_progress(lambda value, total: told.append((value, total)))
    try:
        found = host.ksampler(model, positive, negative, **given)
    finally:
        host.on_progress(None)
    (sampler,) = pack["HyperSDSampler"].execute(0.3, 1).args
    different = torch.unique_consecutive(listed)
    assert [call.sigma for call in calls] == pytest.approx(different[:-1].tolist())
    assert torch.equal(found, host.custom(patched, positive, negative, sampler, different, image=image))
    assert torch.isfinite(found).all()
    assert told[-1] == (steps, steps)  # the bar ends full
    assert torch.isfinite(host.ksampler(model, positive, negative, sampler="euler", **given)).all()


@pytest.mark.parametrize(
    ("sampling", "scheduler", "steps", "denoise"), [("eps", "simple", 20, 0.01), ("lcm", "simple", 60, 1.0)]
)
def test_host_repeats_levels_there(host, unet, sampling, scheduler, steps, denoise):
    listed = last_levels(host.with_sampling(unet, sampling), scheduler, steps, denoise)
    assert len(torch.unique_consecutive(listed)) < len(listed)
