"""Whole trajectories against diffusers and against the rule written out literally."""

import math
from itertools import pairwise

import pytest
import torch
from hyper_sd.samplers.schedule import NoiseSchedule, alpha_bar_of
from hyper_sd.samplers.tcd import plan_steps, sample_tcd
from hyper_sd.samplers.timesteps import hyper_sd_timesteps
from hyper_sd.tests.samplers.fakes import (
    DIFFUSION,
    FOUR_SEGMENT_GRIDS,
    TRAILING_GRIDS,
    ZERO_SNR,
    draws,
    flow,
    host_model,
    network,
    no_noise,
    normal,
    sigmas_of,
)

diffusers = pytest.importorskip("diffusers")

SHAPE = (2, 4, 8, 8)
START = normal(*SHAPE)
NOISES = [normal(*SHAPE, seed=seed) for seed in range(1, 9)]


def alpha_bars(schedule: NoiseSchedule) -> torch.Tensor:
    return alpha_bar_of(torch.tensor(schedule.table, dtype=torch.float64))


def run(schedule, sigmas, noise_sampler, prediction_type="epsilon", **options):
    """Our sampler, its start and result in diffusers' scaling."""
    start = START * (1 + sigmas[0] ** 2).sqrt()
    model = host_model(schedule, prediction_type)
    result = sample_tcd(model, start, sigmas, noise_sampler=noise_sampler, schedule=schedule, disable=True, **options)
    return result / (1 + sigmas[-1] ** 2).sqrt()


def run_diffusers_tcd(monkeypatch, schedule, steps, eta, **config):
    """diffusers' last sample, and the x0 its last step predicted."""
    scheduler = diffusers.TCDScheduler(clip_sample=False, **config)
    scheduler.alphas_cumprod = alpha_bars(schedule)
    scheduler.set_timesteps(steps)
    noises = iter(NOISES)
    monkeypatch.setattr("diffusers.schedulers.scheduling_tcd.randn_tensor", lambda *args, **kwargs: next(noises))
    x = START
    for t in scheduler.timesteps.tolist():
        before, output = x, network(x, t)
        x = scheduler.step(output, t, x, eta=eta).prev_sample
    root, rest = scheduler.alphas_cumprod[t].sqrt(), (1 - scheduler.alphas_cumprod[t]).sqrt()
    epsilon = config["prediction_type"] == "epsilon"
    return x, (before - rest * output) / root if epsilon else root * before - rest * output


@pytest.mark.parametrize("eta", [0, 0.3, 0.7, 1])
@pytest.mark.parametrize(
    ("schedule", "config"),
    [
        (DIFFUSION, {"prediction_type": "epsilon"}),
        (DIFFUSION, {"prediction_type": "v_prediction"}),
        (ZERO_SNR, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
    ],
    ids=["epsilon", "v_prediction", "v_prediction_zero_snr"],
)
@pytest.mark.parametrize("steps", range(1, 9))
def test_trajectory_equals_diffusers_tcd_on_both_ends(monkeypatch, schedule, config, eta, steps):
    sample, pred_x0 = run_diffusers_tcd(monkeypatch, schedule, steps, eta, **config)
    timesteps = hyper_sd_timesteps(steps)
    above = sigmas_of(schedule, timesteps, end=schedule.sigma(0))
    ours = run(schedule, above, draws(NOISES), config["prediction_type"], eta=eta)
    torch.testing.assert_close(ours, sample, rtol=0, atol=1e-8)
    on_zero = run(schedule, sigmas_of(schedule, timesteps), draws(NOISES), config["prediction_type"], eta=eta)
    torch.testing.assert_close(on_zero, pred_x0, rtol=0, atol=1e-8)
    assert (sample - pred_x0).abs().max() > 1e-3  # the two ends are told apart


@pytest.mark.parametrize("eta", [0, 0.25, 0.3, 0.5, 0.99, 1])
@pytest.mark.parametrize("steps", [1, 2, 4, 5, 8])
def test_trajectory_equals_diffusers_trailing_ddim_when_segments_equal_steps(steps, eta):
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False)
    scheduler.alphas_cumprod = alpha_bars(DIFFUSION)
    scheduler.set_timesteps(steps)
    x = START
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(network(x, t), t, x, eta=0.0).prev_sample
    ours = run(DIFFUSION, sigmas_of(DIFFUSION, TRAILING_GRIDS[steps]), no_noise, eta=eta, num_segments=steps)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-8)


