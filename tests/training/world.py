"""A tiny network in mid-training, and the check of a gradient by finite differences."""

import pytest
import torch
from hyper_sd.tests.training.fakes import make_denoiser, make_examples
from hyper_sd.training.config import Stage, TrainingConfig
from hyper_sd.training.lora_layers import BACKBONE, LoraLayers
from hyper_sd.training.objectives.discriminator import Heads
from hyper_sd.training.objectives.draws import draw_step
from hyper_sd.training.objectives.tscd import Tscd
from torch import nn

PLAIN, ADVERSARIAL = Stage(4, 1), Stage(2, 1, 1.0, 0.3)


def config(**settings):
    given = {"stages": (PLAIN,), "batch_size": 6, "rank": 2, "distance": "mse", **settings}
    return TrainingConfig(**given)


class World:
    """A tiny network with filled adapter sets, heads, a batch and its draws."""

    def __init__(self, prediction="epsilon", stage=PLAIN, backbone=False, **settings):
        self.config, self.stage = config(stages=(stage,), **settings), stage
        self.denoiser = make_denoiser(prediction)
        self.denoiser.network.requires_grad_(False)
        self.layers = LoraLayers(self.denoiser.network, 2, dtype=torch.float64)
        names = ["student", "target", *([BACKBONE] if backbone else [])]
        torch.manual_seed(3)
        for name in names:
            for parameter in self.layers.add(name).parameters():
                nn.init.normal_(parameter, std=0.2)
        self.layers.sets["target"].requires_grad_(False)
        self.heads = Heads([4, 8, 8]).double() if stage.adversarial_weight else None
        self.objective = Tscd(self.config, self.denoiser, self.layers, self.heads)
        self.batch = make_examples(6).batch(range(6), 0)
        self.draws = draw_step(self.config, stage, tuple(self.batch.latents.shape), 7).to(self.batch.latents)

    def losses(self):
        return self.objective(self.batch, self.draws, self.stage)

    def predict(self, name, x, t, which="conditioning"):
        with self.layers.using(name):
            return self.denoiser.predict(x, t, getattr(self.batch, which))


def slope(w, part, parameter, direction, step=1e-5):
    """The central difference of part(losses) along `direction`."""
    start, values = parameter.detach().clone(), []
    for sign in (1, -1):
        parameter.data.copy_(start + sign * step * direction)
        values.append(part(w.losses()).item())
    parameter.data.copy_(start)
    return (values[0] - values[1]) / (2 * step)


def directions(parameter, generator):
    """Random directions; four for the one long tensor of an adapter set, each through a quarter of it."""
    parts = 4 if parameter.ndim == 1 and len(parameter) > 64 else 1
    for chosen in torch.arange(parameter.numel()).chunk(parts):
        direction = torch.zeros(parameter.numel(), dtype=torch.float64)
        direction[chosen] = torch.randn(len(chosen), generator=generator, dtype=torch.float64)
        yield direction.view(parameter.shape)


def check_gradients(w, parameters, part):
    """Compares the gradient of the total loss with the slope of `part`; returns how many slopes were not flat."""
    gradients = torch.autograd.grad(w.losses()["loss"], parameters, allow_unused=True)
    g, steep = torch.Generator().manual_seed(0), 0
    for parameter, gradient in zip(parameters, gradients, strict=True):
        for direction in directions(parameter, g):
            numeric = slope(w, part, parameter, direction)
            found = 0.0 if gradient is None else float((gradient * direction).sum())
            assert found == pytest.approx(numeric, rel=1e-4, abs=1e-9)
            steep += abs(numeric) > 1e-6
    return steep


def parts(diffusion, x, output, t):
    """x0 and noise by the definitions of the four predictions, each solved by itself."""
    a, s = diffusion.levels(t, x)
    kind = diffusion.prediction_type
    if kind == "epsilon":
        return (x - s * output) / a, output
    if kind == "sample":
        return output, (x - a * output) / s
    if kind == "flow":
        return x - s * output, x + (1 - s) * output
    return a * x - s * output, a * output + s * x


def land(diffusion, x0, noise, t):
    a, s = diffusion.levels(t, x0)
    return a * x0 + s * noise
