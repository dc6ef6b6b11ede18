"""LATENT and CONDITIONING as the training core's examples: groups of different sizes, each caption encoded by the host."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import TrainingError
from ..training.data import Batch, Conditioning
from .training_network import HostNetwork


@dataclass(frozen=True)
class Group:
    """Latents of one size [count, 4, height, width] as the network sees them, with one caption each, and the empty prompt's."""

    latents: torch.Tensor
    captions: tuple[Conditioning, ...]
    empty: Conditioning


class GroupedExamples:
    """Examples in memory, a bucket for every size. Args: groups: at least one, none empty."""

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
    host: HostNetwork, latents: Sequence[dict[str, Any]], positive: Sequence[list], negative: Sequence[list]
) -> GroupedExamples:
    """Returns what the nodes before gave as examples.

    Args:
        latents: LATENTs of any sizes; positive: CONDITIONINGs with an entry for each of their images, or one for all.
        negative: CONDITIONINGs of the empty prompt, or none.
    Raises: TrainingError when counts differ, nothing is there, or latents and texts belong to another kind of model.
    """
    samples = [host.latents(latent["samples"]) for latent in latents]
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
        rows, captions = by_size.setdefault(tuple(group.shape[2:]), ([], []))
        rows.append(group)
        captions += [next(waiting) for _ in group]
    empty = flat_entries(negative)[:1]
    return GroupedExamples([_group(host, torch.cat(rows), captions, empty) for rows, captions in by_size.values()])


def _group(host: HostNetwork, latents: torch.Tensor, captions: list[list], empty: list[list]) -> Group:
    known: dict[int, Conditioning] = {}
    for entry in captions:
        if id(entry) not in known:
            known[id(entry)] = host.conditioning(entry, latents[:1], "positive")
    made = host.conditioning(empty[0], latents[:1], "negative") if empty else {}
    return Group(latents, tuple(known[id(entry)] for entry in captions), made)
