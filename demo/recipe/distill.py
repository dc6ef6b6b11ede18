"""Stage 4: the demo model's own Hyper-SD LoRAs, one run 8 -> 4 -> 2 -> 1 on the drawings the model was trained on."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import torch

from ...samplers.schedule import NoiseSchedule
from ...training.config import Stage, TrainingConfig
from ...training.data import Batch
from ...training.denoiser import Denoiser as TrainedNetwork
from ...training.diffusion import Diffusion
from ...training.export import save_lora
from ...training.loop import TrainingState, train
from ...training.lora_layers import LoraLayers
from .networks import MODEL_FOLDER
from .sample import encode
from .train_denoiser import Denoiser

RANK = 8
CONFIG = TrainingConfig(
    stages=(Stage(8, 300), Stage(4, 300), Stage(2, 400, 1.0, 0.05), Stage(1, 600, 1.0, 0.1)),
    batch_size=32, learning_rate=2e-3, warmup_steps=30, final_rate=0.1, ema_decay=0.95, guidance_scale=(3.0, 5.0),
    rank=RANK, precision="bf16", checkpoint_every=100,
)  # fmt: skip
FILES = {k: f"hyper_sd_demo_{k}step{'s' if k > 1 else ''}_lora" for k in (8, 4, 2, 1)}


class Drawings:
    """The training set with captions drawn anew for every batch.

    Args: latents: [count, 4, 16, 16] with deviation 1; caption: draws a caption of drawing i.
    """

    def __init__(self, latents: torch.Tensor, caption: Callable[[int, random.Random], str], denoiser: Denoiser):
        self.latents, self.caption, self.denoiser = latents, caption, denoiser
        self.empty = encode(denoiser, [""])

    @property
    def buckets(self) -> list[list[int]]:
        return [list(range(len(self.latents)))]

    def batch(self, numbers: Sequence[int], draw: int) -> Batch:
        captions = [self.caption(number, random.Random(draw + j)) for j, number in enumerate(numbers)]
        context = encode(self.denoiser, captions)
        return Batch(self.latents[list(numbers)], {"context": context}, {"context": self.empty.expand(len(numbers), -1, -1)})


def distill(
    latents: torch.Tensor,
    caption: Callable[[int, random.Random], str],
    denoiser: Denoiser,
    folder: Path,
    out: Path = MODEL_FOLDER,
    config: TrainingConfig = CONFIG,
) -> Iterator[TrainingState]:
    """Trains all stages, resuming from `folder`, and writes each stage's LoRA into `out` as it ends."""
    network = TrainedNetwork(denoiser.unet, Diffusion.from_schedule(NoiseSchedule.from_betas()))
    examples, layers = Drawings(latents, caption, denoiser), LoraLayers(denoiser.unet, config.rank, config.lora_alpha)
    try:
        with closing(train(config, network, layers, examples, folder=folder)) as states:
            for state in states:
                if state.stage_finished:
                    segments = state.stage.num_segments
                    described = {"title": FILES[segments], "num_segments": str(segments), "trained_steps": str(state.step)}
                    save_lora(out / f"{FILES[segments]}.safetensors", layers, metadata=described)
                yield state
    finally:
        layers.detach()
