"""Score distillation of a Gaussian, whose best denoiser and whose one right answer are known."""

import pytest
import torch
from hyper_sd.tests.training.fakes import TOKENS, WIDTH, schedule
from hyper_sd.training.config import Stage, TrainingConfig
from hyper_sd.training.data.examples import LatentExamples
from hyper_sd.training.denoiser import Denoiser
from hyper_sd.training.diffusion import Diffusion
from hyper_sd.training.loop import train
from hyper_sd.training.lora_layers import LoraLayers
from hyper_sd.training.objectives.score_distillation import draw_once
from torch import nn

BINS, MEAN, DEVIATION = 20, 0.6, 0.5  # of the timesteps; of the data
SHAPE = (1, 4, 4)  # pixels that know nothing of each other


class Affine(nn.Module):
    """Predicts the noise of a pixel as an affine function of it, one for every bin of timesteps: the best for the Gaussian."""

    def __init__(self, diffusion: Diffusion):
        super().__init__()
        self.layer = nn.Linear(2 * BINS, 1, bias=False)
        alpha, sigma = diffusion.alpha.view(BINS, -1), diffusion.sigma.view(BINS, -1)
        mean, variance = alpha * MEAN, (alpha * DEVIATION) ** 2 + sigma**2  # of x_t
        # The least squares over a bin: moments of x_t, the timestep being drawn too.
        spread = variance.mean(1) + mean.var(1, unbiased=False)
        slope = sigma.mean(1) / spread
        self.layer.weight.data[0] = torch.cat([slope, -slope * mean.mean(1)]).float()

    def forward(self, x, time, context):
        bin_ = nn.functional.one_hot(time.long() * BINS // 1000, BINS).to(x)[:, None, None, None]
        x = x[..., None]
        return self.layer(torch.cat([bin_ * x, bin_.expand(*x.shape[:-1], BINS)], -1))[..., 0]


def test_one_step_learns_mean_and_variance_of_the_teachers_data():
    diffusion = Diffusion.from_schedule(schedule("epsilon"), "epsilon")
    network = Affine(diffusion)
    denoiser = Denoiser(network, diffusion, lambda net, x, t, c: net(x, t, c["context"]))
    examples = LatentExamples(torch.zeros(8, *SHAPE), {"context": torch.zeros(8, TOKENS, WIDTH)})
    config = TrainingConfig(
        stages=(Stage(1, 700, 0.0, score_weight=1.0),), batch_size=64, rank=2, guidance_scale=(1.0, 1.0), learning_rate=3e-3,
        fake_learning_rate=2e-2, final_rate=0.01, warmup_steps=20, fake_updates=2, fake_warmup=50,
    )  # fmt: skip
    layers = LoraLayers(network, 2)
    student, first_bin = layers.add("student"), config.start_timestep * BINS // 1000
    nn.init.constant_(student.up[0], 0.1)
    with torch.no_grad():
        student.down[0][0, BINS + first_bin] = 1.0  # a mean far off; the best denoiser's deviation is far off anyway

    def drawn():
        """Mean and variance of what the student draws, which is affine in the noise."""
        probes = torch.stack([torch.zeros(SHAPE), torch.ones(SHAPE)])
        with torch.no_grad(), layers.using("student"):
            x = draw_once(denoiser, probes, config.start_timestep, examples.batch(range(2), 0)).mean((1, 2, 3))
        return float(x[0]), float(x[1] - x[0]) ** 2

    mean, variance = drawn()
    assert abs(mean - MEAN) > 0.5
    assert variance < 0.1 * DEVIATION**2
    list(train(config, denoiser, layers, examples))
    mean, variance = drawn()
    assert mean == pytest.approx(MEAN, rel=0.02)
    assert variance == pytest.approx(DEVIATION**2, rel=0.02)
