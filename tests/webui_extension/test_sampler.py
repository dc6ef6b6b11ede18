"""The sampler on the stub host: grids, noise, img2img, hires fix, guards; the trajectory against the core and diffusers."""

import sys

import pytest
import torch
from hyper_sd.samplers.schedule import NoiseSchedule
from hyper_sd.samplers.tcd import sample_tcd
from hyper_sd.samplers.timesteps import hyper_sd_sigmas, hyper_sd_timesteps
from hyper_sd.tests.webui_extension.stub_host import Model, StubHost
from hyper_sd.tests.webui_extension.stub_run import SHAPE, ImageRNG, Processing, load_extension, process_images

NAME = "Hyper-SD TCD"
PLAIN = [False]  # the panel off: the sampler alone


def draw(host: StubHost, **given) -> tuple[list[torch.Tensor], Processing]:
    """Returns images made with the sampler at CFG 1, and the host's object."""
    p = Processing(**{"sampler_name": NAME, "cfg_scale": 1.0, "steps": 4, "args": PLAIN, **given})
    return process_images(host, p), p


def eta(value: float, segments: int = 0) -> list:
    """The panel's arguments with the panel off."""
    return [False, 4, "auto", 0, 0, True, False, value, segments]


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def init_image() -> torch.Tensor:
    return torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(99))


def test_registration_is_idempotent_over_reload_ui(host):
    samplers, schedulers = host._modules["modules.sd_samplers"], host._modules["modules.sd_schedulers"]
    for _ in range(2):
        names = [data.name for data in samplers.all_samplers]
        assert names.count(NAME) == 1
        assert names[0] == "DPM++ 2M"  # the host's default stays the first
        assert [scheduler.label for scheduler in schedulers.schedulers].count("Hyper-SD") == 1
        assert samplers.samplers_map["hyper-sd tcd"] == NAME
        load_extension(host)


def test_sampler_name_survives_every_schedule_type(host):
    for scheduler in host._modules["modules.sd_schedulers"].schedulers:
        _, p = draw(host, scheduler=scheduler.label)
        assert f"Sampler: {NAME}, Schedule type: {scheduler.label}," in p.infotext


def test_sampler_survives_a_foreign_schedule_type_called_tcd(host):
    schedulers = host._modules["modules.sd_schedulers"]
    schedulers.schedulers.append(schedulers.Scheduler("tcd", "TCD", None))
    lookup = host._modules["modules.sd_samplers"].get_sampler_and_scheduler
    lookup.cache_clear()
    assert lookup(NAME, "Automatic")[0] == NAME


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize(("value", "steps", "segments"), [(0.3, 4, 1), (1.0, 2, 1), (0.0, 8, 1), (0.7, 4, 4), (0.5, 6, 4)])
def test_trajectory_equals_the_cores(make_host, request, real, value, steps, segments):
    given = {"denoiser": request.getfixturevalue("k_diffusion").CompVisDenoiser} if real else {}
    host = make_host(**given)
    images, p = draw(host, args=eta(value, segments), steps=steps, batch_size=2)
    rng, schedule = ImageRNG(p.seeds), NoiseSchedule.from_betas()
    sigmas = hyper_sd_sigmas(schedule, steps, segments)
    x = rng.next() * (1 + sigmas[0] ** 2) ** 0.5

    def model(x, sigma, **extra):
        level = float(sigma[0])
        return x - level * host.model.apply_model(x / (1 + level**2) ** 0.5, torch.tensor(schedule.timestep(level)), cond="cat")

    expected = sample_tcd(
        model, x, sigmas, disable=True, noise_sampler=lambda *_: rng.next(), eta=value, num_segments=segments, schedule=schedule
    )
    assert difference(torch.stack(images), expected) < 2e-3 * float(expected.abs().max())


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_trajectory_equals_diffusers(host, value):
    scheduler = pytest.importorskip("diffusers").TCDScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    host.shared.opts.data["hyper_sd_end"] = "alpha_bar[0]"
    (image,), p = draw(host, args=eta(value))
    assert "Hyper-SD end" in p.infotext
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == hyper_sd_timesteps(4)
    rng = ImageRNG(p.seeds)
    draws = [rng.next() for _ in range(4)]
    sample = draws.pop(0)
    for t in scheduler.timesteps:
        out = host.model.apply_model(sample, t, cond="cat")
        before = len(draws)
        sample = _step_with(scheduler, out, t, sample, draws, value)
        assert before - len(draws) == (t != scheduler.timesteps[-1] and value > 0)
    alpha_bar = host.model.alphas_cumprod[0]
    assert difference(image, sample[0] / alpha_bar**0.5) < 5e-3 * float(image.abs().max())


def _step_with(scheduler, out, t, sample, draws, value):
    """diffusers' step with our noise in place of its own."""
    from diffusers.schedulers import scheduling_tcd

    original = scheduling_tcd.randn_tensor
    scheduling_tcd.randn_tensor = lambda *args, **given: draws.pop(0) if value > 0 else torch.zeros_like(sample)
    try:
        return scheduler.step(out, t, sample, eta=value).prev_sample
    finally:
        scheduling_tcd.randn_tensor = original


