import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from hyper_sd.errors import TrainingError
from hyper_sd.tests.training.fakes import TOKENS, WIDTH, PointMass, call, make_denoiser, make_examples, schedule
from hyper_sd.training.data.teacher_latents import draw_latents, prompt_noise
from hyper_sd.training.denoiser import Denoiser
from hyper_sd.training.diffusion import Diffusion


def last(drawing):
    return list(drawing)[-1][1]


def conditions(count=3):
    batch = make_examples(count).batch(range(count), 0)
    return batch.conditioning, batch.unconditional


def reference(denoiser, noise, steps, guidance_scale):
    """The same trajectory by diffusers' own scheduler."""
    conditioning, unconditional = conditions(len(noise))
    if denoiser.diffusion.prediction_type == "flow":
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=[(steps - i) / steps for i in range(steps)])
    else:
        scheduler = DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, timestep_spacing="trailing",
            prediction_type=denoiser.diffusion.prediction_type,
        )  # fmt: skip
        scheduler.set_timesteps(steps)
    x = noise
    for t in scheduler.timesteps:
        time = t.expand(len(x)).to(x.dtype)
        plain = denoiser.call(denoiser.network, x, time, unconditional)
        guided = plain + guidance_scale * (denoiser.call(denoiser.network, x, time, conditioning) - plain)
        x = scheduler.step(guided, t, x).prev_sample
    return x


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
def test_drawing_is_the_trajectory_of_diffusers(prediction):
    denoiser = make_denoiser(prediction)
    noise = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    drawn = last(draw_latents(denoiser, noise, *conditions(), steps=10, guidance_scale=3.0))
    with torch.no_grad():
        expected = reference(denoiser, noise, 10, 3.0)
    assert torch.allclose(drawn, expected, atol=1e-4)


def test_drawing_of_a_known_distribution_is_its_point():
    diffusion = Diffusion.from_schedule(schedule("epsilon"), "epsilon")
    point = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
    denoiser = Denoiser(PointMass(diffusion, point).double(), diffusion, lambda net, x, t, c: net(x, t, c["context"]))
    noise = torch.randn(4, 1, 3, dtype=torch.float64)
    context = {"context": torch.zeros(4, 1)}
    drawn = last(draw_latents(denoiser, noise, context, context, steps=5))
    assert torch.allclose(drawn, point.expand(4, 1, 3), atol=1e-9)


def test_every_solver_step_is_reported_and_nothing_is_recorded_for_gradients():
    drawing = list(draw_latents(make_denoiser(), torch.randn(1, 2, 4, 4, dtype=torch.float64), *conditions(1), steps=4))
    assert [done for done, _ in drawing] == [1, 2, 3, 4]
    assert not drawing[-1][1].requires_grad


def test_guidance_scale_of_1_asks_the_network_once_a_step():
    sizes = []

    def counting(network, x, time, conditioning):
        sizes.append(len(x))
        return call(network, x, time, conditioning)

    denoiser = make_denoiser()
    denoiser = Denoiser(denoiser.network, denoiser.diffusion, counting)
    for scale, expected in ((1.0, 3), (2.0, 6)):
        sizes.clear()
        last(draw_latents(denoiser, torch.zeros(3, 2, 4, 4, dtype=torch.float64), *conditions(), steps=2, guidance_scale=scale))
        assert sizes == [expected] * 2


def test_solver_steps_that_do_not_divide_1000_are_refused():
    with pytest.raises(TrainingError, match="solver_steps must divide 1000"):
        next(draw_latents(make_denoiser(), torch.zeros(1, 2, 4, 4), {"context": torch.zeros(1, TOKENS, WIDTH)}, {}, steps=7))


def test_noise_depends_on_seed_prompt_and_repeat_only():
    shape = (4, 3, 3)
    first = prompt_noise(1, "a fox", 0, shape)
    assert first.shape == (1, 4, 3, 3)
    assert torch.equal(first, prompt_noise(1, "a fox", 0, shape))
    others = [prompt_noise(2, "a fox", 0, shape), prompt_noise(1, "a foX", 0, shape), prompt_noise(1, "a fox", 1, shape)]
    assert not any(torch.equal(first, other) for other in others)
    assert 0.5 < float(prompt_noise(1, "a fox", 0, (4, 64, 64)).std()) < 1.5
