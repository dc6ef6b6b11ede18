"""What the loop trains on: examples as latents with conditioning, and the order in which they come."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch

from ..errors import TrainingError

Conditioning = dict[str, torch.Tensor]  # what the network takes besides latents and time, every tensor [batch, ...]


@dataclass(frozen=True)
class Batch:
    """Latents [batch, ...] as the network sees them (scaled), their conditioning, and that of the empty prompt."""

    latents: torch.Tensor
    conditioning: Conditioning
    unconditional: Conditioning

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Batch":
        """Returns the batch on `device`, floating tensors in `dtype`."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, dtype if tensor.is_floating_point() else None, non_blocking=True)

        moved = ({key: move(t) for key, t in part.items()} for part in (self.conditioning, self.unconditional))
        return Batch(move(self.latents), *moved)


class Examples(Protocol):
    """A numbered set of examples. Those of one bucket have latents of one shape and may share a batch."""

    @property
    def buckets(self) -> Sequence[Sequence[int]]:
        """The numbers of the examples, grouped by shape; every number once."""

    def batch(self, numbers: Sequence[int], draw: int) -> Batch:
        """Returns the examples of these numbers, all of one bucket.

        Args: draw: what is drawn anew for the j-th of them is seeded with draw + j, so that any split of a batch draws alike.
        """


class LatentExamples:
    """Examples held in memory.

    Args:
        latents: [count, ...], scaled as the network sees them.
        conditioning: tensors [count, ...].
        unconditional: tensors [1, ...] of the empty prompt; may be left out when no guidance is used.
    Raises: TrainingError when there are none, or counts differ.
    """

    def __init__(self, latents: torch.Tensor, conditioning: Conditioning, unconditional: Conditioning | None = None):
        counts = {name: len(tensor) for name, tensor in {"latents": latents, **conditioning}.items()}
        if not len(latents) or len(set(counts.values())) > 1:
            raise TrainingError(f"Training needs at least one example and one caption for each, got {counts}.")
        self.latents, self.conditioning, self.unconditional = latents, conditioning, unconditional or {}

    @property
    def buckets(self) -> list[list[int]]:
        return [list(range(len(self.latents)))]

    def batch(self, numbers: Sequence[int], draw: int) -> Batch:
        picks = list(numbers)
        unconditional = {k: t.expand(len(picks), *t.shape[1:]) for k, t in self.unconditional.items()}
        return Batch(self.latents[picks], {k: t[picks] for k, t in self.conditioning.items()}, unconditional)


def seeded(*numbers: int) -> torch.Generator:
    """Returns a CPU generator for this tuple of non-negative numbers, unrelated to that of any other tuple."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)


class BatchOrder:
    """The numbers of every batch as a pure function of the step, so that a resumed run needs no saved data order.

    Each epoch shuffles every bucket, cuts it into full batches (the last one is filled up with the bucket's first examples of
    that epoch) and shuffles the batches.

    Args: buckets: as Examples.buckets; batch_size: of all processes together.
    """

    def __init__(self, buckets: Sequence[Sequence[int]], batch_size: int, seed: int):
        self.buckets, self.batch_size, self.seed = [tuple(b) for b in buckets if b], batch_size, seed
        self.batches_per_epoch = sum(-(-len(bucket) // batch_size) for bucket in self.buckets)
        self._epoch = lru_cache(maxsize=2)(self._shuffle)

    def _shuffle(self, epoch: int) -> list[list[int]]:
        generator, batches = seeded(self.seed, epoch), []
        for bucket in self.buckets:
            order = [bucket[i] for i in torch.randperm(len(bucket), generator=generator).tolist()]
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                batches.append((batch + order * self.batch_size)[: self.batch_size])
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def numbers(self, step: int) -> list[int]:
        """Returns the numbers of the examples of batch `step`, counted from 0."""
        epoch, position = divmod(step, self.batches_per_epoch)
        return self._epoch(epoch)[position]


def rows(tensors: Mapping[str, torch.Tensor], part: slice) -> dict[str, torch.Tensor]:
    """Returns the rows `part` of every tensor."""
    return {name: tensor[part] for name, tensor in tensors.items()}