@pytest.mark.parametrize("forge", [False, True])
def test_batch_equals_single_images(make_host, forge):
    host = make_host(forge=forge)
    batch, _ = draw(host, args=eta(1.0), batch_size=2, n_iter=2)
    singles = [draw(host, args=eta(1.0), seed=1 + i)[0][0] for i in range(4)]
    assert all(difference(one, other) < 1e-5 for one, other in zip(batch, singles, strict=True))


def test_comfyui_noise_is_the_cores_own_for_every_seed(host):
    host.shared.opts.data["hyper_sd_noise"] = "as ComfyUI"
    batch, p = draw(host, args=eta(1.0), batch_size=2, seed=5)
    assert "Hyper-SD noise: as ComfyUI" in p.infotext
    single, _ = draw(host, args=eta(1.0), seed=6)
    assert difference(batch[1], single[0]) < 1e-5
    sigmas, schedule = hyper_sd_sigmas(NoiseSchedule.from_betas(), 4), NoiseSchedule.from_betas()
    sampler = host._modules["modules.sd_samplers"].all_samplers_map[NAME].constructor(host.model)
    x = ImageRNG([5]).next() * (1 + sigmas[0] ** 2) ** 0.5
    expected = sample_tcd(
        lambda x, sigma, seed: sampler.model_wrap(x, sigma, cond="cat"), x, sigmas, {"seed": 5},
        disable=True, eta=1.0, schedule=schedule,
    )  # fmt: skip
    assert difference(batch[0], expected[0]) < 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("choice", ["as ComfyUI", "as the host"])
def test_noise_drawn_ahead_for_a_card_gives_the_same_batch(host, monkeypatch, choice):
    host.shared.opts.data["hyper_sd_noise"] = choice
    expected, _ = draw(host, args=eta(1.0), batch_size=3, seed=5)
    sampler = host._modules["modules.sd_samplers"].all_samplers_map[NAME].constructor
    noise, pinned = sys.modules[sys.modules[sampler.__module__].noise_ahead.__module__], []
    monkeypatch.setattr(noise, "draws_ahead", lambda device: True)
    monkeypatch.setattr(noise, "_pinned_like", lambda x: pinned.append(x.shape) or torch.empty_like(x))
    found, _ = draw(host, args=eta(1.0), batch_size=3, seed=5)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert pinned == ([(3, *SHAPE)] * 3 if choice == "as ComfyUI" else [])


def test_eta_is_not_taken_from_the_hosts_own(host):
    ours, p = draw(host, args=eta(0.2), eta=0.9)
    assert difference(ours[0], draw(host, args=eta(0.2))[0][0]) == 0
    assert p.eta == 0.9  # other samplers' eta stays theirs
    assert "Hyper-SD eta: 0.2" in p.infotext
    assert " Eta:" not in p.infotext


@pytest.mark.parametrize("steps", [1, 9, 49, 50, 51, 150, 999])
def test_grid_serves_any_number_of_steps(host, steps):
    _, p = draw(host, steps=steps)
    assert len(host.shared.state.evaluations) == steps
    assert ("Hyper-SD timesteps" in p.infotext) == (steps <= 16)


@pytest.mark.parametrize("steps", [1, 4, 8])
@pytest.mark.parametrize("segments", [1, 4])
def test_img2img_strength_matters_at_every_step_count(host, steps, segments):
    image, last = init_image(), -1.0
    for strength in (0.0, 0.02, 0.1, 0.3, 0.5, 0.75, 1.0):
        (result,), _ = draw(host, args=eta(0.0, segments), steps=steps, init_latent=image, denoising_strength=strength)
        sampler_start = difference(result, image[0])
        assert sampler_start != last
        last = sampler_start
        assert torch.isfinite(result).all()


def test_img2img_grid_is_cut_anew_and_not_sliced(host):
    seen = {}
    for strength in (0.2, 0.5, 0.8):
        _, p = draw(host, init_latent=init_image(), denoising_strength=strength, steps=1)
        seen[strength] = p.extra_generation_params["Hyper-SD timesteps"]
    assert seen == {0.2: "199", 0.5: "499", 0.8: "799"}


@pytest.mark.parametrize("strength", [0.0, 0.001, 0.01, 0.05, 0.3, 0.999, 1.0])
@pytest.mark.parametrize("steps", [1, 4, 8, 20])
@pytest.mark.parametrize("segments", [1, 4, 12])
def test_exact_steps_are_taken_at_any_strength(host, strength, steps, segments):
    host.shared.opts.data["img2img_fix_steps"] = True
    images, _ = draw(host, args=eta(0.3, segments), init_latent=init_image(), denoising_strength=strength, steps=steps)
    assert torch.isfinite(images[0]).all()
    assert len(host.shared.state.evaluations) == (steps if strength > 0 else 0)


def test_hires_pass_is_cut_at_its_strength(host):
    _, p = draw(host, enable_hr=True, denoising_strength=0.05, hr_second_pass_steps=3)  # asks for 60 steps, takes 3
    assert len(host.shared.state.evaluations) == 4 + 3
    assert p.extra_generation_params["Hyper-SD timesteps"] == "999 759 499 259"


