"""The usual shape of a consistency distillation step: teacher, student and averaged target, each a network of its own.

Written for comparison, after the plan of the public LCM trainers (arXiv 2310.04378, algorithm 1; arXiv 2311.05556 for LoRA):
frozen teacher, student with wrapped LoRA layers, target = copy of the student that follows by EMA; the teacher is asked twice,
with and without the prompt. It averages the LoRA weights only, which is cheaper than all of them.
"""

import copy
from collections.abc import Iterator

import torch
from torch import nn

from ..training.data.examples import Batch
from ..training.diffusion import Diffusion
from ..training.lora_layers import adaptable_layers
from ..training.objectives.draws import Draws


class LoraWrapper(nn.Module):
    """A layer with a low-rank pair beside it, as public LoRA code wraps it."""

    def __init__(self, base: nn.Module, rank: int):
        super().__init__()
        self.base = base
        like = {"device": base.weight.device, "dtype": base.weight.dtype, "bias": False}
        if isinstance(base, nn.Linear):
            self.down = nn.Linear(base.in_features, rank, **like)
            self.up = nn.Linear(rank, base.out_features, **like)
        else:
            self.down = nn.Conv2d(base.in_channels, rank, base.kernel_size, base.stride, base.padding, **like)
            self.up = nn.Conv2d(rank, base.out_channels, 1, **like)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


def with_lora(network: nn.Module, rank: int) -> nn.Module:
    """Returns a frozen copy of `network` whose layers are wrapped; the layers are those our own sets adapt."""
    network = copy.deepcopy(network).requires_grad_(False)
    for name, layer in adaptable_layers(network).items():
        parent, _, child = name.rpartition(".")
        wrapper = LoraWrapper(layer, rank)
        wrapper.base.requires_grad_(False)
        setattr(network.get_submodule(parent), child, wrapper)
    return network


def lora_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Returns the weights of the wrappers' pairs."""
    wrappers = [module for module in network.modules() if isinstance(module, LoraWrapper)]
    return [part.weight for wrapper in wrappers for part in (wrapper.down, wrapper.up)]


class ThreeCopies:
    """One distillation run; step() takes one optimizer step.

    Args:
        network: the teacher, which stays as it is.
        diffusion: its noise schedule and what it predicts.
        rank: of the LoRA.
        learning_rate: as in TrainingConfig.
        ema_decay: as in TrainingConfig.
        huber_c: as in TrainingConfig.
    """

    def __init__(
        self,
        network: nn.Module,
        diffusion: Diffusion,
        rank: int,
        learning_rate: float = 1e-4,
        ema_decay: float = 0.95,
        huber_c: float = 0.001,
    ):
        self.diffusion, self.ema_decay, self.huber_c = diffusion, ema_decay, huber_c
        self.teacher = network.requires_grad_(False)
        self.student = with_lora(network, rank)
        self.target = copy.deepcopy(self.student).requires_grad_(False)
        self.trained = lora_parameters(self.student)
        self.averaged = lora_parameters(self.target)
        self.optimizer = torch.optim.AdamW(self.trained, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(1.0, (step + 1) / 50))

    def held(self) -> Iterator[torch.Tensor]:
        """Yields every tensor that is kept between two steps."""
        for network in (self.teacher, self.student, self.target):
            yield from network.parameters()
            yield from network.buffers()
        yield from (value for state in self.optimizer.state.values() for value in state.values())

    def step(self, batch: Batch, draws: Draws) -> float:
        """Takes one step and returns the loss."""
        jump, context = self.diffusion.jump, batch.conditioning["context"]
        t_n, t_prev, t_end, scale = draws.t_n, draws.t_prev, draws.t_end, draws.guidance_scale
        x_n = self.diffusion.add_noise(batch.latents, draws.noise, t_n)
        found = jump(x_n, self.student(x_n, t_n, context).sample, t_n, t_end)
        with torch.no_grad():
            positive = self.teacher(x_n, t_n, context).sample
            negative = self.teacher(x_n, t_n, batch.unconditional["context"]).sample
            guided = negative + scale.view(-1, 1, 1, 1) * (positive - negative)
            x_prev = jump(x_n, guided, t_n, t_prev)
            wanted = jump(x_prev, self.target(x_prev, t_prev, context).sample, t_prev, t_end)
        loss = torch.mean(torch.sqrt((found - wanted) ** 2 + self.huber_c**2) - self.huber_c)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for averaged, trained in zip(self.averaged, self.trained, strict=True):
                averaged.mul_(self.ema_decay).add_(trained, alpha=1 - self.ema_decay)
        return loss.item()
