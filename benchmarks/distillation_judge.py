"""How the students of the digit model are trained and judged: what the distillation benchmarks share."""

from collections.abc import Callable
from pathlib import Path

import torch

from ..evaluation.metrics import fine_energy, kid
from ..training.config import TrainingConfig
from ..training.data.examples import LatentExamples
from ..training.loop import train
from ..training.lora_layers import LoraLayers
from . import digits
from .distillation_arms import GUIDANCE, Draw
from .measure import logger

SAMPLES, CONVERGED = 2000, 50
Measure = Callable[[torch.Tensor, torch.Tensor], float]


def energy_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Returns the unbiased energy distance 2 E|a - b| - E|a - a'| - E|b - b'| of two sets of images.

    Source: Szekely and Rizzo, "Energy statistics", 2013.

    Args:
        a: images [m, ...].
        b: images [n, ...].
    """
    a, b = a.flatten(1).double(), b.flatten(1).double()

    def inside(x: torch.Tensor) -> torch.Tensor:
        return torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))

    return float(2 * torch.cdist(a, b).mean() - inside(a) - inside(b))


class Judge:
    """Scores samples of one seed against the converged teacher and the real digits, class by class.

    Args:
        base: the teacher.
        features: from images [n, 1, 8, 8] to features [n, d].
        real: digits [n, 1, 8, 8].
        real_labels: their classes [n].
        seed: of the noise that all samples start from.
    """

    def __init__(
        self,
        base: digits.DigitNet,
        features: Callable[[torch.Tensor], torch.Tensor],
        real: torch.Tensor,
        real_labels: torch.Tensor,
        seed: int,
    ):
        self.base, self.features, self.seed = base, features, seed
        self.labels = torch.arange(SAMPLES) % digits.CLASSES
        self.reference = self.teach(CONVERGED, 1000 + seed)
        self.real, self.real_labels, self.taught = self._see(real), real_labels, self._see(self.reference)

    @torch.no_grad()
    def _see(self, images: torch.Tensor) -> torch.Tensor:
        return self.features(images)

    def _apart(self, measure: Measure, found: torch.Tensor, reference: torch.Tensor, labels: torch.Tensor) -> float:
        """Returns the distance within a class, its mean over the classes."""
        classes = range(digits.CLASSES)
        return sum(measure(found[self.labels == c], reference[labels == c]) for c in classes) / digits.CLASSES

    def teach(self, steps: int, seed: int) -> torch.Tensor:
        """Returns the teacher's own samples in `steps` DDIM steps, guided with the mean of the training's range."""
        return digits.sample(self.base, self.labels, steps, seed, num_segments=steps, guidance_scale=sum(GUIDANCE) / 2)

    def score(self, images: torch.Tensor) -> dict[str, float]:
        """Returns the distances of samples drawn with this seed's noise."""
        seen = self._see(images)
        return {
            "kid": self._apart(kid, seen, self.taught, self.labels),
            "energy": self._apart(energy_distance, images, self.reference, self.labels),
            "kid_real": self._apart(kid, seen, self.real, self.real_labels),
            "detail": fine_energy(images) / fine_energy(self.reference),
        }

    def draw(self, how: Draw) -> torch.Tensor:
        """Returns samples of the base with whatever adapters are active."""
        settings = {"num_segments": how.num_segments, "eta": how.eta, "start_timestep": how.start_timestep}
        return digits.sample(self.base, self.labels, how.steps, self.seed, **settings)


def student(config: TrainingConfig, base: digits.DigitNet, examples: LatentExamples, folder: Path) -> LoraLayers:
    """Returns the adapters of an arm, trained, or read from the folder where that is done."""
    layers = LoraLayers(base, config.rank, config.lora_alpha)
    for state in train(config, digits.denoiser_of(base), layers, examples, folder=folder):
        if state.stage_finished:
            logger.info("%s: step %d, distance %.4f", folder.name, state.step, state.losses["distance"])
    return layers
