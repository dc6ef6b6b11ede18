"""Sheets of samples that show how a training goes: the sampler of both hosts, on the network that is being trained."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from ..evaluation.contact_sheet import contact_sheet
from ..samplers.timesteps import LAST_TIMESTEP
from .config import Stage
from .job import Job
from .lora_layers import LoraLayers
from .phases import stage_in_words
from .presets import Phase
from .sampling import sample_latents

logger = logging.getLogger("hyper_sd")
STEPS = (1, 4, 8)
CAPTIONS = 3
TIMES, SHARE = 8, 0.05  # sheets of a training, and the most of its time that they may take
TILE = 512  # pixels of an image on the sheet


@dataclass
class Previews:
    """Draws and keeps the sheets of samples of a training: the same captions and noise every time, at 1, 4 and 8 steps.

    A phase for one step is drawn at that step alone, from where it starts.

    Args:
        job: the training.
        name: of the training, for the sheet's title.
        every: steps between two sheets; 0 is about TIMES a training, within SHARE of its time.
        cfg: of a phase that is not distilled.
        decode: latents [count, ...] as the network sees them -> images.
        restore: called after each sheet, since decoding may have moved the network off its device.
        sheet: the latest one.
    """

    job: Job
    name: str
    every: int
    cfg: float
    decode: Callable[[torch.Tensor], list[Image.Image]]
    restore: Callable[[], None] = lambda: None
    sheet: Image.Image | None = None
    _spent: float = 0.0
    _latest: float = 0.0
    _began: float = field(default_factory=time.monotonic)

    def due(self, steps_done: int) -> bool:
        """Returns whether a sheet is to be drawn after so many steps; the one at the end is drawn anyway."""
        if steps_done >= self.job.total_steps:
            return False
        if self.every:
            return steps_done % self.every == 0
        if steps_done % max(self.job.total_steps // TIMES, 1):
            return False
        return not self._spent or self._spent + self._latest <= SHARE * (time.monotonic() - self._began)

    def draw_sheet(self, phase: Phase, layers: LoraLayers, stage: Stage, steps_done: int) -> Image.Image | None:
        """Draws, keeps and returns a sheet; an error is logged, since it must not end the training.

        Args:
            phase: that is trained.
            layers: with the set "student".
            stage: whose segments a distilled phase is sampled with.
            steps_done: of all phases.
        """
        before = time.monotonic()
        try:
            with torch.no_grad():
                self.sheet = self._sheet(phase, layers, stage, steps_done)
            self.path(steps_done).parent.mkdir(parents=True, exist_ok=True)
            self.sheet.save(self.path(steps_done))
            return self.sheet
        except Exception as error:  # whatever a VAE, a previewer or a disk raises; a person's stop is no Exception
            logger.warning("No preview after step %d: %s", steps_done, error)
            return None
        finally:
            self.restore()
            self._latest = time.monotonic() - before
            self._spent += self._latest

    def last_sheet(self, phase: Phase, layers: LoraLayers) -> None:
        """Takes the sheet of a training that had ended before, or draws one."""
        self.sheet = self.finished() or self.draw_sheet(phase, layers, phase.config.stages[-1], self.job.total_steps)

    def path(self, steps_done: int) -> Path:
        """Returns where the sheet after so many steps is kept."""
        return self.job.folder / f"samples_{steps_done:06}.png"

    def finished(self) -> Image.Image | None:
        """Returns the sheet of a training that had ended before, None where there is none."""
        try:
            with Image.open(self.path(self.job.total_steps)) as image:
                return image.convert("RGB")
        except OSError:
            return None

    def _sheet(self, phase: Phase, layers: LoraLayers, stage: Stage, steps_done: int) -> Image.Image:
        numbers, size = self.job.examples.buckets[0][:CAPTIONS], phase.config.part_size()
        feedback, is_style = phase.config.feedback, phase.config.objective == "finetune"
        cfg, segments = (self.cfg, 1) if is_style else (1, feedback.num_segments if feedback else stage.num_segments)
        parts = [numbers[first : first + size] for first in range(0, len(numbers), size)]  # as many at once as are trained on
        counts, start = ((1,), phase.config.start_timestep) if stage.is_one_step else (STEPS, LAST_TIMESTEP)
        counts, start = (feedback.steps, feedback.start_timestep) if feedback else (counts, start)
        images = [image for part in parts for image in self._images(layers, part, cfg, segments, counts, start)]
        labels = [f"caption {row}, {n} step{'s' if n > 1 else ''}" for row in range(1, len(numbers) + 1) for n in counts]
        title = f"{self.name}: {stage_in_words(phase, stage)}, step {steps_done} of {self.job.total_steps}"
        return contact_sheet(images, labels, len(counts) if len(counts) > 1 else len(images), title)

    def _images(
        self, layers: LoraLayers, numbers: Sequence[int], cfg: float, segments: int, counts: Sequence[int], start: int
    ) -> list[Image.Image]:
        """Returns the images of some captions: of each one, an image for each number of steps, a single one from `start`."""
        trainee, latents = self.job.trainee, []
        batch = self.job.examples.batch(numbers, 0).to(trainee.engine.device)
        with trainee.engine.autocast(trainee.denoiser), layers.using(*layers.drawing):
            for steps in counts:
                drawn = sample_latents(
                    trainee.denoiser, batch.conditioning, batch.unconditional, batch.latents.shape,
                    steps=steps, num_segments=min(segments, steps), guidance_scale=cfg, seed=numbers[0],
                    start_timestep=start if steps == 1 else LAST_TIMESTEP,
                )  # fmt: skip
                latents.append(drawn.float())
        images = self.decode(torch.stack(latents, 1).flatten(0, 1))
        for image in images:
            image.thumbnail((TILE, TILE))
        return images


def as_images(pixels: torch.Tensor) -> list[Image.Image]:
    """Returns pictures [count, height, width, 3] in 0..1 as images; values outside are clipped."""
    return [Image.fromarray(picture) for picture in (pixels.float().cpu().clamp(0, 1) * 255).round().byte().numpy()]
