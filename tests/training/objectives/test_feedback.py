"""Human feedback against its formula written out, finite differences through exactly one step, and who gets a gradient."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from hyper_sd.errors import RewardError, TrainingError
from hyper_sd.rewards.instances import InstanceNet, Instances
from hyper_sd.rewards.scorer import Scorer
from hyper_sd.samplers.timesteps import hyper_sd_timesteps
from hyper_sd.tests.training.world import World, check_gradients
from hyper_sd.training.diffusion import PREDICTION_TYPES
from hyper_sd.training.feedback.judge import Judge
from hyper_sd.training.feedback.settings import FeedbackSettings
from hyper_sd.training.lora_layers import DISTILLED, STUDENT
from hyper_sd.training.objectives.feedback import Feedback, Reward, draw_feedback, moved
from torch import nn

PROMPTS = ["apple"] * 6


class Brightness(Scorer):
    """A scorer that is smooth, so that finite differences are exact."""

    def __init__(self, factor: float = 1.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def rate(self, images, prompts):
        return self.factor * images.square().mean((1, 2, 3))


class Decoder(nn.Module):
    """Latents [batch, 2, h, w] -> pictures [batch, 3, 4h, 4w] inside 0 to 1."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(8)
        self.up = nn.ConvTranspose2d(2, 3, 4, stride=4).double().requires_grad_(False)

    def forward(self, latents):
        return torch.sigmoid(self.up(latents))


class FeedbackWorld(World):
    """The tiny network with a distilled set, and feedback on top of it."""

    def __init__(self, prediction="epsilon", enough=(2.0, 0.1), stop=2, steps=4, instances=None, **settings):
        super().__init__(prediction)
        torch.manual_seed(6)
        for parameter in self.layers.add(DISTILLED).parameters():
            nn.init.normal_(parameter, std=0.2)
        self.layers.sets[DISTILLED].requires_grad_(False)
        self.settings = FeedbackSettings(**{"rewards": ("bright", "other"), "brake_weight": 0.5, "jitter": 0.0, **settings})
        self.decode, self.batch = Decoder(), dataclasses.replace(self.batch, prompts=tuple(PROMPTS))
        weights = {
            "bright": Reward(Brightness().freeze(), enough[0]),
            "other": Reward(Brightness(2.0).freeze(), enough[1], 0.3),
        }
        self.judge = Judge(self.decode, {name: reward.scorer for name, reward in weights.items()}, instances)
        self.feedback = Feedback(self.settings, self.denoiser, self.layers, self.judge, weights)
        shape = tuple(self.batch.latents.shape)
        drawn = draw_feedback(self.settings, 3, shape, 7).to(self.batch.latents)
        between = torch.randn((stop, *shape), generator=torch.Generator().manual_seed(4)).double()
        self.given = dataclasses.replace(drawn, steps=steps, stop=stop, between=between)
        self.held = self.feedback.reached(self.batch, self.given)

    def losses(self):
        """The losses, the steps before the one that learns held fixed: no gradient goes through them."""
        self.feedback.reached = lambda batch, draws: self.held
        return self.feedback(self.batch, self.given)

    def x0(self, *names):
        x, t = self.held
        with self.layers.using(*names):
            return self.denoiser.diffusion.pred_x0(x, self.denoiser.predict(x, t, self.batch.conditioning), t)


@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
def test_loss_is_what_is_missing_to_enough_and_the_brake_written_out(prediction):
    w = FeedbackWorld(prediction)
    x0, before = w.x0(DISTILLED, STUDENT), w.x0(DISTILLED)
    bright = torch.sigmoid(w.decode.up(x0)).square().mean((1, 2, 3))
    expected = (2 - bright).clamp(min=0).mean() + 0.3 * (0.1 - 2 * bright).clamp(min=0).mean()
    expected = expected + 0.5 * (x0 - before).square().mean()
    losses = w.losses()
    torch.testing.assert_close(losses["loss"], expected)
    torch.testing.assert_close(losses["bright"], bright.mean())
    torch.testing.assert_close(losses["other"], 2 * bright.mean())


def test_picture_that_is_good_enough_is_left_to_the_brake_alone():
    w = FeedbackWorld(enough=(-1.0, -1.0), brake_weight=0.0)
    gradients = torch.autograd.grad(w.losses()["loss"], list(w.layers.sets[STUDENT].parameters()))
    assert all(gradient.abs().max() == 0 for gradient in gradients)


@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
@pytest.mark.parametrize("stop", [0, 3])
def test_gradient_goes_through_exactly_one_step(prediction, stop):
    w = FeedbackWorld(prediction, stop=stop)
    steep = check_gradients(w, list(w.layers.sets[STUDENT].parameters()), lambda losses: losses["loss"])
    assert steep >= 3


def test_nothing_but_the_student_gets_a_gradient():
    w = FeedbackWorld()
    w.feedback(w.batch, w.given)["loss"].backward()
    assert all(p.grad.abs().max() > 0 for p in w.layers.sets[STUDENT].parameters())
    scorers = [reward.scorer for reward in w.feedback.rewards.values()]
    for part in (w.denoiser.network, w.decode, w.layers.sets[DISTILLED], *scorers):
        assert all(p.grad is None for p in part.parameters())
    assert [id(p) for p in w.feedback.parameters()] == [id(p) for p in w.layers.sets[STUDENT].parameters()]


