"""The sampler with another method's list, jump and shift on the stub host: its result is the core's."""

from types import SimpleNamespace

import pytest
from hyper_sd.samplers.schedule import NoiseSchedule
from hyper_sd.samplers.tcd import sample_tcd
from hyper_sd.samplers.timesteps import sigmas_at
from hyper_sd.tests.webui_extension.stub_run import ImageRNG, Processing

NAME = "Hyper-SD TCD"


class Layer:
    """The hosts' outer layer of a model."""

    def __init__(self, inner):
        self.inner_model = inner

    def __call__(self, x, sigma, cond):
        return self.inner_model(x, sigma, cond="cat")


@pytest.mark.parametrize("rule", [{"eta": 1.0, "to_clean": True}, {"eta": 1.0, "to_clean": True, "timestep_shift": 0.25}])
def test_run_with_a_jump_and_a_shift_equals_the_cores(host, rule):
    from hyper_sd.webui_extension.schedule import Run

    run, schedule = Run(timesteps=(999, 749, 499, 249), **rule), NoiseSchedule.from_betas()
    sampler = host._modules["modules.sd_samplers"].all_samplers_map[NAME].constructor(host.model)
    sampler.p = Processing(hyper_sd_run=run, rng=ImageRNG([1]))
    sigmas = sigmas_at(schedule, run.timesteps)
    x, rng = ImageRNG([2]).next(), ImageRNG([1])
    found = sampler._run(Layer(sampler.model_wrap), x, sigmas, {"cond": SimpleNamespace(batch=[])}, disable=True)
    expected = sample_tcd(
        lambda x, sigma: sampler.model_wrap(x, sigma, cond="cat"), x * (1 + sigmas[0] ** -2) ** 0.5, sigmas,
        noise_sampler=lambda *_: rng.next(), disable=True, schedule=schedule, **run.rule,
    )  # fmt: skip
    assert (found - expected).abs().max() < 1e-3 * expected.abs().max()
