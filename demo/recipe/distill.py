"""Stage 4: the demo model's own Hyper-SD LoRAs, one run 8 -> 4 -> 2 -> 1 on the drawings the model was trained on."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from ...models.embedded import FOLDER, LORAS, ONE_STEP
from ...samplers.schedule import NoiseSchedule
from ...training.config import Stage, TrainingConfig
from ...training.data.examples import Batch
from ...training.denoiser import Denoiser as TrainedNetwork
from ...training.diffusion import Diffusion
from ...training.export import load_lora, save_lora
from ...training.loop import TrainingState, train
from ...training.lora_layers import LoraLayers
from .sample import encode
from .train_denoiser import Denoiser

# One run through the paper's stages. What counts as real is the target's jump, nearly the student's own: on so small a model
# the adversarial loss stays without effect, and with the data as real it made the images worse.
STAGED = TrainingConfig(
    stages=(Stage(8, 300), Stage(4, 300), Stage(2, 400, 1.0, 0.05), Stage(1, 600, 1.0, 0.1)),
    batch_size=32, learning_rate=2e-3, warmup_steps=30, final_rate=0.1, ema_decay=0.95, guidance_scale=(3.0, 5.0),
    rank=8, precision="bf16", checkpoint_every=100,
)  # fmt: skip
# More of the last stage for the unified LoRA: a single step asks the most. A coarser solver grid looks at the highest timestep
# more often, and a higher rank gives it room.
UNIFIED = replace(
    STAGED, stages=(Stage(1, 1200),), learning_rate=1.5e-3, warmup_steps=50, final_rate=0.02, rank=16, solver_steps=20, seed=7
)
# The paper's last part, on the unified LoRA: score distillation and the teacher's own pictures from the same noise. A higher
# rate destroys a good start.
SCORED = replace(
    UNIFIED, stages=(Stage(1, 300, 0.0, score_weight=0.5, pair_weight=1.0),), batch_size=16, learning_rate=1e-3,
    warmup_steps=20, final_rate=0.05, fake_learning_rate=2e-3, fake_updates=2, fake_warmup=20, pairs=768, pair_steps=25,
    checkpoint_every=50,
)  # fmt: skip
TOTAL_STEPS = STAGED.total_steps + UNIFIED.total_steps + SCORED.total_steps


class Drawings:
    """The training set with captions drawn anew for every batch.

    Args:
        latents: float [count, 4, 16, 16] with deviation 1.
        caption: draws a caption of drawing i.
        denoiser: whose text encoder reads the captions.
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
    out: Path = FOLDER,
) -> Iterator[TrainingState]:
    """Trains all stages, resuming from `folder`, and writes each stage's LoRA into `out` as it ends.

    Yields: the states of all runs, each counting its own steps.
    """
    network = TrainedNetwork(denoiser.unet, Diffusion.from_schedule(NoiseSchedule.from_betas()))
    examples, start = Drawings(latents, caption, denoiser), folder / "unified_start.safetensors"
    files = {segments: out / path.name for (_, segments), path in LORAS.items() if path != LORAS[ONE_STEP]}
    if not start.exists():
        yield from _run(STAGED, network, examples, folder / "staged", {**files, 1: start})
    yield from _run(UNIFIED, network, examples, folder / "unified", files, start)
    yield from _run(SCORED, network, examples, folder / "one_step", {1: out / LORAS[ONE_STEP].name}, files[1])


def distill_one_step(
    latents: torch.Tensor, caption: Callable[[int, random.Random], str], denoiser: Denoiser, folder: Path, out: Path = FOLDER
) -> Iterator[TrainingState]:
    """Trains the one-step LoRA alone, on the unified one that is there; arguments and states are those of distill()."""
    network = TrainedNetwork(denoiser.unet, Diffusion.from_schedule(NoiseSchedule.from_betas()))
    examples, files = Drawings(latents, caption, denoiser), {1: out / LORAS[ONE_STEP].name}
    yield from _run(SCORED, network, examples, folder / "one_step", files, LORAS["unified", 1])


def _run(
    config: TrainingConfig,
    network: TrainedNetwork,
    examples: Drawings,
    folder: Path,
    files: dict[int, Path],
    start: Path | None = None,
) -> Iterator[TrainingState]:
    """Trains one config, from the LoRA `start` if given, and saves the student at the end of each stage."""
    layers = LoraLayers(network.network, config.rank, config.lora_alpha)
    try:
        if start:
            load_lora(start, layers)
        with closing(train(config, network, layers, examples, folder=folder)) as states:
            for state in states:
                if state.stage_finished:
                    path = files[state.stage.num_segments]
                    described = {"title": path.stem, "num_segments": str(state.stage.num_segments)}
                    if state.stage.is_one_step:
                        described["hyper_sd_start_timestep"] = str(config.start_timestep)
                    save_lora(path, layers, metadata=described)
                yield state
    finally:
        layers.detach()
