"""The embedded model with its Hyper-SD LoRAs, and the drawings it has learnt from, for the benchmarks that draw with it."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from ..demo.recipe import emoji
from ..models.embedded import CHECKPOINT, LORAS, ONE_STEP, lora_title

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

    def paint(self, prompts: list[str], steps: int, seed: int, lora: int | None = None) -> np.ndarray:
        """Returns a picture of each prompt, uint8 [n, 128, 128, 3].

        Args:
            prompts: what to draw.
            steps: model evaluations.
            seed: of the noise.
            lora: the number of segments of the LoRA, or None for the base.
        """
        settings = {"cfg": CFG} if lora is None else {"cfg": 1.0, "num_segments": lora, "eta": ETA}
        with nullcontext() if lora is None else self.layers.using(str(lora)):
            return generate_all(self.vae, self.denoiser, prompts, steps=steps, seed=seed, **settings)
