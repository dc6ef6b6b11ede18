"""The objective for one step against its formula written out, finite differences, and a toy whose optimum is known."""

import dataclasses

import pytest
import torch
from hyper_sd.tests.training.fakes import call
from hyper_sd.tests.training.score_world import FakeWorld, ScoreWorld
from hyper_sd.tests.training.world import check_gradients, config, parts
from hyper_sd.training.config import Stage
from hyper_sd.training.diffusion import PREDICTION_TYPES
from hyper_sd.training.lora_layers import BACKBONE, FAKE, TEACHER
from hyper_sd.training.objectives.score_distillation import draw_score, matching_gradient

ALL = pytest.mark.parametrize("prediction", PREDICTION_TYPES)
SCORE, PAIRS = Stage(1, 1, 0.0, score_weight=0.7), Stage(1, 1, 0.0, pair_weight=0.4)
MIXED = Stage(2, 1, 0.3, score_weight=0.7, pair_weight=0.4)
ADVERSARIAL = Stage(2, 1, 0.3, 0.2, score_weight=0.7, pair_weight=0.4)


def students(w):
    return list(w.layers.sets["student"].parameters())


@ALL
@pytest.mark.parametrize("teacher", [False, True])
def test_student_follows_the_gradient_of_dmd_written_out(prediction, teacher):
    # DMD, arXiv 2311.18828, Eq. 7 and 8: the student's picture is pushed along (fake - real), weighted by mean|x - real|.
    w = ScoreWorld(prediction, SCORE, teacher)
    d, diffusion = w.score, w.denoiser.diffusion
    found = torch.autograd.grad(w.losses()["loss"], students(w))
    t = torch.full((6,), 800)
    x = parts(diffusion, d.start, w.predict("student", d.start, t), t)[0]
    with torch.no_grad():
        alpha, sigma = (level[d.t].view(-1, 1, 1, 1) for level in (diffusion.alpha, diffusion.sigma))
        noisy, name = alpha * x + sigma * d.noise, TEACHER if teacher else None
        with_, without = (w.predict(name, noisy, d.t, which) for which in ("conditioning", "unconditional"))
        guided = (1 - d.guidance_scale.view(-1, 1, 1, 1)) * without + d.guidance_scale.view(-1, 1, 1, 1) * with_
        real, fake = (parts(diffusion, noisy, p, d.t)[0] for p in (guided, w.predict(FAKE, noisy, d.t)))
        pushed = torch.stack([(f - r) / (x_ - r).abs().mean() for x_, r, f in zip(x, real, fake, strict=True)])
    assert d.guidance_scale.unique().numel() == 6
    expected = torch.autograd.grad(x, students(w), 0.7 * pushed / x.numel())
    for mine, theirs in zip(found, expected, strict=True):
        assert theirs.abs().max() > 0
        assert torch.allclose(mine, theirs, rtol=1e-8, atol=1e-12)


@ALL
def test_fake_score_is_the_denoising_loss_of_the_students_pictures(prediction):
    w = FakeWorld(prediction, SCORE)
    d, diffusion, t = w.fake_score, w.denoiser.diffusion, torch.full((6,), 800)
    x = parts(diffusion, d.start, w.predict("student", d.start, t), t)[0]
    alpha, sigma = (level[d.t].view(-1, 1, 1, 1) for level in (diffusion.alpha, diffusion.sigma))
    noisy = alpha * x + sigma * d.noise
    wanted = {"epsilon": d.noise, "sample": x, "flow": d.noise - x, "v_prediction": alpha * d.noise - sigma * x}[prediction]
    expected = (w.predict(FAKE, noisy, d.t) - wanted).square().mean()
    assert torch.allclose(w.losses()["loss"], expected, rtol=1e-9)


@ALL
def test_fake_scores_gradient_equals_finite_differences_and_reaches_no_other_set(prediction):
    w = FakeWorld(prediction, SCORE, teacher=True)
    fakes = list(w.layers.sets[FAKE].parameters())
    assert check_gradients(w, fakes, lambda losses: losses["loss"]) == 4
    w.losses()["loss"].backward()
    assert all(p.grad is not None for p in fakes)
    others = [made for name, made in w.layers.sets.items() if name != FAKE]
    assert all(p.grad is None for made in (*others, w.denoiser.network) for p in made.parameters())


