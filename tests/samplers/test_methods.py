"""Other few-step methods' whole trajectories against diffusers' schedulers, and what no scheduler there has, written out."""

import math

import pytest
import torch
from hyper_sd.errors import ScheduleError, UnsupportedModelError
from hyper_sd.samplers.shift import shifted_timestep
from hyper_sd.samplers.tcd import sample_tcd
from hyper_sd.samplers.timesteps import hyper_sd_timesteps, listed_timesteps
from hyper_sd.tests.samplers.fakes import (
    DIFFUSION,
    TRAILING_GRIDS,
    draws,
    flow,
    host_model,
    network,
    no_noise,
    normal,
    sigmas_of,
)

diffusers = pytest.importorskip("diffusers")

START = normal(2, 4, 8, 8)
NOISES = [normal(2, 4, 8, 8, seed=seed) for seed in range(1, 17)]
ALPHA_BARS = torch.tensor([1 / (1 + sigma**2) for sigma in DIFFUSION.table], dtype=torch.float64)
DMD2 = [999, 749, 499, 249]
TDD = {4: [999, 751, 499, 251], 5: [999, 875, 751, 499, 251], 7: [999, 875, 751, 627, 499, 375, 251]}


def ours(timesteps, end=0.0, noise_sampler=None, **rule):
    """Our sampler from unit noise, its result in diffusers' scaling."""
    sigmas = sigmas_of(DIFFUSION, timesteps, end)
    start = START * (1 + sigmas[0] ** 2).sqrt()
    noise_sampler = noise_sampler or draws(NOISES)
    x = sample_tcd(host_model(DIFFUSION), start, sigmas, noise_sampler=noise_sampler, schedule=DIFFUSION, disable=True, **rule)
    return x / (1 + sigmas[-1] ** 2).sqrt()


def theirs(scheduler, monkeypatch, timesteps=None, steps=None, **step):
    """A scheduler of diffusers' that draws our noises: its last sample, and the timesteps it visits."""
    scheduler.alphas_cumprod = ALPHA_BARS
    scheduler.set_timesteps(**({"timesteps": timesteps} if timesteps else {"num_inference_steps": steps}))
    noises = iter(NOISES)
    for module in ("lcm", "tcd"):
        monkeypatch.setattr(f"diffusers.schedulers.scheduling_{module}.randn_tensor", lambda *a, **k: next(noises))
    x = START
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(network(x, t), t, x, **step).prev_sample
    return x, scheduler.timesteps.tolist()


# LCM's own scheduler mixes a share of the sample into x0, which timestep_scaling makes vanish: 4e-8 of it at its usual 10.
@pytest.mark.parametrize("scaling", [10.0, 1e12])
@pytest.mark.parametrize("steps", range(1, 9))
def test_lcm_is_eta_1_from_the_clean_image_on_tcds_grid(monkeypatch, steps, scaling):
    scheduler = diffusers.LCMScheduler(clip_sample=False, timestep_scaling=scaling)
    sample, timesteps = theirs(scheduler, monkeypatch, steps=steps)
    assert timesteps == hyper_sd_timesteps(steps)
    found = ours(timesteps, eta=1.0, to_clean=True)
    torch.testing.assert_close(found, sample, rtol=0, atol=1e-10 if scaling > 10 else 1e-4)
    if steps > 1:  # TCD's eta 1 leaves a trace of the old noise, and is told apart
        assert (ours(timesteps, eta=1.0) - sample).abs().max() > 1e-4


def test_dmd2_is_lcm_on_its_own_list(monkeypatch):
    scheduler = diffusers.LCMScheduler(clip_sample=False, timestep_scaling=1e12, original_inference_steps=1000)
    sample, timesteps = theirs(scheduler, monkeypatch, DMD2)
    assert timesteps == DMD2
    torch.testing.assert_close(ours(DMD2, eta=1.0, to_clean=True), sample, rtol=0, atol=1e-10)


def test_flash_is_lcm_on_the_trailing_grid(monkeypatch):
    scheduler = diffusers.LCMScheduler(clip_sample=False, timestep_scaling=1e12, original_inference_steps=1000)
    sample, _ = theirs(scheduler, monkeypatch, TRAILING_GRIDS[4])
    torch.testing.assert_close(ours(hyper_sd_timesteps(4, 4), eta=1.0, to_clean=True), sample, rtol=0, atol=1e-10)


@pytest.mark.parametrize("steps", TDD)
def test_tdd_is_tcd_on_its_own_list(monkeypatch, steps):
    scheduler = diffusers.TCDScheduler(clip_sample=False, original_inference_steps=1000)
    sample, timesteps = theirs(scheduler, monkeypatch, TDD[steps], eta=0.2)
    assert timesteps == TDD[steps]
    found = ours(listed_timesteps(TDD[steps]), DIFFUSION.sigma(0), eta=0.2)
    torch.testing.assert_close(found, sample, rtol=0, atol=1e-8)


@pytest.mark.parametrize("steps", [2, 4, 8, 16])
def test_lightning_and_pcm_are_eta_0_as_euler_on_the_trailing_grid(steps):
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(steps)
    levels = sigmas_of(DIFFUSION, hyper_sd_timesteps(steps, steps))
    torch.testing.assert_close(scheduler.sigmas.double(), levels, rtol=1e-4, atol=0)
    scheduler.sigmas = levels  # in float64
    x = START * (1 + levels[0] ** 2).sqrt()
    for t, given in zip(scheduler.timesteps, hyper_sd_timesteps(steps, steps), strict=True):
        assert round(float(t)) == given
        x = scheduler.step(network(scheduler.scale_model_input(x, t), given), t, x).prev_sample
    found = ours(hyper_sd_timesteps(steps, steps), eta=0.0, num_segments=steps, noise_sampler=no_noise)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-4)  # its step computes in float32; DDIM's below does not


