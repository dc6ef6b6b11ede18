"""What autograd keeps of a forward pass, counted without keeping it: in all, and in every block."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef


class Ledger:
    """What autograd keeps in a pass, by storage.

    Args:
        own: tensors that do not count.
    """

    def __init__(self, own: Sequence[torch.Tensor]):
        # Weak references, so that a storage, freed meanwhile, is not taken for another at its address.
        self.own = set(map(_storage, own))
        self.seen: dict[StorageWeakRef, tuple[int, int | None]] = {}  # its bytes, and the block that it is new in
        self.outside: set[StorageWeakRef] = set()  # kept even where blocks are computed again
        self.blocks, self._inside = 0, None  # how many blocks have begun, and which one computes

    def keep(self, tensor: torch.Tensor) -> None:
        """Notes a tensor that autograd wants to keep; nothing is kept in its place, as there will be no backward pass."""
        storage = _storage(tensor)
        self.seen.setdefault(storage, (tensor.untyped_storage().nbytes(), self._inside))
        if self._inside is None:
            self.outside.add(storage)

    def sums(self, blocks: int, uncounted: Sequence[torch.Tensor]) -> torch.Tensor:
        """Returns the bytes of all, of those outside the blocks, and of each of the first `blocks`, float64."""
        left_out = self.own | set(map(_storage, uncounted))
        kept = {storage: entry for storage, entry in self.seen.items() if storage not in left_out}
        inside = [0] * self.blocks
        for size, block in kept.values():
            if block is not None:
                inside[block] += size
        outside = sum(size for storage, (size, _) in kept.items() if storage in self.outside)
        return torch.tensor([sum(size for size, _ in kept.values()), outside, *inside[:blocks]], dtype=torch.float64)

    @contextmanager
    def watching(self, blocks: Sequence[nn.Module]) -> Iterator[None]:
        """Notes meanwhile what is kept, and in which of the blocks."""
        with ExitStack() as stack:
            for block in blocks:
                stack.callback(block.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
                stack.callback(block.register_forward_hook(self._leave).remove)
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self.keep, lambda nothing: nothing))
            yield

    def _enter(self, block: nn.Module, args: tuple, kwargs: dict) -> None:
        self._inside = None
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor):
                self.keep(value)
        self._inside = self.blocks
        self.blocks += 1

    def _leave(self, block: nn.Module, args: tuple, output: torch.Tensor) -> None:
        self._inside = None


def _storage(tensor: torch.Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())