def test_inpainting_keeps_what_is_masked(host):
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    image = init_image()
    (result,), _ = draw(host, init_latent=image, mask=mask, denoising_strength=1.0)
    assert torch.allclose(result[..., :4], image[0, ..., :4], atol=1e-4)
    assert difference(result[..., 4:], image[0, ..., 4:]) > 0.1


@pytest.mark.parametrize(("v", "zero_snr"), [(False, False), (True, False), (True, True), (False, True)])
def test_v_prediction_and_zero_terminal_snr_use_their_own_levels(make_host, v, zero_snr):
    host = make_host()
    plain, _ = draw(host, args=eta(0.3))
    host.use(Model(host, v=v, zero_snr=zero_snr))
    images, _ = draw(host, args=eta(0.3))
    assert torch.isfinite(images[0]).all()
    assert (difference(images[0], plain[0]) > 1e-3) == (v or zero_snr)
    sampler = host._modules["modules.sd_samplers"].all_samplers_map[NAME].constructor(host.model)
    sigmas = sampler.get_sigmas(Processing(scheduler="Automatic"), 4)
    assert float(sigmas[0]) == pytest.approx(float(sampler.model_wrap.sigmas[-1]), rel=1e-4)


@pytest.mark.parametrize(("v", "zero_snr"), [(False, False), (True, False), (True, True), (False, True)])
def test_k_diffusions_own_denoisers_give_the_same_image(make_host, k_diffusion, v, zero_snr):
    real = k_diffusion.CompVisVDenoiser if v else k_diffusion.CompVisDenoiser
    images = []
    for given in ({}, {"denoiser": real}):
        host = make_host(**given)
        host.use(Model(host, v=v, zero_snr=zero_snr))
        images.append(draw(host, args=eta(0.3))[0][0])
    assert difference(*images) < 2e-3 * float(images[0].abs().max())


def test_interrupt_ends_the_run_with_the_last_preview(host):
    host.shared.state.interrupt_after = 2
    images, _ = draw(host, steps=8)
    assert host.shared.state.evaluations == [1, 1]
    assert torch.equal(images[0], host.shared.state.current_latent[0])


def test_negative_prompt_is_left_out_at_cfg_1_and_the_option_put_back(host):
    one, p = draw(host, negative_prompt="dog")
    assert host.shared.state.evaluations == [1] * 4
    assert host.shared.opts.data.get("skip_early_cond") is None  # never saved: an override would have stayed
    assert "Skip Early CFG" not in p.infotext
    host.shared.opts.data["hyper_sd_skip_negative"] = False
    both, _ = draw(host, negative_prompt="dog")
    assert len(host.shared.state.evaluations) == 4 + 8
    assert difference(one[0], both[0]) < 1e-4


def test_negative_prompt_is_evaluated_above_cfg_1(host):
    draw(host, cfg_scale=2.0)
    assert len(host.shared.state.evaluations) == 8


def test_option_is_put_back_after_an_interrupt(host):
    host.shared.opts.data["skip_early_cond"], host.shared.state.interrupt_after = 0.25, 1
    draw(host)
    assert host.shared.opts.data["skip_early_cond"] == 0.25


def test_too_many_segments_for_the_steps_says_what_to_do(host):
    with pytest.raises(ValueError, match="use at least 4 steps, or fewer segments"):
        draw(host, args=eta(0.3, 4), steps=3)


def test_repeated_levels_of_a_schedule_type_are_skipped_and_counted(host, monkeypatch):
    """As "Simple" repeats them in an image-to-image pass of exactly so many steps, whose whole list has steps / strength."""
    types = host._modules["modules.sd_schedulers"]

    def simple(n, sigma_min, sigma_max, inner_model, device):
        places = [-1 - int(step * len(inner_model.sigmas) / n) for step in range(n)]
        return torch.cat([inner_model.sigmas[places], torch.zeros(1)])

    monkeypatch.setitem(types.schedulers_map, "Simple", types.Scheduler("simple", "Simple", simple, need_inner_model=True))
    monkeypatch.setattr(types, "schedulers", [*types.schedulers, types.schedulers_map["Simple"]])
    host._modules["modules.sd_samplers"].get_sampler_and_scheduler.cache_clear()
    host.shared.opts.data["img2img_fix_steps"] = True
    counted, sampler_class = [], host._modules["modules.sd_samplers_kdiffusion"].KDiffusionSampler
    callback = sampler_class.callback_state
    monkeypatch.setattr(
        sampler_class,
        "callback_state",
        lambda self, seen: counted.append((seen["i"], self.model_wrap_cfg.step)) or callback(self, seen),
    )
    (image,), _ = draw(host, args=eta(1.0), scheduler="Simple", init_latent=init_image(), denoising_strength=0.01, steps=20)
    assert torch.isfinite(image).all()
    assert len(host.shared.state.evaluations) == 10  # 2000 steps over 1000 levels
    assert counted == [(i, i + 1) for i in range(20)]  # by the second number the host's prompts change