@pytest.mark.parametrize(("steps", "stop"), [(1, 0), (4, 0), (4, 1), (4, 3), (8, 7)])
def test_step_that_learns_is_one_of_the_students_own_grid(steps, stop):
    w = FeedbackWorld(steps=steps, stop=stop, start_timestep=800, eta=0.0)
    x, t = w.held
    grid = [800] if steps == 1 else hyper_sd_timesteps(steps)
    assert t.tolist() == [grid[stop]] * 6
    # Written out anew: DDIM from each timestep of the grid to the next, which is what eta 0 makes of the rule.
    expected = w.given.start
    for now, then in pairwise(grid[: stop + 1]):
        t_now, t_then = (torch.full((6,), one) for one in (now, then))
        with torch.no_grad(), w.layers.using(DISTILLED, STUDENT):
            prediction = w.denoiser.predict(expected, t_now, w.batch.conditioning)
        expected = w.denoiser.diffusion.jump(expected, prediction, t_now, t_then)
    torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-6)


def test_draws_depend_on_the_step_alone_and_reach_every_step_of_every_grid():
    settings, shape = FeedbackSettings(("bright",)), (2, 2, 4, 4)
    first, again = (draw_feedback(settings, 1, shape, 5) for _ in range(2))
    assert (first.steps, first.stop) == (again.steps, again.stop)
    assert torch.equal(first.start, again.start)
    assert torch.equal(first.between, again.between)
    seen = {(d.steps, d.stop) for d in (draw_feedback(settings, 1, shape, step) for step in range(400))}
    assert seen == {(steps, stop) for steps in (1, 2, 4, 8) for stop in range(steps)}


def test_perceptual_term_is_solos_loss_of_the_cleaned_picture():
    torch.manual_seed(1)
    network = InstanceNet(4).freeze().double()
    labels = [Instances(torch.ones(1, 16, 16), torch.tensor([2]))] * 6
    w = FeedbackWorld(instances=network, instance_weight=0.7)
    w.feedback.reached = lambda batch, draws: w.held
    losses = w.feedback(w.batch, w.given, labels)
    noisy = w.denoiser.diffusion.add_noise(w.batch.latents, w.given.noise, w.given.t)
    with w.layers.using(DISTILLED, STUDENT):
        prediction = w.denoiser.predict(noisy, w.given.t, w.batch.conditioning)
    cleaned = w.denoiser.diffusion.pred_x0(noisy, prediction, w.given.t)
    seen = network.loss(torch.sigmoid(w.decode.up(cleaned)), labels)
    torch.testing.assert_close(losses["instances"], seen.detach())
    settings = dataclasses.replace(w.settings, instance_weight=0.0)
    without = Feedback(settings, w.denoiser, w.layers, w.judge, w.feedback.rewards)
    without.reached = w.feedback.reached
    rest = without(w.batch, w.given)["loss"]
    torch.testing.assert_close(losses["loss"] - rest, 0.7 * seen)


def test_reward_that_is_not_a_number_stops_with_a_clear_sentence():
    w = FeedbackWorld()
    w.feedback.rewards["bright"].scorer.factor.data.fill_(float("nan"))
    with pytest.raises(RewardError, match="not a number"):
        w.losses()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": ()}, "1 or more each"),
        ({"steps": (0,)}, "1 or more each"),
        ({"brake_weight": -1.0}, "brake_weight"),
        ({"rewards": ()}, "needs a reward"),
        ({"held_out": "bright"}, "one part"),
        ({"rewards": ("bright", "bright")}, "one part"),
        ({"patience": 0}, "patience"),
        ({"eta": 2.0}, "eta"),
        ({"noised_to": (400, 100)}, "lowest, highest"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(TrainingError, match=said):
        FeedbackSettings(**{"rewards": ("bright",), **settings})


def test_perceptual_term_without_a_network_that_sees_things_is_refused():
    w = FeedbackWorld()
    settings = dataclasses.replace(w.settings, instance_weight=1.0)
    with pytest.raises(TrainingError, match="sees instances"):
        Feedback(settings, w.denoiser, w.layers, w.judge, w.feedback.rewards)


def test_parts_of_a_batch_draw_what_the_whole_would():
    w = FeedbackWorld(stop=3)
    whole, parts = w.feedback.reached(w.batch, w.given)[0], []
    for rows in (slice(0, 4), slice(4, 6)):
        batch = dataclasses.replace(
            w.batch, latents=w.batch.latents[rows], conditioning={k: v[rows] for k, v in w.batch.conditioning.items()}
        )
        parts.append(w.feedback.reached(batch, w.given.part(rows))[0])
    torch.testing.assert_close(torch.cat(parts), whole)


def test_views_move_and_scale_pictures_by_shares_of_a_side():
    picture = torch.zeros(1, 3, 20, 20)
    picture[:, :, 8:12, 8:12] = 1
    assert moved(picture, torch.zeros(1, 3)) is picture
    right = moved(picture, torch.tensor([[0.0, 0.1, 0.0]]))
    torch.testing.assert_close(right, picture.roll(2, 3), atol=1e-5, rtol=0)
    down = moved(picture, torch.tensor([[0.0, 0.0, -0.25]]))
    torch.testing.assert_close(down, picture.roll(-5, 2), atol=1e-5, rtol=0)
    larger = moved(picture, torch.tensor([[0.5, 0.0, 0.0]]))
    assert float(larger.sum()) == pytest.approx(1.5**2 * float(picture.sum()), rel=0.05)


def test_gradient_passes_through_moved_pictures():
    w = FeedbackWorld(jitter=0.2)
    assert check_gradients(w, list(w.layers.sets[STUDENT].parameters()), lambda losses: losses["loss"]) >= 3
