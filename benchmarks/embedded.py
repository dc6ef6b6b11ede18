"""The embedded model with its Hyper-SD LoRAs, and the drawings it has learnt from, for the benchmarks that draw with it."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..demo.recipe import emoji
from ..models.embedded import CHECKPOINT, LORAS, ONE_STEP, lora_title
from ..samplers.timesteps import LAST_TIMESTEP

CFG, ETA = 4.0, 0.3  # of the base without a LoRA; of the unified LoRA
BATCH = 64  # pictures drawn together
TRAINED_ON = (emoji.NOTO, emoji.FLUENT)


class Drawings:
    """The things that the model knows, and what vendors drew of them.

    Args:
        work: the folder where the recipe keeps its emoji.
        further: npm packages of vendors that the model has not seen, name -> version.
    Attributes:
        labels: the names of the things.
    """

    def __init__(self, work: Path, further: Mapping[str, str] | None = None):
        further = further or {}
        modules = emoji.fetch(work, {**emoji.PACKAGES, **further})
        self._concepts = emoji.load_concepts(modules, (*TRAINED_ON, *further))
        self.labels = [concept.label for concept in self._concepts]

    def by(self, vendor: str) -> np.ndarray:
        """Returns a vendor's drawing of each thing, uint8 [n, 128, 128, 3]."""
        return np.stack([emoji.render(concept.svg[vendor]) for concept in self._concepts])

    def trained_on(self) -> tuple[np.ndarray, list[int]]:
        """Returns the drawings of both vendors that the model was trained on, and the number of the thing each one shows."""
        return np.concatenate([self.by(vendor) for vendor in TRAINED_ON]), list(range(len(self.labels))) * len(TRAINED_ON)


def generate_all(vae, denoiser, prompts: list[str], *, seed: int, **settings) -> np.ndarray:
    """Returns a picture of each prompt, uint8 [n, 128, 128, 3]; the settings are those of the recipe's `generate`."""
    from ..demo.recipe.sample import generate

    parts = [prompts[first : first + BATCH] for first in range(0, len(prompts), BATCH)]
    drawn = [generate(vae, denoiser, part, seed=1000 * seed + i, **settings) for i, part in enumerate(parts)]
    return torch.cat(drawn).numpy()


@dataclass(frozen=True)
class Way:
    """How a picture is drawn.

    Args:
        steps: model evaluations.
        lora: name of the Painter's LoRA; None for the base.
        start_timestep: of the first step; less than 999 for one step, which then starts from noise of deviation 1.
    """

    steps: int
    lora: str | None = None
    start_timestep: int = LAST_TIMESTEP


class Painter:
    """The embedded model with its LoRAs as adapter sets, each named by the number of segments it was distilled on.

    The LoRA for one step is called as the nodes call it.
    """

    def __init__(self) -> None:
        from safetensors import safe_open

        from ..demo.recipe.export import load_checkpoint
        from ..training.export import load_lora
        from ..training.lora_layers import LoraLayers

        self.vae, self.denoiser = load_checkpoint(CHECKPOINT)
        # an n-step LoRA has n segments, the unified one 1
        paths = {lora_title(key) if key == ONE_STEP else str(key[1]): path for key, path in LORAS.items()}
        with safe_open(paths["1"], "pt") as file:
            self.layers = LoraLayers(self.denoiser.unet, int(file.metadata()["ss_network_dim"]))
        for name, path in paths.items():
            load_lora(path, self.layers, name)

    def paint(self, prompts: list[str], way: Way, seed: int) -> np.ndarray:
        """Returns a picture of each prompt, uint8 [n, 128, 128, 3].

        Args:
            prompts: what to draw.
            way: how to draw.
            seed: of the noise.
        """
        settings = {"steps": way.steps, "start_timestep": way.start_timestep, "cfg": CFG}
        if way.lora is not None:
            num_segments = int(way.lora) if way.lora.isdigit() else 1
            settings |= {"cfg": 1.0, "num_segments": num_segments, "eta": ETA}
        with nullcontext() if way.lora is None else self.layers.using(way.lora):
            return generate_all(self.vae, self.denoiser, prompts, seed=seed, **settings)