# At 16 steps diffusers' DDIM steps to timesteps beside its own list; Euler, which the method's page names as well, does not.
@pytest.mark.parametrize("steps", [2, 4, 8])
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_pcm_is_ddim_on_the_trailing_grid_whatever_eta_is(monkeypatch, steps, eta):
    scheduler = diffusers.DDIMScheduler(
        clip_sample=False, set_alpha_to_one=False, timestep_spacing="trailing", beta_schedule="scaled_linear"
    )
    scheduler.final_alpha_cumprod = ALPHA_BARS[0]
    sample, timesteps = theirs(scheduler, monkeypatch, steps=steps)
    assert timesteps == hyper_sd_timesteps(steps, steps)
    found = ours(timesteps, DIFFUSION.sigma(0), eta=eta, num_segments=steps, noise_sampler=no_noise)
    torch.testing.assert_close(found, sample, rtol=0, atol=1e-8)


@pytest.mark.parametrize("shift", [0.25, 0.5])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_nitrosd_asks_and_takes_x0_at_the_shifted_timestep(steps, shift):
    timesteps = TRAILING_GRIDS[steps]
    x, noises = START, iter(NOISES)
    for t, t_next in zip(timesteps, [*timesteps[1:], None], strict=True):
        asked = math.floor(t * shift)
        x0 = (x - (1 - ALPHA_BARS[asked]).sqrt() * network(x, asked)) / ALPHA_BARS[asked].sqrt()
        x = x0 if t_next is None else ALPHA_BARS[t_next].sqrt() * x0 + (1 - ALPHA_BARS[t_next]).sqrt() * next(noises)
    found = ours(timesteps, eta=1.0, to_clean=True, timestep_shift=shift)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-10)
    assert (ours(timesteps, eta=1.0, to_clean=True) - x).abs().max() > 1e-2


@pytest.mark.parametrize(("asked", "shift"), [(399, 0.4), (800, 0.801)])
def test_one_step_files_are_a_shift_as_well_as_a_start(asked, shift):
    assert shifted_timestep(999, shift) == asked
    by_shift = ours([999], eta=0.0, timestep_shift=shift)
    by_start = ours([asked], eta=0.0)
    torch.testing.assert_close(by_shift, by_start, rtol=0, atol=1e-10)


def test_shift_is_the_floor_of_the_product_and_not_of_its_rounding():
    assert [shifted_timestep(t, 0.25) for t in DMD2] == [249, 187, 124, 62]
    assert shifted_timestep(100, 0.29) == 29
    assert shifted_timestep(999, 1) == 999


@pytest.mark.parametrize("shift", [0, -0.5, 1.5, float("nan"), "0.5", True, None])
def test_shift_that_is_no_share_is_refused(shift):
    with pytest.raises(ScheduleError, match=r"timestep_shift must lie in \(0, 1\]"):
        ours([999], timestep_shift=shift)


@pytest.mark.parametrize("to_clean", ["no", 1, None])
def test_jump_that_is_no_yes_or_no_is_refused(to_clean):
    with pytest.raises(ScheduleError, match="to_clean must be True or False"):
        ours([999], to_clean=to_clean)


def test_shift_on_a_flow_model_is_refused():
    with pytest.raises(UnsupportedModelError, match="flow models"):
        sample_tcd(lambda x, s: x, START, torch.tensor([1.0, 0.0]), disable=True, schedule=flow(), timestep_shift=0.5)


def test_list_is_kept_at_denoise_1_and_cut_below_it():
    assert listed_timesteps(DMD2) == DMD2
    assert listed_timesteps(DMD2, 0.6) == [599, 499, 374, 249]
    assert listed_timesteps(TDD[5], 0.5) == [499, 375, 251, 167, 83]
    with pytest.raises(ScheduleError, match="too few for 4 steps"):
        listed_timesteps(DMD2, 0.002)


@pytest.mark.parametrize("denoise", [0.05, 0.3, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("steps", range(1, 9))
def test_list_of_a_method_serves_other_step_counts_by_its_own_members(steps, denoise):
    for listed in (DMD2, TDD[7]):
        found = listed_timesteps(listed, denoise, steps)
        start = min(round(1000 * denoise) - 1, 999)
        below = [t for t in listed if t < start]
        assert found[0] == start
        assert len(found) == steps
        assert found == sorted(set(found), reverse=True)
        assert set(found[1:]) <= set(below) if steps <= len(below) else set(below) <= set(found)
        if steps == 1 + len(below):
            assert found == [start, *below]


def test_fewer_steps_than_a_list_join_its_narrowest_gaps():
    assert listed_timesteps(DMD2, 1.0, 2) == [999, 499]
    assert listed_timesteps(DMD2, 0.9, 2) == [899, 499]
    assert listed_timesteps(DMD2, 0.6, 2) == [599, 249]
    with pytest.raises(ScheduleError, match="steps must be"):
        listed_timesteps(DMD2, 1.0, 0)


@pytest.mark.parametrize("listed", [[], [1000, 5], [999, 999], [249, 499], [999, -1], [999, 2.5], None, 5, 4.5])
def test_list_that_does_not_fall_is_refused(listed):
    with pytest.raises(ScheduleError):
        listed_timesteps(listed)
