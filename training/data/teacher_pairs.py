"""Noise and what the teacher makes of it in many steps: the pairs that keep a one-step student near its teacher.

A chunk of pairs, a batch long, is drawn when a step first needs it, and kept in a file. So a run that was stopped draws none
twice, and progress, stopping and time left are those of the steps.
"""

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config import TrainingConfig
from ..denoiser import Denoiser
from ..lora_layers import TEACHER, LoraLayers
from .examples import Batch, BatchOrder, Examples, seeded
from .sealed import CacheError, load_sealed, save_sealed
from .teacher_latents import draw_latents

logger = logging.getLogger("hyper_sd")
FOLDER = "pairs"
PAIR_SEED, ORDER_SEED = 3, 4  # what tells the random numbers of the pairs, and of their order, from a run's other ones
PAIR_DRAW = 2**40  # what the examples of a pair draw anew, such as captions, begins here


@dataclass(frozen=True)
class Pairs:
    """Noise, and what the teacher draws from it.

    Args:
        start: noise of deviation 1, [batch, ...].
        batch: the teacher's pictures as latents, [batch, ...], and their conditioning.
    """

    start: torch.Tensor
    batch: Batch


def _digest(start: bytes, tensors: Mapping[str, torch.Tensor]) -> str:
    """Returns a short name for bytes and the values of tensors."""
    digest = hashlib.sha256(start)
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:8]


class TeacherPairs:
    """The pairs of a run, whose prompts are those of its examples.

    Args:
        config: of the run; the guidance is the middle of its range.
        denoiser: the network.
        layers: whose set "teacher", if there is one, draws.
        examples: whose prompts are drawn.
        device: of the network.
        folder: that keeps them; None keeps them in memory.
        context: returns what each call of the network runs in, for example autocast.
    """

    def __init__(
        self,
        config: TrainingConfig,
        denoiser: Denoiser,
        layers: LoraLayers,
        examples: Examples,
        device: torch.device,
        folder: Path | None,
        context: Callable[[], AbstractContextManager],
    ):
        self.config, self.denoiser, self.layers, self.examples = config, denoiser, layers, examples
        self.device, self.context = device, context
        self.order = BatchOrder(examples.buckets, config.batch_size, config.seed + PAIR_SEED)
        self.chunks = -(-config.pairs // config.batch_size)
        self.folder = folder / FOLDER / self._mark() if folder else None
        self.memory: dict[str, torch.Tensor] = {}

    def _mark(self) -> str:
        """Names what decides the pairs, so that those of other settings or of another teacher are not taken for them."""
        config = self.config
        decisive = [config.seed, config.batch_size, config.pair_steps, self._guidance, [len(b) for b in self.examples.buckets]]
        taught = self.layers.sets[TEACHER].state_dict() if TEACHER in self.layers.sets else {}
        return _digest(json.dumps(decisive).encode(), taught)

    @property
    def _guidance(self) -> float:
        return sum(self.config.guidance_scale) / 2

    def part(self, step: int, rows: slice) -> Pairs:
        """Returns rows of the chunk that belongs to a step; every chunk once, then all again in another order.

        Args:
            step: counted from 0 over the whole run.
            rows: of the chunk.
        Raises: TrainingError where the pairs cannot be kept.
        """
        turn, place = divmod(step, self.chunks)
        chunk = int(torch.randperm(self.chunks, generator=seeded(self.config.seed, ORDER_SEED, turn))[place])
        first = chunk * self.config.batch_size
        given = self.examples.batch(self.order.numbers(chunk)[rows], PAIR_DRAW + first + rows.start).to(self.device)
        shape = (self.config.batch_size, *given.latents.shape[1:])
        start = torch.randn(shape, generator=seeded(self.config.seed, PAIR_SEED, chunk))[rows].to(self.device)
        name = f"{chunk:06d}-{rows.start}-{rows.stop}-{_digest(b'', given.conditioning)}"
        latents = self._kept(name, start.shape)
        if latents is None:
            latents = self._draw(start, given)
            self._keep(name, latents)
        return Pairs(start, Batch(latents.to(self.device), given.conditioning, given.unconditional))

    def _draw(self, start: torch.Tensor, given: Batch) -> torch.Tensor:
        with self.layers.using(TEACHER if TEACHER in self.layers.sets else None):
            steps = draw_latents(
                self.denoiser, start, given.conditioning, given.unconditional,
                steps=self.config.pair_steps, guidance_scale=self._guidance, context=self.context,
            )  # fmt: skip
            return deque(steps, maxlen=1)[0][1].float()

    def _kept(self, name: str, shape: torch.Size) -> torch.Tensor | None:
        if self.folder is None:
            return self.memory.get(name)
        path = self._path(name)
        try:
            latents = load_sealed(path).get("latents")
        except CacheError:
            latents = None
        if latents is not None and latents.shape == shape and latents.is_floating_point() and latents.isfinite().all():
            return latents
        if path.exists():
            logger.warning("The pairs in %s are damaged or of a version without digests, and are drawn anew.", path)
        return None

    def _keep(self, name: str, latents: torch.Tensor) -> None:
        if self.folder is None:
            self.memory[name] = latents
        else:
            save_sealed(self._path(name), {"latents": latents})

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"
