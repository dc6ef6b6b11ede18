"""What the loop trains on: examples as latents with conditioning, and the order in which they come."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch

from ...errors import TrainingError
from .texts import Conditioning, stacked

PROMPT = "hyper_sd_prompt"  # in the options of a CONDITIONING's entry: its text, which other nodes leave alone


@dataclass(frozen=True)
class Batch:
    """Examples that are trained on together.

    Args:
        latents: [batch, ...], scaled as the network sees them.
        conditioning: tensors [batch, ...].
        unconditional: tensors [batch, ...] of the empty prompt; may be empty when no guidance is used.
        prompts: the texts themselves, which scorers of pictures read; empty where they are not known.
    """

    latents: torch.Tensor
    conditioning: Conditioning
    unconditional: Conditioning
    prompts: tuple[str, ...] = ()

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Batch":
        """Returns the batch on `device`, floating tensors in `dtype`."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, dtype if tensor.is_floating_point() else None, non_blocking=True)

        moved = ({key: move(t) for key, t in part.items()} for part in (self.conditioning, self.unconditional))
        return Batch(move(self.latents), *moved, self.prompts)


class Examples(Protocol):
    """A numbered set of examples; those of one bucket have latents of one shape and may share a batch."""

    @property
    def buckets(self) -> Sequence[Sequence[int]]:
        """The numbers of the examples grouped by shape, each number once."""

    def batch(self, numbers: Sequence[int], draw: int) -> Batch:
        """Returns the examples of these numbers, all of one bucket.

        Args:
            numbers: of the examples.
            draw: the j-th example seeds what it draws anew with draw + j, so that parts of a batch draw what the whole would.
        """

    def largest(self) -> Batch:
        """Returns one example that takes as much memory as any: latents of the largest size with the longest text."""


class LatentExamples:
    """Examples held in memory.

    Args:
        latents: [count, ...], scaled as the network sees them.
        conditioning: tensors [count, ...].
        unconditional: tensors [1, ...] of the empty prompt; may be left out when no guidance is used.
        prompts: the texts themselves, for training that scores pictures; may be left out otherwise.
    Raises: TrainingError when there are no examples, or counts differ.
    """

    def __init__(
        self,
        latents: torch.Tensor,
        conditioning: Conditioning,
        unconditional: Conditioning | None = None,
        prompts: Sequence[str] = (),
    ):
        counted = {"latents": latents, **conditioning, **({"prompts": prompts} if prompts else {})}
        counts = {name: len(tensor) for name, tensor in counted.items()}
        if not len(latents) or len(set(counts.values())) > 1:
            raise TrainingError(f"Training needs at least one example and one caption for each, got {counts}.")
        self.latents, self.conditioning, self.unconditional = latents, conditioning, unconditional or {}
        self.prompts = tuple(prompts)
        self.buckets = [list(range(len(latents)))]

    def batch(self, numbers: Sequence[int], draw: int) -> Batch:
        """Returns the examples of these numbers, as Examples.batch(); nothing is drawn anew."""
        chosen = list(numbers)
        prompts = tuple(self.prompts[number] for number in chosen) if self.prompts else ()
        unconditional = repeated(self.unconditional, len(chosen))
        return Batch(self.latents[chosen], rows(self.conditioning, chosen), unconditional, prompts)

    def largest(self) -> Batch:
        """Returns the first example, as large as all are."""
        return self.batch([0], 0)


def seeded(*numbers: int) -> torch.Generator:
    """Returns a CPU generator that these numbers, 0 or more, decide; other numbers give one that has nothing to do with it."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)


class BatchOrder:
    """The numbers of every batch as a pure function of the step, so that a resumed run needs no saved data order.

    Each epoch shuffles every bucket, cuts it into full batches and shuffles the batches. A bucket's last batch is filled up
    with its first examples of that epoch.

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


def rows(tensors: Mapping[str, torch.Tensor], part: slice | list[int]) -> dict[str, torch.Tensor]:
    """Returns the rows `part` of every tensor."""
    return {name: tensor[part] for name, tensor in tensors.items()}


