"""Sigma as a function of the timestep and back, and finding it in a host's model."""

import math
from types import SimpleNamespace

import pytest
import torch
from hyper_sd.errors import UnsupportedModelError
from hyper_sd.samplers.schedule import NoiseSchedule, alpha_bar_of, schedule_of, sigma_of
from hyper_sd.tests.samplers.fakes import DIFFUSION, ZERO_SNR, flow


@pytest.mark.parametrize(("timestep", "sigma"), [(999, 14.6146), (800, 5.1110), (0, 0.0292)])
def test_sigma_is_the_published_value_for_stable_diffusion(timestep, sigma):
    assert DIFFUSION.sigma(timestep) == pytest.approx(sigma, abs=5e-5)


def test_alpha_bar_is_the_published_value_for_stable_diffusion():
    assert alpha_bar_of(DIFFUSION.sigma(800)) == pytest.approx(0.0368696, abs=5e-8)
    assert alpha_bar_of(DIFFUSION.sigma(0)) == pytest.approx(0.99915, abs=5e-7)


@pytest.mark.parametrize("zero_snr", [False, True])
def test_table_equals_diffusers_for_scaled_linear_betas(zero_snr):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.TCDScheduler(rescale_betas_zero_snr=zero_snr).alphas_cumprod.double()
    table = torch.tensor((ZERO_SNR if zero_snr else DIFFUSION).table, dtype=torch.float64)
    torch.testing.assert_close(alpha_bar_of(table), theirs, rtol=1e-4, atol=1e-7)


def test_last_sigma_is_large_and_finite_for_zero_terminal_snr():
    assert ZERO_SNR.sigma(999) == pytest.approx(4096, rel=1e-6)
    assert ZERO_SNR.sigma(0) == pytest.approx(DIFFUSION.sigma(0), rel=1e-9)


@pytest.mark.parametrize("schedule", [DIFFUSION, ZERO_SNR, flow(), flow(3.0), flow(3.0, 10000)])
def test_timestep_inverts_sigma_at_every_float32_table_entry(schedule):
    rounded = torch.tensor([schedule.sigma(t) for t in range(1000)]).tolist()
    assert [schedule.timestep(sigma) for sigma in rounded] == list(range(1000))


@pytest.mark.parametrize("schedule", [DIFFUSION, flow(3.0), flow(1.0, 10000)])
@pytest.mark.parametrize("timestep", [0.25, 499.5, 749.25, 998.75])
def test_timestep_inverts_sigma_between_table_entries(schedule, timestep):
    assert schedule.timestep(schedule.sigma(timestep)) == pytest.approx(timestep, abs=1e-6)


def test_sigma_is_interpolated_in_the_logarithm_for_diffusion():
    expected = math.sqrt(DIFFUSION.table[499] * DIFFUSION.table[500])
    assert DIFFUSION.sigma(499.5) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("length", [1000, 10000])
def test_sigma_is_time_for_an_unshifted_flow_table_of_any_length(length):
    schedule = flow(1.0, length)
    assert [schedule.sigma(t) for t in (0, 249, 499.5, 999)] == pytest.approx([0.001, 0.25, 0.5005, 1.0], abs=1e-12)


def test_sigma_follows_the_shift_for_a_shifted_flow_table():
    assert flow(3.0).sigma(499) == pytest.approx(0.75)


def test_coarse_table_stands_for_the_ends_of_its_intervals():
    coarse = flow(1.0, 50)
    assert [coarse.sigma(t) for t in (19, 39, 499, 999)] == pytest.approx([0.02, 0.04, 0.5, 1.0])
    assert [coarse.timestep(s) for s in (0.02, 0.04, 0.5, 1.0)] == [19, 39, 499, 999]


def test_values_outside_the_table_are_clamped():
    assert (DIFFUSION.sigma(-5), DIFFUSION.sigma(2000)) == (DIFFUSION.table[0], DIFFUSION.table[-1])
    assert (DIFFUSION.timestep(0.0), DIFFUSION.timestep(80.0)) == (0, 999)


def test_flow_is_told_from_diffusion_by_the_last_sigma():
    assert [s.is_flow for s in (DIFFUSION, ZERO_SNR, flow(), flow(3.0))] == [False, False, True, True]


def test_sigma_and_alpha_bar_are_inverse_for_numbers_and_tensors():
    assert sigma_of(alpha_bar_of(5.111)) == pytest.approx(5.111)
    sigmas = torch.tensor(DIFFUSION.table, dtype=torch.float64)
    torch.testing.assert_close(sigma_of(alpha_bar_of(sigmas)), sigmas)


@pytest.mark.parametrize("table", [[], [1.0], [2.0, 1.0], [1.0, 1.0], [-1.0, 1.0], [1.0, math.nan], [math.nan, 1.0]])
def test_error_is_raised_when_the_table_does_not_increase(table):
    with pytest.raises(UnsupportedModelError, match=f"got {len(table)} that"):
        NoiseSchedule.from_sigmas(table)


def test_schedule_is_found_below_a_decoy_for_comfyui():
    table = torch.tensor(DIFFUSION.table)
    base = SimpleNamespace(model_sampling=SimpleNamespace(sigmas=table))
    run = SimpleNamespace(inner_model=SimpleNamespace(inner_model=base), sigmas=torch.tensor([14.6, 5.0, 0.0]))
    assert schedule_of(run).table == tuple(table.double().tolist())


def test_schedule_is_found_in_the_denoiser_for_a1111():
    table = torch.tensor(ZERO_SNR.table)
    denoiser = SimpleNamespace(inner_model=SimpleNamespace(inner_model=object()), sigmas=table)
    assert schedule_of(SimpleNamespace(inner_model=denoiser)).table == tuple(table.double().tolist())


def test_schedule_is_read_anew_when_a_patch_changes_the_model():
    base = SimpleNamespace(model_sampling=SimpleNamespace(sigmas=torch.tensor(DIFFUSION.table)))
    run = SimpleNamespace(inner_model=base)
    before = schedule_of(run)
    base.model_sampling.sigmas = torch.tensor(ZERO_SNR.table)
    assert schedule_of(run).sigma(999) > before.sigma(999)


@pytest.mark.parametrize(
    "model",
    [
        object(),
        SimpleNamespace(sigmas=torch.tensor(DIFFUSION.table)),
        SimpleNamespace(inner_model=SimpleNamespace(sigmas=torch.tensor(1.0))),
        SimpleNamespace(inner_model=SimpleNamespace(sigmas=[1.0, 2.0])),
    ],
    ids=["bare", "own_sigmas_only", "scalar", "list"],
)
def test_error_names_the_model_when_no_layer_has_a_table(model):
    with pytest.raises(UnsupportedModelError, match=rf"{type(model).__name__} has no sigma table.*pass schedule="):
        schedule_of(model)
