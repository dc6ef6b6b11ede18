"""What the loop trains on: examples as latents with conditioning, and the order in which they come."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch

from ...errors import TrainingError

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

        Args:
            numbers: of the examples.
            draw: what is drawn anew for the j-th of them is seeded with draw + j, so that any split of a batch draws alike.
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

    Args:
        buckets: as Examples.buckets.
        batch_size: of all processes together.
        seed: of the shuffling.
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


@dataclass(frozen=True)
class Group:
    """Latents of one size [count, 4, height, width] as the network sees them, with one caption each, and the empty prompt's."""

    latents: torch.Tensor
    captions: tuple[Conditioning, ...]
    empty: Conditioning


class GroupedExamples:
    """Examples in memory, a bucket for every size.

    Args: groups: at least one, none empty.
    """

    def __init__(self, groups: Sequence[Group]):
        self.groups = tuple(groups)
        self._places = [(group, row) for group in self.groups for row in range(len(group.latents))]

    @property
    def buckets(self) -> list[list[int]]:
        ends, found = 0, []
        for group in self.groups:
            found.append(list(range(ends, ends + len(group.latents))))
            ends += len(group.latents)
        return found

    def batch(self, numbers: Sequence[int], draw: int) -> Batch:
        """Returns the examples of these numbers, all of one bucket."""
        picked = [self._places[number] for number in numbers]
        group = picked[0][0]
        latents = torch.stack([group.latents[row] for _, row in picked])
        captions, empty = [group.captions[row] for _, row in picked], group.empty
        joined = stacked([*captions, empty] if empty else captions)
        conditioning = {name: tensor[: len(picked)] for name, tensor in joined.items()}
        unconditional = {name: t[-1:].expand(len(picked), *t.shape[1:]) for name, t in joined.items()} if empty else {}
        return Batch(latents, conditioning, unconditional)

    def fingerprint(self) -> str:
        """Returns a hash over everything that is trained on."""
        digest = hashlib.sha256()
        for group in self.groups:
            for tensors in ({"latents": group.latents}, *group.captions, group.empty):
                for name, tensor in tensors.items():
                    digest.update(f"{name} {list(tensor.shape)}".encode())
                    digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


def stacked(rows: Sequence[Conditioning]) -> Conditioning:
    """Returns conditionings [1, ...] as one [count, ...]; texts of different lengths are repeated to a common one.

    Attention over a text that stands there twice is attention over the text, as the host uses it too.
    """
    tokens = math.lcm(*(row["context"].shape[1] for row in rows))
    contexts = [row["context"].repeat(1, tokens // row["context"].shape[1], 1) for row in rows]
    others = {name: torch.cat([row[name] for row in rows]) for name in rows[0] if name != "context"}
    return {"context": torch.cat(contexts), **others}


def flat_entries(conditionings: Sequence[list]) -> list[list]:
    """Returns the entries of several CONDITIONINGs in order; one that holds several texts at once is taken apart."""
    found = []
    for states, options in (entry for conditioning in conditionings for entry in conditioning):
        count, pooled = len(states), options.get("pooled_output")
        for row in range(count):
            own = pooled if pooled is None or len(pooled) != count else pooled[row : row + 1]
            found.append([states[row : row + 1], {**options, "pooled_output": own}])
    return found


def grouped_examples(
    latents: Sequence[Mapping[str, Any]],
    positive: Sequence[list],
    negative: Sequence[list],
    *,
    as_latents: Callable[[torch.Tensor], torch.Tensor],
    as_conditioning: Callable[[list, torch.Tensor, str], Conditioning],
) -> GroupedExamples:
    """Returns what the nodes of a host gave as examples.

    Args:
        latents: LATENTs of any sizes, each a mapping with "samples".
        positive: CONDITIONINGs with an entry for each of their images, or one for all.
        negative: CONDITIONINGs of the empty prompt, or none.
        as_latents: brings samples [count, channels, height, width] to what the network sees.
        as_conditioning: brings an entry to what the network takes; it is given latents [1, ...] of that size, and the name of
            the input.
    Raises: TrainingError when counts differ, nothing is there, or latents and texts belong to another kind of model.
    """
    samples = [as_latents(latent["samples"]) for latent in latents]
    entries, count = flat_entries(positive), sum(map(len, samples))
    if not count or len(entries) not in (1, count):
        raise TrainingError(
            f"Training needs one caption for each image, or one for all: got {count} latents and {len(entries)} entries of "
            "positive. Wire latents and positive from the same data node."
        )
    broken = [number for number, x in enumerate((x for group in samples for x in group), 1) if not bool(x.isfinite().all())]
    if broken:
        raise TrainingError(f"Latent {broken[0]} of {count} has values that are not finite; encode its image again, in fp32.")
    waiting, by_size = iter(entries * count if len(entries) == 1 else entries), {}
    for group in samples:
        rows_of_size, captions = by_size.setdefault(tuple(group.shape[2:]), ([], []))
        rows_of_size.append(group)
        captions += [next(waiting) for _ in group]
    empty = flat_entries(negative)[:1]
    return GroupedExamples([_group(as_conditioning, torch.cat(x), texts, empty) for x, texts in by_size.values()])


def _group(as_conditioning: Callable, latents: torch.Tensor, captions: list[list], empty: list[list]) -> Group:
    known: dict[int, Conditioning] = {}
    for entry in captions:
        if id(entry) not in known:
            known[id(entry)] = as_conditioning(entry, latents[:1], "positive")
    unconditional = as_conditioning(empty[0], latents[:1], "negative") if empty else {}
    return Group(latents, tuple(known[id(entry)] for entry in captions), unconditional)
