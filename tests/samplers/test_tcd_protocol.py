"""The k-diffusion protocol: noise, callback, dtypes, errors, and a loop that never waits for the device."""

import math
from types import SimpleNamespace

import pytest
import torch
from hyper_sd.benchmarks.op_recorder import SYNCHRONISING, OpRecorder
from hyper_sd.errors import ScheduleError, UnsupportedModelError
from hyper_sd.samplers.noise import seeded_noise
from hyper_sd.samplers.schedule import NoiseSchedule
from hyper_sd.samplers.tcd import plan_steps, sample_tcd
from hyper_sd.samplers.timesteps import hyper_sd_sigmas
from hyper_sd.tests.samplers.fakes import DIFFUSION, flow, host_model, normal, sigmas_of

SIGMAS = sigmas_of(DIFFUSION, [999, 759, 499, 259])
MODEL = host_model(DIFFUSION)


def run(x, sigmas=SIGMAS, seed=3, model=MODEL, **options):
    return sample_tcd(model, x, sigmas, extra_args={"seed": seed}, disable=True, schedule=DIFFUSION, **options)


def start(*shape):
    return normal(*(shape or (2, 4, 8, 8))) * SIGMAS[0]


def test_result_repeats_for_the_same_seed_and_changes_with_it():
    assert torch.equal(run(start()), run(start()))
    assert (run(start()) - run(start(), seed=4)).abs().max() > 1e-2


@pytest.mark.parametrize("seeds", [(0, 1), (2**64 - 1, 0), (2**63, 2**63 - 1), (5, 5 + 2**32), (None, 5)])
def test_noise_differs_per_step_per_seed_and_from_the_initial_noise(seeds):
    x = torch.zeros(1, 4, 64, 64)
    samplers = [seeded_noise(x, seed, iter([759.0, 499.0, 259.0])) for seed in seeds]
    drawn = [noise_sampler(None, None) for noise_sampler in samplers for _ in range(3)]
    generator = torch.Generator().manual_seed(seeds[-1])
    drawn += [torch.randn(x.shape, generator=generator) for _ in range(3)]  # what the host made its latents of
    correlation = torch.corrcoef(torch.stack([noise.flatten() for noise in drawn]))
    assert (correlation - torch.eye(len(drawn))).abs().max() < 0.05  # six standard errors
    assert all(abs(noise.std().item() - 1) < 0.04 for noise in drawn)


def test_noise_differs_within_a_batch():
    noise = seeded_noise(torch.zeros(2, 4, 8, 8), 3, iter([759.0]))()
    assert not torch.equal(noise[0], noise[1])


def test_global_generator_is_untouched_when_a_seed_is_given():
    before = torch.random.get_rng_state()
    run(start(), eta=1.0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_noise_comes_from_the_global_generator_without_a_seed():
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(run(start(), seed=None))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("split", [1, 2, 3])
def test_split_run_equals_the_whole_bit_for_bit(split, eta):
    whole = run(start(), eta=eta)
    half = run(start(), SIGMAS[: split + 1], eta=eta)
    assert torch.equal(run(half, SIGMAS[split:], eta=eta), whole)


def test_split_run_equals_the_whole_in_the_hosts_float32():
    sigmas, x = SIGMAS.float(), start().float()
    assert torch.equal(run(run(x, sigmas[:3]), sigmas[2:]), run(x, sigmas))


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (3, 4, 8, 6), (1, 16, 5, 8, 8), (2, 64, 1024)])
def test_latents_keep_their_shape_and_input_for_any_layout(shape):
    x = start(*shape)
    before = x.clone()
    result = run(x, eta=1.0)
    assert result.shape == x.shape
    assert result.isfinite().all()
    assert torch.equal(x, before)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.1), (torch.float32, 1e-5)])
@pytest.mark.parametrize("answer", [None, torch.float32])
def test_result_keeps_the_latents_dtype_whatever_the_model_answers_in(dtype, tolerance, answer):
    def model(x, sigma, **extra_args):
        return (x.double() / (1 + sigma.double()[0] ** 2)).to(answer or x.dtype)

    result = run(start().to(dtype), SIGMAS.float(), model=model, eta=0.0)
    assert result.dtype == dtype
    expected = run(start(), model=lambda x, sigma, **extra_args: x / (1 + sigma[0] ** 2), eta=0.0)
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)


def test_noise_is_the_same_in_every_dtype():
    fields = [seeded_noise(torch.zeros(1, 4, 8, 8, dtype=d), 3, iter([499.0]))() for d in (torch.float32, torch.float16)]
    assert [field.dtype for field in fields] == [torch.float32, torch.float16]
    assert torch.equal(fields[0].half(), fields[1])


def test_callback_gets_every_step_in_the_protocols_words():
    states, x = [], start()
    result = run(x, callback=lambda state: states.append({**state, "copy": state["x"].clone()}))
    assert [set(state) for state in states] == [{"x", "i", "sigma", "sigma_hat", "denoised", "copy"}] * 4
    assert [state["i"] for state in states] == [0, 1, 2, 3]
    assert [float(state["sigma"]) for state in states] == SIGMAS[:-1].tolist()
    assert [float(state["sigma_hat"]) for state in states] == SIGMAS[:-1].tolist()
    assert torch.equal(states[0]["x"], x)
    assert all(torch.equal(s["denoised"], MODEL(s["x"], s["sigma"] * x.new_ones(2))) for s in states)
    assert all(torch.equal(s["x"], s["copy"]) for s in states)  # previews kept by a host do not change under it
    assert torch.equal(states[-1]["denoised"], result)


def test_run_stops_at_the_step_where_the_callback_raises():
    calls = []

    def model(x, sigma, **extra_args):
        calls.append(float(sigma[0]))
        return x * 0.5

    def interrupt(state):
        if state["i"] == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(start(), model=model, callback=interrupt)
    assert calls == SIGMAS[:2].tolist()


