"""Draws the pictures of an evaluation with a diffusers pipeline, whose LoRAs are adapter sets as in training."""

from collections.abc import Sequence

import torch
from PIL import Image

from ...errors import UnsupportedModelError
from ...evaluation.plan import Arm, Job, LoraUse
from ...models.families import FAMILIES
from ..data.texts import Conditioning
from ..export import read_tensors
from ..lora_layers import LoraLayers
from ..lora_tensors import rank_of, set_from_tensors
from ..preview import as_images
from ..sampling import sample_latents
from .diffusers_models import DiffusersModel


class DiffusersPainter:
    """Draws pictures, each from noise of its own, so that one is the same alone and with others.

    Args:
        model: on the CPU; its networks are moved to the device.
        device: that does the work.
    Raises: UnsupportedModelError for a family that this pack's sampler does not draw.
    """

    def __init__(self, model: DiffusersModel, device: torch.device | str = "cpu"):
        if FAMILIES[model.kind.family].is_flow:
            raise UnsupportedModelError(
                f"An evaluation through diffusers draws SD1.5 and SDXL, this model is {FAMILIES[model.kind.family].title}."
            )
        self.model, self.device = model, torch.device(device)
        self.encoders = model.encoders_on(self.device)
        model.network.to(self.device)
        self.layers = LoraLayers(model.network, 1, excluded=())
        self.empty: Conditioning = self.encoders.prompts([""])

    @torch.no_grad()
    def __call__(self, jobs: Sequence[Job]) -> list[Image.Image]:
        """Returns pictures of one arm; the same seed gives the noise that ComfyUI gives.

        Raises: TrainingError for a LoRA that does not fit the model.
        """
        arm, side, count = jobs[0].arm, self.model.resolution // self.model.scale_factor, len(jobs)
        conditioning = self.encoders.prompts([job.prompt for job in jobs])
        empty = {name: tensor.expand(count, *tensor.shape[1:]) for name, tensor in self.empty.items()}
        with self.layers.using(*self._sets(arm)):
            latents = sample_latents(
                self.model.denoiser, conditioning, empty, (count, self.model.latent_channels, side, side), steps=arm.steps,
                num_segments=arm.num_segments, eta=arm.eta, guidance_scale=arm.cfg, seed=[job.noise_seed for job in jobs],
                start_timestep=arm.start_timestep,
            )  # fmt: skip
        return [as_images(self.model.pixels(one).permute(0, 2, 3, 1))[0] for one in latents.split(1)]

    def _sets(self, arm: Arm) -> list[str]:
        """Returns the names of the arm's adapter sets, of which those of other files are given up."""
        names = [f"{use.mark} {number}" for number, use in enumerate(arm.loras)]
        for name in set(self.layers.sets) - set(names):
            del self.layers.sets[name]
        for name, use in zip(names, arm.loras, strict=True):
            if name not in self.layers.sets:
                self._load(name, use)
            adapters = self.layers.sets[name]
            adapters.scale = use.strength * adapters.lora_alpha / adapters.rank
        return names

    def _load(self, name: str, use: LoraUse) -> None:
        tensors = read_tensors(use.path)
        own = max(rank_of(tensors), 1)
        set_from_tensors(tensors, self.layers, name, source=str(use.path), partial=True, rank=own)