@pytest.mark.parametrize("eta", [0, 0.3, 1])
@pytest.mark.parametrize("steps", [3, 6, 7])
def test_trajectory_equals_literal_ddim_when_segments_equal_uneven_steps(steps, eta):
    # diffusers takes t - 1000 // steps for the next timestep here, one off from its own list.
    alpha_bar = alpha_bars(DIFFUSION)
    x = START
    for t, t_next in pairwise([*TRAILING_GRIDS[steps], None]):
        eps = network(x, t)
        x0 = (x - (1 - alpha_bar[t]).sqrt() * eps) / alpha_bar[t].sqrt()
        x = x0 if t_next is None else alpha_bar[t_next].sqrt() * x0 + (1 - alpha_bar[t_next]).sqrt() * eps
    ours = run(DIFFUSION, sigmas_of(DIFFUSION, TRAILING_GRIDS[steps]), no_noise, eta=eta, num_segments=steps)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-8)


# Four segments: every timestep of their grids of 6 and 8 steps with the lower edge of its segment.
EDGES = {999: 749, 874: 749, 749: 499, 624: 499, 499: 249, 374: 249, 249: 0, 124: 0}


def jump_target(t, t_next, eta):
    return min(max(math.floor((1 - eta) * t_next), EDGES[t]), t_next)


@pytest.mark.parametrize("eta", [0, 0.1, 0.3, 1])
@pytest.mark.parametrize("steps", [6, 8])
def test_trajectory_equals_the_literal_rule_for_segments_in_between(steps, eta):
    alpha_bar, noises = alpha_bars(DIFFUSION), iter(NOISES)
    x = START
    for t, t_next in pairwise([*FOUR_SEGMENT_GRIDS[steps], 0]):
        s = jump_target(t, t_next, eta)
        eps = network(x, t)
        x0 = (x - (1 - alpha_bar[t]).sqrt() * eps) / alpha_bar[t].sqrt()
        x = alpha_bar[s].sqrt() * x0 + (1 - alpha_bar[s]).sqrt() * eps
        if s < t_next:
            kept = alpha_bar[t_next] / alpha_bar[s]
            x = kept.sqrt() * x + (1 - kept).sqrt() * next(noises)
    sigmas = sigmas_of(DIFFUSION, FOUR_SEGMENT_GRIDS[steps], end=DIFFUSION.sigma(0))
    ours = run(DIFFUSION, sigmas, draws(NOISES), eta=eta, num_segments=4)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-8)
    if eta > 0:
        plain = run(DIFFUSION, sigmas, draws(NOISES), eta=eta)
        assert (plain - x).abs().max() > 1e-2  # the segment rule decides the result


@pytest.mark.parametrize(("num_segments", "steps", "count"), [(1, 8, 7), (4, 6, 2), (4, 8, 4), (8, 8, 0)])
def test_noise_is_added_only_inside_segments(num_segments, steps, count):
    sigmas = sigmas_of(DIFFUSION, hyper_sd_timesteps(steps, num_segments))
    assert sum(step.noise > 0 for step in plan_steps(DIFFUSION, sigmas, 1.0, num_segments)) == count