@ALL
@pytest.mark.parametrize("stage", [SCORE, PAIRS, MIXED])
def test_students_gradient_equals_finite_differences_of_every_term(prediction, stage):
    w = ScoreWorld(prediction, stage, teacher=True)

    def part(losses):
        terms = {"surrogate": stage.score_weight, "pairs": stage.pair_weight, "tscd": stage.distance_weight}
        return sum(weight * losses[name] for name, weight in terms.items() if weight)

    assert check_gradients(w, students(w), part) == 4


@pytest.mark.parametrize("stage", [SCORE, PAIRS, MIXED])
def test_students_loss_reaches_the_student_alone(stage):
    w = ScoreWorld("epsilon", stage, teacher=True)
    w.losses()["loss"].backward()
    student = w.layers.sets["student"]
    assert all(grad.any() for part in student.pairs_of(student.flat.grad) for grad in part)
    others = [made for name, made in w.layers.sets.items() if name != "student"]
    assert len(others) == 3
    assert all(p.grad is None for made in (*others, w.denoiser.network) for p in made.parameters())


@pytest.mark.parametrize("group", ["student", "heads", BACKBONE])
def test_adversarial_stage_for_one_step_gives_each_its_own_gradient(group):
    w = ScoreWorld("epsilon", ADVERSARIAL, backbone=True)
    parameters = list(w.heads.parameters() if group == "heads" else w.layers.sets[group].parameters())

    def of_student(losses):
        weighted = 0.7 * losses["surrogate"] + 0.4 * losses["pairs"] + 0.3 * losses["tscd"]
        return weighted + 0.2 * losses["adversarial"]

    part = of_student if group == "student" else lambda losses: losses["discriminator"]
    assert check_gradients(w, parameters, part) >= 3
    w.losses()["loss"].backward()
    assert all(p.grad is None for name in ("target", FAKE) for p in w.layers.sets[name].parameters())


@ALL
def test_gradient_is_zero_where_the_fake_score_is_the_teacher(prediction):
    w = ScoreWorld(prediction, SCORE, teacher=True, guidance_scale=(1.0, 1.0))
    assert w.losses()["loss"] > 0
    w.layers.sets[FAKE].copy_from(w.layers.sets[TEACHER])
    losses = w.losses()
    gradients = torch.autograd.grad(losses["loss"], students(w))
    assert losses["loss"] == 0
    assert all(not gradient.any() for gradient in gradients)


def test_picture_that_is_what_the_teacher_sees_is_left_alone():
    x = torch.randn(3, 2, 4, 4)
    real = x.clone()
    real[1] += 1
    found = matching_gradient(x, real, torch.zeros_like(x))
    assert found.isfinite().all()
    assert not found[[0, 2]].any()
    assert torch.allclose(found[1], -real[1])


def test_student_is_scored_at_timesteps_20_to_980_and_the_fake_score_at_all():
    drawn = [torch.cat([draw_score(config(), (1024, 1), step, update).t for step in range(40)]) for update in range(3)]
    for t, low, high in zip(drawn, (20, 0, 0), (980, 999, 999), strict=True):
        assert low == t.min()
        assert high == t.max()
        assert abs(float(t.double().mean()) - (low + high) / 2) < 6


def test_draws_depend_on_seed_step_and_update_alone():
    shape = (6, 2, 4, 4)
    first = draw_score(config(), shape, 5, 1)
    again = draw_score(config(), shape, 5, 1)
    assert all(torch.equal(value, getattr(again, name)) for name, value in first.__dict__.items())
    others = [draw_score(config(), shape, 5, 0), draw_score(config(), shape, 5, 2), draw_score(config(), shape, 6, 1)]
    others.append(draw_score(config(seed=1), shape, 5, 1))
    for other in others:
        for name in ("start", "noise", "guidance_scale"):
            assert not torch.equal(getattr(first, name), getattr(other, name))
    assert not torch.allclose(first.start, first.noise)


def test_guidance_is_drawn_from_its_range():
    scale = draw_score(config(guidance_scale=(3.0, 5.0)), (512, 1), 0, 0).guidance_scale
    assert 3 <= scale.min() < 3.1
    assert 4.9 < scale.max() <= 5


@pytest.mark.parametrize("timestep", [500, 800, 999])
def test_one_step_starts_at_the_timestep_that_is_set(timestep):
    w = ScoreWorld("epsilon", SCORE, start_timestep=timestep)
    told = []
    w.denoiser = dataclasses.replace(w.denoiser, call=lambda net, x, t, c: told.append(t) or call(net, x, t, c))
    w.picture()
    assert told[0].tolist() == [timestep] * 6
