"""What the model draws from noise, in few steps and many, with its LoRAs and without: the quality score learns their order."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from tqdm import tqdm

from ...models.embedded import LORAS, ONE_STEP, UNIFIED, LoraKey
from ...samplers.timesteps import LAST_TIMESTEP, ONE_STEP_START
from ...training.export import load_lora
from ...training.lora_layers import LoraLayers
from .distill import UNIFIED as TRAINED_UNIFIED
from .sample import generate
from .train_denoiser import Denoiser

HELD_OUT = 8  # every eighth thing, from the first on, is left out here, for those who measure the score
PROMPTS, TOGETHER, FIRST_SEED = 128, 16, 10**6
DRAWING = -1  # in a ladder: the drawing itself instead of a way of sampling


@dataclass(frozen=True)
class Sampling:
    """A way of sampling, as the demo does it: guidance 4 and no fresh noise without a LoRA; no guidance and eta 0.3 with one.

    Args:
        steps: model evaluations.
        lora: of the embedded model; None for the base.
        start_timestep: of the first step.
    """

    steps: int
    lora: LoraKey | None = None
    start_timestep: int = LAST_TIMESTEP


BASE_STEPS, LORA_STEPS = (1, 2, 3, 4, 6, 8, 12, 25), (1, 2, 4, 8)
SAMPLINGS = (
    *(Sampling(steps) for steps in BASE_STEPS),
    *(Sampling(steps, UNIFIED) for steps in LORA_STEPS),
    Sampling(1, UNIFIED, ONE_STEP_START),
    Sampling(1, ONE_STEP, ONE_STEP_START),
)
# Numbers in SAMPLINGS, from the worst to the best: more steps of one network from the same noise are better, and a drawing is
# better than all. Between the networks the order is that of KID in benchmarks/results/demo_loras.json, wherever it is plain.
LADDERS = (
    (0, 1, 2, 3, 4, 5, 6, 7, DRAWING),  # the base
    (0, 8, 12, 9, 10, 11, DRAWING),  # the unified LoRA, after the base's single step
    (0, 12, 13, 10, DRAWING),  # the one-step LoRA between the unified one's single step and its 4
    (1, 9, DRAWING),  # 2 steps of either
    (3, 10, DRAWING),  # 4 steps of either
)


def chosen_things(count: int) -> list[int]:
    """Returns the numbers of the things that are sampled, in a fixed shuffled order, none of them held out."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(5)).tolist()
    return [thing for thing in order if thing % HELD_OUT][:PROMPTS]


def draw_samples(vae: AutoencoderKL, denoiser: Denoiser, prompts: Sequence[str]) -> np.ndarray:
    """Returns pictures of every prompt, all ways from the same noise, uint8 [prompts, ways, 128, 128, 3].

    Args:
        vae: turns latents into pixels.
        denoiser: of the embedded model, without adapters.
        prompts: what is drawn.
    """
    layers, parts = LoraLayers(denoiser.unet, TRAINED_UNIFIED.rank), []
    try:
        for key in (UNIFIED, ONE_STEP):
            load_lora(LORAS[key], layers, str(key))
        for first in tqdm(range(0, len(prompts), TOGETHER), desc="samples"):
            torch.manual_seed(first)  # of the noise that is added on the way
            some, drawn = list(prompts[first : first + TOGETHER]), []
            for way in SAMPLINGS:
                settings = {"steps": way.steps, "start_timestep": way.start_timestep, "seed": FIRST_SEED + first}
                settings |= {} if way.lora is None else {"cfg": 1.0, "eta": 0.3}
                with nullcontext() if way.lora is None else layers.using(str(way.lora)):
                    drawn.append(generate(vae, denoiser, some, **settings).numpy())
            parts.append(np.stack(drawn, 1))
    finally:
        layers.detach()
    return np.concatenate(parts)
