import copy

import pytest
import torch
from hyper_sd.samplers.timesteps import segment_boundary
from hyper_sd.tests.training.fakes import PointMass, call, make_denoiser, make_examples, schedule
from hyper_sd.tests.training.world import PLAIN, World, check_gradients, config, land, parts
from hyper_sd.training.config import Stage
from hyper_sd.training.denoiser import Denoiser
from hyper_sd.training.diffusion import PREDICTION_TYPES, Diffusion
from hyper_sd.training.lora_layers import TEACHER, LoraLayers
from hyper_sd.training.objectives.draws import distance, draw_step
from hyper_sd.training.objectives.finetune import Finetune
from hyper_sd.training.objectives.tscd import Tscd

ALL = pytest.mark.parametrize("prediction", PREDICTION_TYPES)


def add_teacher(w):
    for parameter in w.layers.add(TEACHER).parameters():
        torch.nn.init.normal_(parameter, std=0.3)


@ALL
@pytest.mark.parametrize("teacher", [None, "teacher"])
def test_loss_is_that_of_the_papers_algorithm_written_out(prediction, teacher):
    w = World(prediction)
    if teacher:
        add_teacher(w)
    d, diffusion = w.draws, w.denoiser.diffusion
    x_n = land(diffusion, w.batch.latents, d.noise, d.t_n)
    scale = d.guidance_scale[:, None, None, None]
    with_, without = (
        parts(diffusion, x_n, w.predict(teacher, x_n, d.t_n, c), d.t_n) for c in ("conditioning", "unconditional")
    )
    x0, noise = (u + scale * (c - u) for c, u in zip(with_, without, strict=True))
    x_prev = land(diffusion, x0, noise, d.t_prev)
    wanted = land(diffusion, *parts(diffusion, x_prev, w.predict("target", x_prev, d.t_prev), d.t_prev), d.t_end)
    found = land(diffusion, *parts(diffusion, x_n, w.predict("student", x_n, d.t_n), d.t_n), d.t_end)
    expected = (found - wanted).square().mean()
    assert expected > 0
    assert torch.allclose(w.losses()["loss"], expected, rtol=1e-9)


def test_one_segment_is_the_soft_consistency_loss_of_ctm():
    # CTM, arXiv 2310.02279, Eq. 4 and 8, in its variance-exploding coordinates: G(x, t, s) = s/t x + (1 - s/t) g(x, t, s).
    w = World(stage=Stage(1, 1), guidance_scale=(1.0, 1.0))
    d, diffusion = w.draws, w.denoiser.diffusion
    assert (d.t_end < d.t_prev).any()

    def level(t):
        a, s = diffusion.levels(t, w.batch.latents)
        return a, s / a

    def g(name, x_ve, t):  # the network's denoised image
        a, sigma = level(t)
        return x_ve - sigma * w.predict(name, a * x_ve, t)

    def transit(name, x_ve, t, s):
        ratio = level(s)[1] / level(t)[1]
        return ratio * x_ve + (1 - ratio) * g(name, x_ve, t)

    x_t = w.batch.latents + level(d.t_n)[1] * d.noise
    x_u = transit(None, x_t, d.t_n, d.t_prev)  # a DDIM step is the Euler step of the probability flow in these coordinates
    apart = transit("student", x_t, d.t_n, d.t_end) - transit("target", x_u, d.t_prev, d.t_end)
    expected = (level(d.t_end)[0] * apart).square().mean()
    assert torch.allclose(w.losses()["loss"], expected, rtol=1e-9)


@pytest.mark.parametrize("k", [2, 4, 8])
def test_boundary_endpoint_is_the_loss_of_pcm(k):
    # PCM, arXiv 2405.18407, Eq. 3-5: both points are mapped to the edge s_m of their sub-trajectory, with DDIM's own formula.
    w = World(stage=Stage(k, 1), endpoint="boundary")
    d, ab = w.draws, w.denoiser.diffusion.alpha.square()
    edge = torch.tensor([min(segment_boundary(n, k), p) for n, p in zip(d.t_n.tolist(), d.t_prev.tolist(), strict=True)])

    def ddim(x, noise, t, s):
        here, there = (ab[v][:, None, None, None] for v in (t, s))
        return there.sqrt() * (x - (1 - here).sqrt() * noise) / here.sqrt() + (1 - there).sqrt() * noise

    x_n = ab[d.t_n][:, None, None, None].sqrt() * w.batch.latents + (1 - ab[d.t_n])[:, None, None, None].sqrt() * d.noise
    positive, negative = (w.predict(None, x_n, d.t_n, c) for c in ("conditioning", "unconditional"))
    x_prev = ddim(x_n, negative + d.guidance_scale[:, None, None, None] * (positive - negative), d.t_n, d.t_prev)
    found = ddim(x_n, w.predict("student", x_n, d.t_n), d.t_n, edge)
    wanted = ddim(x_prev, w.predict("target", x_prev, d.t_prev), d.t_prev, edge)
    assert torch.allclose(w.losses()["loss"], (found - wanted).square().mean(), rtol=1e-9)


