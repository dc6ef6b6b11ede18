"""The usual shape of a distribution matching step: teacher, student and fake score, each a network of its own.

Written for comparison, after the plan of the papers (DMD, arXiv 2311.18828, algorithm 1; DMD2, arXiv 2405.14867, which updates
the fake score several times for each time of the student): a frozen teacher, and two copies of it with wrapped LoRA layers,
student and fake score; the teacher is asked twice, with and without the prompt.
"""

from collections.abc import Iterator

import torch
from torch import nn

from ..training.data.examples import Batch
from ..training.diffusion import Diffusion
from ..training.objectives.score_distillation import ScoreDraws
from .three_copies import lora_parameters, with_lora


class ThreeNetworks:
    """One run for one step of an epsilon model; step() updates the fake score, then the student.

    Args:
        network: the teacher, which stays as it is.
        diffusion: its noise schedule.
        rank: of both LoRAs.
        learning_rate: of the student, which rises over the first 50 steps.
        fake_learning_rate: of the fake score.
        start_timestep: that the student's one step starts from.
    """

    def __init__(
        self,
        network: nn.Module,
        diffusion: Diffusion,
        rank: int,
        learning_rate: float = 1e-4,
        fake_learning_rate: float = 1e-4,
        start_timestep: int = 800,
    ):
        self.diffusion, self.start_timestep = diffusion, start_timestep
        self.teacher = network.requires_grad_(False)
        self.student, self.fake = with_lora(network, rank), with_lora(network, rank)
        self.trained, self.scored = lora_parameters(self.student), lora_parameters(self.fake)
        self.optimizer = torch.optim.AdamW(self.trained, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(1.0, (step + 1) / 50))
        self.fake_optimizer = torch.optim.AdamW(self.scored, lr=fake_learning_rate, betas=(0.9, 0.99), weight_decay=0.0)

    def held(self) -> Iterator[torch.Tensor]:
        """Yields every tensor that is kept between two steps."""
        for network in (self.teacher, self.student, self.fake):
            yield from network.parameters()
            yield from network.buffers()
        for optimizer in (self.optimizer, self.fake_optimizer):
            yield from (value for state in optimizer.state.values() for value in state.values())

    def step(self, batch: Batch, draws: ScoreDraws, fake_draws: ScoreDraws) -> tuple[float, float]:
        """Takes one step of both, and returns the losses of the student and of the fake score."""
        fake_loss = self.update_fake(batch, fake_draws)
        return self.update_student(batch, draws), fake_loss

    def update_fake(self, batch: Batch, draws: ScoreDraws) -> float:
        """Takes one step of the fake score on what the student draws, and returns its loss."""
        context = batch.conditioning["context"]
        with torch.no_grad():
            x = self.draw(draws.start, context)
        noisy = self.diffusion.add_noise(x, draws.noise, draws.t)
        loss = torch.mean((self.fake(noisy, draws.t, context).sample - draws.noise) ** 2)
        self.update(loss, self.fake_optimizer, self.scored)
        return loss.item()

    def update_student(self, batch: Batch, draws: ScoreDraws) -> float:
        """Takes one step of the student, and returns its loss."""
        context, t = batch.conditioning["context"], draws.t
        x = self.draw(draws.start, context)
        with torch.no_grad():
            noisy = self.diffusion.add_noise(x, draws.noise, t)
            positive = self.teacher(noisy, t, context).sample
            negative = self.teacher(noisy, t, batch.unconditional["context"]).sample
            guided = negative + draws.guidance_scale.view(-1, 1, 1, 1) * (positive - negative)
            real = self.diffusion.pred_x0(noisy, guided, t)
            fake = self.diffusion.pred_x0(noisy, self.fake(noisy, t, context).sample, t)
            gradient = (fake - real) / torch.abs(x - real).mean(dim=[1, 2, 3], keepdim=True)
            gradient = torch.nan_to_num(gradient)
        loss = 0.5 * torch.mean((x - (x - gradient).detach()) ** 2)
        self.update(loss, self.optimizer, self.trained)
        self.scheduler.step()
        return loss.item()

    def draw(self, start: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Returns the student's one step from noise of deviation 1."""
        t = torch.full((len(start),), self.start_timestep, device=start.device)
        return self.diffusion.pred_x0(start, self.student(start, t, context).sample, t)

    def update(self, loss: torch.Tensor, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
        """Lets an optimizer step against a loss."""
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