def repeated(tensors: Mapping[str, torch.Tensor], count: int) -> dict[str, torch.Tensor]:
    """Returns tensors [1, ...] as [count, ...] without copying them."""
    return {name: tensor.expand(count, *tensor.shape[1:]) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Group:
    """Examples of one size.

    Args:
        latents: [count, channels, height, width], scaled as the network sees them.
        captions: one conditioning, tensors [1, ...], for each of the latents.
        empty: the conditioning of the empty prompt; an empty dict is none.
        prompts: the texts of the captions; none where one of them is not known.
    """

    latents: torch.Tensor
    captions: tuple[Conditioning, ...]
    empty: Conditioning
    prompts: tuple[str, ...] = ()


class GroupedExamples:
    """Examples in memory, a bucket for every size.

    Args:
        groups: at least one, none empty.
    """

    def __init__(self, groups: Sequence[Group]):
        self.groups = tuple(groups)
        self._places = [(group, row) for group in self.groups for row in range(len(group.latents))]
        numbers = iter(range(len(self._places)))
        self.buckets = [list(islice(numbers, len(group.latents))) for group in self.groups]

    def batch(self, numbers: Sequence[int], draw: int) -> Batch:
        """Returns the examples of these numbers, as Examples.batch(); nothing is drawn anew."""
        places = [self._places[number] for number in numbers]
        group, count = places[0][0], len(places)
        latents = torch.stack([group.latents[row] for _, row in places])
        texts = [group.captions[row] for _, row in places] + ([group.empty] if group.empty else [])
        joined = stacked(texts)
        unconditional = repeated(rows(joined, slice(count, None)), count) if group.empty else {}
        prompts = tuple(group.prompts[row] for _, row in places) if group.prompts else ()
        return Batch(latents, rows(joined, slice(count)), unconditional, prompts)

    def largest(self) -> Batch:
        """Returns an example as Examples.largest()."""
        latents = max((group.latents[:1] for group in self.groups), key=torch.Tensor.numel)
        texts = [text for group in self.groups for text in (*group.captions, group.empty) if text]
        return Batch(latents, max(texts, key=lambda text: text["context"].shape[1]), {})

    def fingerprint(self) -> str:
        """Returns a hash over everything that is trained on."""
        digest = hashlib.sha256()
        for group in self.groups:
            for tensors in ({"latents": group.latents}, *group.captions, group.empty):
                for name, tensor in tensors.items():
                    digest.update(f"{name} {list(tensor.shape)}".encode())
                    digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


def flat_entries(conditionings: Sequence[list]) -> list[list]:
    """Returns the entries of several CONDITIONINGs in order; an entry that holds several texts is taken apart."""
    entries = []
    for states, options in (entry for conditioning in conditionings for entry in conditioning):
        count, pooled = len(states), options.get("pooled_output")
        for row in range(count):
            own = pooled if pooled is None or len(pooled) != count else pooled[row : row + 1]
            entries.append([states[row : row + 1], {**options, "pooled_output": own}])
    return entries


def grouped_examples(
    latents: Sequence[Mapping[str, Any]],
    positive: Sequence[list],
    negative: Sequence[list],
    *,
    as_latents: Callable[[torch.Tensor], torch.Tensor],
    as_conditioning: Callable[[list, torch.Tensor, str], Conditioning],
) -> GroupedExamples:
    """Returns what the nodes of a host hand over as examples.

    Args:
        latents: LATENTs of any sizes, each a mapping with "samples".
        positive: CONDITIONINGs with an entry for each image, or one entry for all.
        negative: CONDITIONINGs of the empty prompt, or none.
        as_latents: brings samples [count, channels, height, width] to what the network sees.
        as_conditioning: (entry, latents [1, ...] of that size, name of the input) -> what the network takes.
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
        latents_of_size, captions = by_size.setdefault(tuple(group.shape[2:]), ([], []))
        latents_of_size.append(group)
        captions += islice(waiting, len(group))
    empty = flat_entries(negative)[:1]
    return GroupedExamples([_group(as_conditioning, torch.cat(x), texts, empty) for x, texts in by_size.values()])


def _group(as_conditioning: Callable, latents: torch.Tensor, captions: list[list], empty: list[list]) -> Group:
    known: dict[int, Conditioning] = {}
    for entry in captions:
        if id(entry) not in known:
            known[id(entry)] = as_conditioning(entry, latents[:1], "positive")
    unconditional = as_conditioning(empty[0], latents[:1], "negative") if empty else {}
    prompts = tuple(options[PROMPT] for _, options in captions if PROMPT in options)
    texts = prompts if len(prompts) == len(captions) else ()
    return Group(latents, tuple(known[id(entry)] for entry in captions), unconditional, texts)