@pytest.mark.parametrize("num_segments", [1, 4])
@pytest.mark.parametrize("eta", [0, 0.3, 1])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_trajectory_equals_the_literal_rule_for_flow_models(shift, eta, num_segments):
    schedule, noises = flow(shift), iter(NOISES)
    grid = FOUR_SEGMENT_GRIDS[6]
    sigma_at = {t: shift * (t + 1) / (1000 + (shift - 1) * (t + 1)) for t in range(1000)}

    def denoise(x, sigma):
        return torch.tanh(network(x, 1000 * sigma))

    x = START
    assert sigma_at[grid[0]] == 1
    for t, t_next in pairwise(grid):
        sigma, sigma_next = sigma_at[t], sigma_at[t_next]
        s = jump_target(t, t_next, eta) if num_segments == 4 else math.floor((1 - eta) * t_next)
        x0 = denoise(x, sigma)
        eps = (x - (1 - sigma) * x0) / sigma
        x = (1 - sigma_at[s]) * x0 + sigma_at[s] * eps
        if s < t_next:
            rho_s, rho_next = sigma_at[s] / (1 - sigma_at[s]), sigma_next / (1 - sigma_next)
            x = (1 - sigma_next) * (x / (1 - sigma_at[s]) + (rho_next**2 - rho_s**2) ** 0.5 * next(noises))
    expected = denoise(x, sigma_at[grid[-1]])
    ours = sample_tcd(
        lambda x, sigma: denoise(x, float(sigma[0])), START, sigmas_of(schedule, grid), noise_sampler=draws(NOISES),
        disable=True, eta=eta, num_segments=num_segments, schedule=schedule,
    )  # fmt: skip
    assert ours.isfinite().all()
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("eta", [0, 0.3, 1])
@pytest.mark.parametrize("schedule", [DIFFUSION, flow(1.0), flow(3.0)], ids=["diffusion", "flow", "flow_shift_3"])
def test_noise_level_is_that_of_sigma_at_every_step_for_a_perfect_denoiser(schedule, eta):
    size, x0 = 2**18, 0.7
    seen = []
    sigmas = sigmas_of(schedule, hyper_sd_timesteps(6, 4))
    clean = torch.full((1, size), x0, dtype=torch.float64)
    scale = 1 - sigmas[0] if schedule.is_flow else 1.0
    sample_tcd(
        lambda x, sigma, **extra_args: clean, scale * clean + sigmas[0] * normal(1, size), sigmas,
        extra_args={"seed": 7}, callback=seen.append, disable=True, eta=eta, num_segments=4, schedule=schedule,
    )  # fmt: skip
    for state in seen:
        sigma = float(state["sigma"])
        mean = ((1 - sigma) if schedule.is_flow else 1.0) * x0
        assert state["x"].std().item() == pytest.approx(sigma, rel=0.01)  # seven standard errors
        assert state["x"].mean().item() == pytest.approx(mean, abs=5 * sigma / size**0.5)


@pytest.mark.parametrize("schedule", [DIFFUSION, flow(3.0)], ids=["diffusion", "flow"])
def test_run_is_deterministic_at_eta_zero_when_sigmas_lie_between_timesteps(schedule):
    sigmas = sigmas_of(schedule, [999, 749.25, 499.5, 249.75])
    assert [step.noise for step in plan_steps(schedule, sigmas, 0.0, 1)] == [0.0] * 4
    assert [step.ratio for step in plan_steps(schedule, sigmas, 0.0, 1)] == pytest.approx((sigmas[1:] / sigmas[:-1]).tolist())


def test_step_stays_deterministic_and_warns_when_it_leaves_its_segment(caplog):
    sigmas = sigmas_of(DIFFUSION, [999, 499])
    first, last = plan_steps(DIFFUSION, sigmas, 1.0, 4)
    assert (first.noise, first.ratio) == (0.0, pytest.approx((sigmas[1] / sigmas[0]).item()))
    assert (last.noise, last.ratio) == (0.0, 0.0)
    assert not caplog.records  # a host that plans ahead of a run says it once, too
    sample_tcd(host_model(DIFFUSION), normal(1, 4), sigmas, disable=True, eta=1.0, num_segments=4, schedule=DIFFUSION)
    assert "the first from timestep 999 to 499 (lower edge 749 of 4 segments)" in caplog.text
