"""Records what a sampler's loop asks of torch: every operator, and the latent-sized tensors it allocates."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators that make the host wait for the device: .item(), float(), bool() and if on a tensor, nonzero, torch.equal.
SYNCHRONISING = frozenset({"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero", "aten::equal"})


class OpRecorder(TorchDispatchMode):
    """While active and `recording`, collects operator names in `ops` and counts new storages of `numel` or more elements.

    Args:
        numel: elements of the smallest storage that counts.
        device: whose storages count, None for all: memory of the host beside a card's is not the card's.
    """

    def __init__(self, numel: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.numel = numel
        self.device = device
        self.recording = True
        self.ops: list[str] = []
        self.allocations = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.recording:
            known = {_storage(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)}
            made = {_storage(t) for t in tree_leaves(result) if isinstance(t, torch.Tensor) and self._counts(t)}
            self.ops.append(func._schema.name)
            self.allocations += len(made - known)
        return result

    def _counts(self, tensor: torch.Tensor) -> bool:
        return tensor.numel() >= self.numel and self.device in (None, tensor.device)

    def starting_at_first_call(self, model: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """Wraps `model` so that recording starts with its first call: the loop without what runs once before it."""
        self.recording = False

        def called(*args: Any, **kwargs: Any) -> torch.Tensor:
            self.recording = True
            return model(*args, **kwargs)

        return called


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
