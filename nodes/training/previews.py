"""Sample images of a training, on one sheet: the same captions and noise every time, at 1, 4 and 8 steps."""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_management
import latent_preview
import numpy as np
import torch
from PIL import Image

from ...evaluation.contact_sheet import contact_sheet
from ...training.config import Stage
from ...training.lora_layers import STUDENT, LoraLayers
from ...training.phases import Job, worded
from ...training.presets import Phase
from ...training.preview import draw

logger = logging.getLogger("hyper_sd")
STEPS = (1, 4, 8)
CAPTIONS = 3
TIMES, SHARE = 8, 0.05  # previews of a run, and the most of its time that they may take
TILE = 512  # pixels of an image on the sheet


@dataclass
class Previews:
    """Draws and keeps the sheets of a run.

    Args:
        every: steps between two sheets; 0 is about TIMES a run, within SHARE of its time.
        cfg: of a phase that is not distilled.
        vae: decodes them; None takes the host's own preview of latents.
    """

    job: Job
    name: str
    every: int
    cfg: float
    vae: Any = None
    spent: float = 0.0
    latest: float = 0.0
    sheet: Image.Image | None = None
    began: float = field(default_factory=time.monotonic)

    def due(self, done: int) -> bool:
        """Returns whether a sheet is to be drawn after `done` steps; the one at the end is drawn anyway."""
        if done >= self.job.total_steps:
            return False
        if self.every:
            return done % self.every == 0
        if done % max(self.job.total_steps // TIMES, 1):
            return False
        return not self.spent or self.spent + self.latest <= SHARE * (time.monotonic() - self.began)

    def draw(self, phase: Phase, layers: LoraLayers, stage: Stage, done: int) -> Image.Image | None:
        """Draws, keeps and returns a sheet; what goes wrong is logged, for a training must not end with it."""
        before = time.monotonic()
        try:
            with torch.no_grad():
                self.sheet = self._sheet(phase, layers, stage, done)
            self.sheet.save(self.path(done))
            return self.sheet
        except comfy.model_management.InterruptProcessingException:
            raise
        except Exception as error:  # whatever a VAE, a previewer or a disk comes up with
            logger.warning("No preview after step %d: %s", done, error)
            return None
        finally:
            self.job.host.load()  # a VAE may have pushed a part of the model off the device
            self.latest = time.monotonic() - before
            self.spent += self.latest

    def path(self, done: int) -> Path:
        """Returns where the sheet after `done` steps is kept."""
        return self.job.folder / f"samples_{done:06}.png"

    def finished(self) -> Image.Image | None:
        """Returns the sheet of a run that ended before, None where there is none."""
        try:
            with Image.open(self.path(self.job.total_steps)) as image:
                return image.convert("RGB")
        except OSError:
            return None

    def _sheet(self, phase: Phase, layers: LoraLayers, stage: Stage, done: int) -> Image.Image:
        numbers, size = self.job.examples.buckets[0][:CAPTIONS], phase.config.part_size()
        distilled = phase.config.objective == "tscd"
        cfg, segments = (1, stage.num_segments) if distilled else (self.cfg, 1)
        parts = [numbers[first : first + size] for first in range(0, len(numbers), size)]  # as many at once as are trained on
        images = [image for part in parts for image in self._images(layers, part, cfg, segments)]
        labels = [f"caption {row}, {n} step{'s' if n > 1 else ''}" for row in range(1, len(numbers) + 1) for n in STEPS]
        title = f"{self.name}: {worded(phase, stage)}, step {done} of {self.job.total_steps}"
        return contact_sheet(images, labels, len(STEPS), title)

    def _images(self, layers: LoraLayers, numbers: list[int], cfg: float, segments: int) -> list[Image.Image]:
        """Returns the images of some captions: of each one, an image for each number of steps."""
        host, drawn = self.job.host, []
        batch = self.job.examples.batch(numbers, 0).to(host.device)
        with host.engine().autocast(), layers.using(STUDENT):
            for steps in STEPS:
                latents = draw(
                    host.denoiser, batch.conditioning, batch.unconditional, batch.latents.shape,
                    steps=steps, num_segments=min(segments, steps), guidance_scale=cfg, seed=numbers[0],
                )  # fmt: skip
                drawn.append(latents.float())
        return self._decoded(torch.stack(drawn, 1).flatten(0, 1))

    def _decoded(self, latents: torch.Tensor) -> list[Image.Image]:
        if self.vae is None:
            return _without_vae(self.job.host, latents)
        pixels = self.vae.decode(self.job.host.model.process_latent_out(latents)).float().cpu()
        images = [Image.fromarray(image) for image in (pixels.clamp(0, 1) * 255).round().byte().numpy()]
        for image in images:
            image.thumbnail((TILE, TILE))
        return images


def _without_vae(host: Any, latents: torch.Tensor) -> list[Image.Image]:
    """Returns what the host shows while it samples, or would show with its previews turned on."""
    known = host.model.latent_format
    previewer = latent_preview.get_previewer(host.device, known)
    if previewer is None:
        bias = getattr(known, "latent_rgb_factors_bias", None)
        previewer = latent_preview.Latent2RGBPreviewer(known.latent_rgb_factors, bias)
    return [previewer.decode_latent_to_preview_image("JPEG", row[None])[1] for row in latents]


def as_image(sheet: Image.Image | None) -> torch.Tensor:
    """Returns a sheet as the host's IMAGE [1, height, width, 3] in 0..1; a small white one for none."""
    sheet = sheet or Image.new("RGB", (64, 64), "white")
    return torch.from_numpy(np.asarray(sheet.convert("RGB"), dtype=np.float32) / 255)[None]