@ALL
@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_consistent_model_has_zero_loss(prediction, k):
    diffusion = Diffusion.from_schedule(schedule(prediction), prediction)
    network = PointMass(diffusion, torch.randn(2, 4, 4, dtype=torch.float64)).double().requires_grad_(False)
    exact = Denoiser(network, diffusion, call)
    cfg = config(stages=(Stage(k, 1),), batch_size=64, guidance_scale=(1.0, 1.0))
    layers = LoraLayers(network, 2, dtype=torch.float64)
    layers.add("student"), layers.add("target")
    batch = make_examples(64).batch(range(64), 0)
    draws = draw_step(cfg, cfg.stages[0], tuple(batch.latents.shape), 0).to(batch.latents)
    losses = Tscd(cfg, exact, layers)(batch, draws, cfg.stages[0])
    assert losses["loss"] < 1e-18


@ALL
@pytest.mark.parametrize("kind", ["mse", "huber"])
def test_student_gradient_equals_finite_differences(prediction, kind):
    w = World(prediction, distance=kind, huber_c=0.1)
    students = list(w.layers.sets["student"].parameters())
    assert check_gradients(w, students, lambda losses: losses["loss"]) == 4


def test_teacher_set_changes_the_goal_and_gets_no_gradient():
    w = World()
    bare = w.losses()["loss"]
    add_teacher(w)
    taught = w.losses()["loss"]
    assert abs(taught - bare) > 1e-3 * bare
    taught.backward()
    assert all(p.grad is not None for p in w.layers.sets["student"].parameters())
    assert all(p.grad is None for p in w.layers.sets[TEACHER].parameters())


def test_distances_by_hand():
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 0.0])
    assert float(distance(a, b, "mse", 0)) == pytest.approx(4.5)
    assert float(distance(a, b, "huber", 4.0)) == pytest.approx((5 - 4) / 2)


@ALL
def test_finetune_is_the_denoising_loss(prediction):
    w = World(prediction)
    cfg = config(objective="finetune")
    draws = draw_step(cfg, PLAIN, tuple(w.batch.latents.shape), 3).to(w.batch.latents)
    losses = Finetune(cfg, w.denoiser, w.layers)(w.batch, draws, PLAIN)
    x = w.denoiser.diffusion.add_noise(w.batch.latents, draws.noise, draws.t_n)
    wanted = w.denoiser.diffusion.training_target(w.batch.latents, draws.noise, draws.t_n)
    assert torch.allclose(losses["loss"], (w.predict("student", x, draws.t_n) - wanted).square().mean())
    losses["loss"].backward()
    assert all(p.grad is not None for p in w.layers.sets["student"].parameters())


def test_draws_depend_on_seed_and_step_only():
    shape = (6, 2, 4, 4)
    first, again = draw_step(config(), PLAIN, shape, 5), draw_step(config(), PLAIN, shape, 5)
    assert all(torch.equal(getattr(first, k), getattr(again, k)) for k in first.__dict__)
    assert not torch.equal(first.noise, draw_step(config(), PLAIN, shape, 6).noise)
    assert not torch.equal(first.noise, draw_step(config(seed=1), PLAIN, shape, 5).noise)


def test_guidance_is_drawn_from_its_range_and_offset_noise_applied():
    shape = (512, 2, 4, 4)
    drawn = draw_step(config(guidance_scale=(3.0, 5.0), offset_noise=0.5), PLAIN, shape, 0)
    assert drawn.guidance_scale.min() >= 3
    assert drawn.guidance_scale.max() <= 5
    assert abs(drawn.guidance_scale.mean() - 4) < 0.1
    means = drawn.noise.mean((2, 3))
    assert float(means.var()) == pytest.approx(0.25 + 1 / 16, abs=0.05)


def test_no_guidance_needs_no_empty_prompt():
    w = World(guidance_scale=(1.0, 1.0))
    with_prompt = w.losses()["loss"]
    w.batch = (
        copy.replace(w.batch, unconditional={})
        if hasattr(copy, "replace")
        else type(w.batch)(w.batch.latents, w.batch.conditioning, {})
    )
    assert torch.equal(w.losses()["loss"], with_prompt)


def test_call_passes_network_latents_time_and_context():
    denoiser, calls = make_denoiser("flow"), []

    def remembered(*arguments):
        calls.append(arguments)
        return call(*arguments)

    batch = make_examples(2).batch([0, 1], 0)
    given = batch.latents, torch.tensor([499, 999]), batch.conditioning
    predicted = Denoiser(denoiser.network, denoiser.diffusion, remembered).predict(*given)
    ((network, x, time, conditioning),) = calls
    assert network is denoiser.network
    assert torch.equal(x, batch.latents)
    assert torch.allclose(time, torch.tensor([500.0, 1000.0]))  # a flow model is told 1000 sigma
    assert conditioning.keys() == {"context"}
    assert torch.equal(conditioning["context"], batch.conditioning["context"])
    assert torch.equal(predicted, call(denoiser.network, batch.latents, time, batch.conditioning))
