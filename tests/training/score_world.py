"""The tiny network in the middle of a stage for one step: with a fake score, draws of the score, and pairs."""

import torch
from hyper_sd.tests.training.world import World
from hyper_sd.training.data.teacher_pairs import Pairs
from hyper_sd.training.lora_layers import FAKE, TEACHER
from hyper_sd.training.objectives.draws import distance
from hyper_sd.training.objectives.score_distillation import FakeScore, ScoreDistillation, draw_once, draw_score
from torch import nn


class ScoreWorld(World):
    """World for a stage for one step.

    Args:
        prediction: what the network predicts.
        stage: that is trained.
        teacher: whether the teacher has an adapter set.
        settings: further ones of World.
    """

    def __init__(self, prediction, stage, teacher=False, **settings):
        super().__init__(prediction, stage, **settings)
        torch.manual_seed(4)
        for name in [FAKE, TEACHER] if teacher else [FAKE]:
            for parameter in self.layers.add(name).parameters():
                nn.init.normal_(parameter, std=0.2)
        if teacher:
            self.layers.sets[TEACHER].requires_grad_(False)
        self.objective = ScoreDistillation(self.config, self.denoiser, self.layers, self.heads)
        self.fake_objective = FakeScore(self.config, self.denoiser, self.layers)
        self.score, self.fake_score = (self.draw(update) for update in range(2))
        start = torch.randn(self.batch.latents.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        self.pairs = Pairs(start, self.batch)
        self.towards = self.point_the_student_is_drawn_to()

    def draw(self, update):
        return draw_score(self.config, tuple(self.batch.latents.shape), 7, update).to(self.batch.latents)

    def picture(self):
        """The student's one step."""
        with self.layers.using("student"):
            return draw_once(self.denoiser, self.score.start, self.config.start_timestep, self.batch)

    @torch.no_grad()
    def point_the_student_is_drawn_to(self):
        x = self.picture()
        noisy = self.denoiser.diffusion.add_noise(x, self.score.noise, self.score.t)
        return x - self.objective.gradient(x, noisy, self.batch, self.score)

    def losses(self):
        """The losses, and beside them what their parts are when the point that the score leads to is held fixed."""
        losses = self.objective(self.batch, self.draws, self.stage, self.score, self.pairs)
        surrogate = 0.5 * distance(self.picture(), self.towards, "mse", 0)
        return losses | {"surrogate": surrogate, "tscd": self.objective.tscd.distance(self.batch, self.draws)}


class FakeWorld(ScoreWorld):
    """ScoreWorld whose losses are those of the fake score."""

    def losses(self):
        return self.fake_objective(self.batch, self.fake_score)