def test_model_gets_one_sigma_per_latent_and_the_extra_arguments():
    seen = []

    def model(x, sigma, **extra_args):
        seen.append((tuple(sigma.shape), sigma.tolist(), extra_args))
        return x * 0.5

    run(start(3, 4, 8, 8), model=model, seed=11)
    assert seen == [((3,), [float(sigma)] * 3, {"seed": 11}) for sigma in SIGMAS[:-1]]


def test_noise_sampler_gets_the_two_sigmas_of_each_noisy_step():
    seen = []

    def noise_sampler(sigma, sigma_next):
        seen.append((float(sigma), float(sigma_next)))
        return torch.zeros(2, 4, 8, 8, dtype=torch.float64)

    run(start(), noise_sampler=noise_sampler)
    assert seen == list(zip(SIGMAS[:3].tolist(), SIGMAS[1:4].tolist(), strict=True))


def test_schedule_is_read_from_the_model_when_none_is_given():
    class Wrapped:
        sigmas = SIGMAS  # the run's own sigmas, as ComfyUI's outermost layer has
        inner_model = SimpleNamespace(
            inner_model=SimpleNamespace(model_sampling=SimpleNamespace(sigmas=torch.tensor(DIFFUSION.table)))
        )

        def __call__(self, x, sigma, **extra_args):
            return MODEL(x, sigma)

    found = sample_tcd(Wrapped(), start(), SIGMAS, extra_args={"seed": 3}, disable=True)
    torch.testing.assert_close(found, run(start()), rtol=0, atol=1e-5)  # the host's table is float32


def refuse(x, sigma, **extra_args):
    raise AssertionError("the model was evaluated before the error")


@pytest.mark.parametrize("eta", [1.3, -0.1, math.nan, math.inf])
def test_error_names_eta_when_it_lies_outside_its_range(eta):
    with pytest.raises(ScheduleError, match=rf"eta must lie in \[0, 1\], got {eta}; use 0"):
        run(start(), model=refuse, eta=eta)


@pytest.mark.parametrize("sigmas", [[1.0, 2.0, 0.0], [5.0, math.nan, 0.0], [5.0, -1.0]])
def test_error_names_the_sigmas_when_they_do_not_decrease(sigmas):
    with pytest.raises(
        ScheduleError, match=rf"sigmas must be finite and decrease from step to step, got \[{sigmas[0]}, {sigmas[1]}"
    ):
        run(start(), torch.tensor(sigmas), model=refuse)


def test_error_names_the_segments_when_they_cannot_exist():
    with pytest.raises(ScheduleError, match="num_segments must be a whole number of at least 1, got 0"):
        run(start(), model=refuse, num_segments=0)


def test_error_is_raised_before_sampling_when_the_model_has_no_table():
    with pytest.raises(UnsupportedModelError, match="function has no sigma table"):
        sample_tcd(refuse, start(), SIGMAS, disable=True)


@pytest.mark.parametrize(("eta", "most"), [(0.0, 1), (0.3, 2), (1.0, 2)])
@pytest.mark.parametrize("schedule", [DIFFUSION, flow(3.0)], ids=["diffusion", "flow"])
def test_loop_never_waits_for_the_device_and_allocates_little(schedule, eta, most):
    x = normal(1, 4, 16, 16).float()
    answer = x * 0.5
    sigmas = hyper_sd_sigmas(schedule, 8)
    with OpRecorder(x.numel()) as recorder:
        model = recorder.starting_at_first_call(lambda x, sigma, **extra_args: answer)
        sample_tcd(model, x, sigmas, {"seed": 3}, disable=True, eta=eta, schedule=schedule)
    assert "aten::lerp" in recorder.ops  # something was recorded
    assert not SYNCHRONISING & set(recorder.ops)
    assert recorder.allocations == most * 7  # noise and result; ComfyUI's lcm: noise and its product; neither any at the end


@pytest.mark.parametrize(
    "synchronise",
    [
        lambda x: x.sum().item(),
        lambda x: float(x.sum()),
        lambda x: bool(x.sum() > 0),
        torch.nonzero,
        lambda x: torch.equal(x, x),
    ],
    ids=["item", "float", "bool", "nonzero", "equal"],
)
def test_recorder_notices_what_waits_for_the_device(synchronise):
    with OpRecorder(1) as recorder:
        synchronise(torch.ones(3))
    assert SYNCHRONISING & set(recorder.ops)


def test_recorder_counts_new_storages_only():
    x = torch.ones(16)
    with OpRecorder(16) as recorder:
        y = x + 1
        y.mul_(2).view(4, 4)
        x[:8] * 2
    assert recorder.allocations == 1


def test_warning_names_the_segment_when_the_last_step_crosses_it(caplog):
    schedule = NoiseSchedule.from_betas()
    sigmas = torch.tensor([schedule.sigma(999), 0.0])

    def sample(sigmas: torch.Tensor, num_segments: int) -> None:
        sample_tcd(lambda x, sigma: x, torch.zeros(1, 2), sigmas, disable=True, num_segments=num_segments, schedule=schedule)

    sample(sigmas, 4)
    assert "lower edge 749 of 4 segments" in caplog.text
    caplog.clear()
    sample(sigmas, 1)
    sample(torch.tensor([schedule.sigma(249), 0.0]), 4)
    assert not caplog.records


def test_wrong_segments_are_refused_even_in_a_run_of_one_step():
    schedule = NoiseSchedule.from_betas()
    with pytest.raises(ScheduleError, match=r"num_segments .* got 0"):
        plan_steps(schedule, torch.tensor([schedule.sigma(999), 0.0]), 0.3, 0)
