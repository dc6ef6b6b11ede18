"""Stage 7: the scorers of the embedded model's world, three small networks in one file; see rewards/embedded.py."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from ...disk import whole_file
from ...models.embedded import TOKENIZER
from ...rewards.embedded import INSTANCES, MATCH, QUALITY, EmbeddedMatch, EmbeddedQuality, tokenizer
from ...rewards.instances import InstanceNet, Instances
from ...training.data.examples import seeded
from .emoji import SUBGROUPS
from .scorer_data import LEVELS, World, as_floats, moved, paste
from .scorer_samples import DRAWING, HELD_OUT, LADDERS, SAMPLINGS
from .train_denoiser import load_state, save_state

SAVE_EVERY = 50  # steps
CLEAR = 700  # a rendition from a higher timestep may show another thing than its drawing
SHARPNESS = 20.0  # of the softmax over cosines, at the start; it is learnt
CLEAN_STEPS, TIE = 4, 0.05  # samples of fewer steps are not clean; weight of the drawings' squared distance from 10


@dataclass(frozen=True)
class Training:
    """How one of the networks is trained.

    Args:
        prefix: of its tensors in the file.
        steps: optimizer steps.
        batch: pictures a step.
        learning_rate: the highest; it rises for a tenth of the steps and falls to nothing.
    """

    prefix: str
    steps: int
    batch: int
    learning_rate: float


TRAININGS = (Training(MATCH, 1200, 128, 2e-3), Training(QUALITY, 700, 64, 2e-3), Training(INSTANCES, 1400, 32, 2e-3))
TOTAL_STEPS = sum(training.steps for training in TRAININGS)


class MatchTraining(nn.Module):
    """Learns which of a batch's captions belongs to which picture, each thing at most once in a batch; source: CLIP."""

    def __init__(self, world: World, caption: Callable[[int, random.Random], str], batch: int):
        super().__init__()
        self.scorer = EmbeddedMatch(tokenizer(TOKENIZER))
        self.sharpness = nn.Parameter(torch.tensor(SHARPNESS).log())
        self.world, self.caption, self.batch = world, caption, batch

    def forward(self, step: int, generator: torch.Generator) -> torch.Tensor:
        """Returns the mean cross entropy of both directions."""
        things = len(self.world.images) // 2
        picked = torch.randperm(things, generator=generator)[: self.batch]
        picked = picked + things * torch.randint(2, picked.shape, generator=generator)  # of either vendor
        level = torch.randint(-2, LEVELS, picked.shape, generator=generator)
        pictures = []
        for number, one in zip(picked.tolist(), level.tolist(), strict=True):
            is_drawing = one < 0 or self.world.timesteps[number, one] > CLEAR
            pictures.append(self.world.images[number] if is_drawing else self.world.renditions[number, one])
        images = moved(torch.cat([as_floats(picture[None]) for picture in pictures]), generator)
        rng = random.Random(step)
        words = self.scorer.words([self.caption(number, rng) for number in picked.tolist()])
        alike = self.sharpness.exp().clamp(max=100) * self.scorer.pictures(images) @ words.mT
        own = torch.arange(len(picked))
        return (F.cross_entropy(alike, own) + F.cross_entropy(alike.mT, own)) / 2


