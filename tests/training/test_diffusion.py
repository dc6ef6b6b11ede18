import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from hyper_sd.errors import TrainingError, UnsupportedModelError
from hyper_sd.samplers.schedule import NoiseSchedule
from hyper_sd.tests.training.fakes import schedule
from hyper_sd.training.diffusion import PREDICTION_TYPES, Diffusion, offset_noise

ALL = pytest.mark.parametrize("prediction", PREDICTION_TYPES)


def make(prediction):
    return Diffusion.from_schedule(schedule(prediction), prediction)


def points(batch=6):
    g = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(batch, 3, 4, generator=g, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([999, 799, 500, 259, 40, 1])
    return x0, noise, t, t // 3


@ALL
def test_perfect_prediction_jumps_along_the_line_to_any_timestep(prediction):
    diffusion, (x0, noise, t, s) = make(prediction), points()
    x = diffusion.add_noise(x0, noise, t)
    perfect = diffusion.training_target(x0, noise, t)
    assert torch.allclose(diffusion.jump(x, perfect, t, s), diffusion.add_noise(x0, noise, s), atol=1e-12)
    assert torch.allclose(diffusion.pred_x0(x, perfect, t), x0, atol=1e-11)


@ALL
def test_jump_to_the_same_timestep_returns_x_whatever_is_predicted(prediction):
    diffusion, (x, wrong, t, _) = make(prediction), points()
    assert torch.allclose(diffusion.jump(x, 5 * wrong, t, t), x, atol=1e-13)


@ALL
def test_levels_keep_their_identity(prediction):
    diffusion = make(prediction)
    total = diffusion.alpha + diffusion.sigma if prediction == "flow" else diffusion.alpha**2 + diffusion.sigma**2
    assert torch.allclose(total, torch.ones(1000, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_jump_equals_diffusers_ddim_step(prediction):
    ddim = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, prediction_type=prediction,
        timestep_spacing="trailing", set_alpha_to_one=False,
    )  # fmt: skip
    ddim.set_timesteps(50)
    diffusion, (x, output, _, _) = make(prediction), points()
    for high, low in ((999, 979), (519, 499), (39, 19)):
        wanted = ddim.step(output, high, x).prev_sample
        found = diffusion.jump(x, output, torch.full((6,), high), torch.full((6,), low))
        assert torch.allclose(found, wanted, atol=1e-5), (high, low)


def test_jump_equals_diffusers_flow_euler_step():
    euler = FlowMatchEulerDiscreteScheduler()
    euler.set_timesteps(sigmas=[0.6, 0.25])
    diffusion, (x, velocity, _, _) = make("flow"), points()
    wanted = euler.step(velocity.float(), euler.timesteps[0], x.float()).prev_sample
    found = diffusion.jump(x, velocity, torch.full((6,), 599), torch.full((6,), 249))
    assert torch.allclose(found.float(), wanted, atol=1e-5)


def test_model_time_is_the_timestep_or_a_thousand_sigma():
    t = torch.tensor([0, 499, 999])
    assert torch.equal(make("epsilon").model_time(t), t)
    assert torch.allclose(make("flow").model_time(t), torch.tensor([1.0, 500.0, 1000.0]))


def test_float32_levels_are_the_float64_table():
    diffusion = make("epsilon")
    alpha, sigma = diffusion.levels(torch.tensor([999]), torch.zeros(1, 2, 2))
    assert alpha.dtype == torch.float32
    assert alpha.shape == sigma.shape == (1, 1, 1)
    assert float(sigma / alpha) == pytest.approx(14.6146, abs=1e-3)


def test_prediction_and_schedule_must_belong_together():
    with pytest.raises(UnsupportedModelError, match="does not fit"):
        Diffusion.from_schedule(NoiseSchedule.from_betas(), "flow")
    with pytest.raises(UnsupportedModelError, match="must be one of"):
        Diffusion(torch.ones(1000), torch.ones(1000), "score")


def test_offset_noise_shifts_each_channel_as_a_whole():
    noise, shift = torch.randn(2, 3, 4, 5), torch.randn(2, 3)
    moved = offset_noise(noise, shift, 0.1) - noise
    assert torch.allclose(moved, (0.1 * shift)[:, :, None, None].expand_as(noise), atol=1e-6)
    assert offset_noise(noise, shift, 0.0) is noise
    with pytest.raises(TrainingError, match="0 or more"):
        offset_noise(noise, shift, -1)
