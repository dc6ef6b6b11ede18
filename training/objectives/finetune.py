"""Plain denoising, the objective of an ordinary LoRA: a pure function of (batch, draws)."""

import torch
from torch import nn

from ..config import Stage, TrainingConfig
from ..data.examples import Batch
from ..denoiser import Denoiser
from ..lora_layers import STUDENT, LoraLayers
from .draws import Draws, distance


class Finetune(nn.Module):
    """Plain denoising: the distance of the student's prediction to the noise, or the velocity, that was added."""

    def __init__(self, config: TrainingConfig, denoiser: Denoiser, layers: LoraLayers):
        super().__init__()
        self.config, self.layers = config, layers
        self.student = layers.sets[STUDENT]
        object.__setattr__(self, "denoiser", denoiser)  # not a part of this module: its weights are not trained

    def forward(self, batch: Batch, draws: Draws, stage: Stage) -> dict[str, torch.Tensor]:
        """Returns {"loss", "distance"}."""
        diffusion, x0 = self.denoiser.diffusion, batch.latents
        x = diffusion.add_noise(x0, draws.noise, draws.t_n)
        with self.layers.using(STUDENT):
            prediction = self.denoiser.predict(x, draws.t_n, batch.conditioning)
        target = diffusion.training_target(x0, draws.noise, draws.t_n)
        loss = distance(prediction, target, self.config.distance, self.config.huber_c)
        return {"loss": stage.distance_weight * loss, "distance": loss.detach()}