class QualityTraining(nn.Module):
    """Learns which of two pictures is better, -log sigmoid(better - worse), and that a drawing's score is 10.

    Half of the pairs are samples of one thing from the same noise, or a sample and the drawing of that thing. The others are
    a clean picture and the same one with noise, with blur, or with another one shining through. Nothing held out is among them.
    """

    def __init__(self, world: World, batch: int):
        super().__init__()
        self.scorer, self.world, self.count = EmbeddedQuality(), world, batch // 4
        self.things = len(world.images) // 2
        self.known = [number for number in range(len(world.images)) if number % self.things % HELD_OUT]
        self.pairs = [pair for ladder in LADDERS for pair in combinations(ladder, 2)]
        self.clean = [number for number, way in enumerate(SAMPLINGS) if way.steps >= CLEAN_STEPS]

    def forward(self, step: int, generator: torch.Generator) -> torch.Tensor:
        """Returns the mean loss of the pairs, and what the drawings' distance from 10 costs."""
        worse, better = (moved(as_floats(np.stack(side)), generator) for side in zip(*self._pairs(generator), strict=True))
        clean = moved(as_floats(np.stack(list(self._clean(generator)))), generator)
        scores = self.scorer.rate(torch.cat([worse, spoilt(clean, generator), better, clean]), [])
        low, high = scores.chunk(2)
        drawings = scores[-len(clean) :: 2]
        return TIE * (drawings - 10).square().mean() - F.logsigmoid(high - low).mean()

    def _pairs(self, generator: torch.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields pairs of pictures of one thing, the worse one first."""
        for _ in range(self.count):
            pair, row, vendor = (_draw(n, generator) for n in (len(self.pairs), len(self.world.sampled), 2))
            drawing = self.world.images[self.world.sampled[row] + self.things * vendor]
            worse, better = (drawing if way == DRAWING else self.world.samples[row, way] for way in self.pairs[pair])
            yield worse, better

    def _clean(self, generator: torch.Generator) -> Iterator[np.ndarray]:
        """Yields drawings and clean samples in turn."""
        for place in range(self.count):
            if place % 2:
                row, way = _draw(len(self.world.sampled), generator), self.clean[_draw(len(self.clean), generator)]
                yield self.world.samples[row, way]
            else:
                yield self.world.images[self.known[_draw(len(self.known), generator)]]


def _draw(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (1,), generator=generator))


def spoilt(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Returns pictures [n, 3, h, w] with noise, with blur, or with another one shining through, a little of it or much.

    Args:
        images: from 0 to 1.
        generator: decides what is done to each, and how strongly.
    """
    how = torch.randint(3, (len(images), 1, 1, 1), generator=generator)
    amount = 0.1 + 0.9 * torch.rand(len(images), 1, 1, 1, generator=generator)
    noisy = (images + 0.25 * amount * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    coarse = F.interpolate(F.avg_pool2d(images, 8), images.shape[2:], mode="bilinear")
    blurred, ghost = torch.lerp(images, coarse, amount), torch.lerp(images, images.roll(1, 0), 0.5 * amount)
    return torch.where(how == 0, noisy, torch.where(how == 1, blurred, ghost))


class InstanceTraining(nn.Module):
    """Learns what is where on pages with one to three drawings, and on clear renditions of one."""

    def __init__(self, world: World, batch: int):
        super().__init__()
        self.scorer, self.world, self.batch, self.masks = InstanceNet(len(SUBGROUPS)), world, batch, world.masks()

    def forward(self, step: int, generator: torch.Generator) -> torch.Tensor:
        """Returns SOLO's loss."""
        pages, labels = zip(*(self._page(generator) for _ in range(self.batch)), strict=True)
        return self.scorer.loss(torch.cat([as_floats(page[None]) for page in pages]), labels)

    def _page(self, generator: torch.Generator):
        number, level, kind = (int(torch.randint(n, (1,), generator=generator)) for n in (len(self.masks), LEVELS, 3))
        if kind or self.world.timesteps[number, level] > CLEAR:
            return paste(self.world, generator)
        return self.world.renditions[number, level], Instances(
            self.masks[number][None], torch.tensor([self.world.kinds[number]])
        )


def train(world: World, caption: Callable[[int, random.Random], str], work: Path, out: Path) -> Iterator[tuple[str, float]]:
    """Trains all three, resuming from `work`, writes them into one file, and yields (which, loss) after every step.

    Args:
        world: what they learn from.
        caption: draws a caption of drawing i.
        work: the folder of the checkpoints.
        out: the file that is written, in fp16.
    """
    tensors = {}
    for number, training in enumerate(TRAININGS):
        torch.manual_seed(number)
        network = _network(training, world, caption)
        for loss in _run(network, training, work / f"scorer_{training.prefix}pt", number):
            yield training.prefix, loss
        state = network.scorer.state_dict()
        tensors |= {training.prefix + name: value.half().contiguous() for name, value in state.items()}
    with whole_file(out) as partial:
        save_file(tensors, partial, metadata={"title": "The scorers of the Hyper-SD demo model", "kinds": ", ".join(SUBGROUPS)})


def _network(training: Training, world: World, caption: Callable[[int, random.Random], str]) -> nn.Module:
    if training.prefix == MATCH:
        return MatchTraining(world, caption, training.batch)
    return {QUALITY: QualityTraining, INSTANCES: InstanceTraining}[training.prefix](world, training.batch)


def _run(network: nn.Module, training: Training, checkpoint: Path, seed: int) -> Iterator[float]:
    """Trains one network to its end and yields the losses."""
    parameters, rng, start = list(network.parameters()), random.Random(0), 0
    optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate, betas=(0.9, 0.99), weight_decay=0.02)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.learning_rate, total_steps=training.steps, pct_start=0.1)
    parts = {"model": network, "optimizer": optimizer, "rate": rate}
    if checkpoint.exists():
        start = load_state(checkpoint, parts, rng)["step"]
    for step in range(start + 1, training.steps + 1):
        loss = network(step, seeded(seed, step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        rate.step()
        if step % SAVE_EVERY == 0 or step == training.steps:
            save_state(checkpoint, parts, {"step": step, "python_rng": list(rng.getstate())})
        yield loss.item()
