"""A double of CUDA graphs, which need a card: it records operators and runs them again into the same memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FORBIDDEN = {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::equal", "aten::is_nonzero"}


class OperatorRecorder:
    """Records like training.graphs.CudaRecorder, with its rules: nothing changes while recording, nothing may be read back."""

    def __init__(self):
        self.warmed = self.recorded = self.replayed = 0

    def warm(self, function: Callable[[], Any]) -> Any:
        self.warmed += 1
        return function()

    def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        self.recorded += 1
        mode = _Recording()
        try:
            with mode:
                outputs = function()
        finally:
            for tensor, value in reversed(mode.before):
                tensor.copy_(value)

        def replay() -> None:
            self.replayed += 1
            with torch.no_grad():
                for call in mode.calls:
                    call()

        return outputs, replay


class _Recording(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls: list[Callable[[], None]] = []
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.known: set[int] = set()
        self.kept: list[Any] = []  # so that no address is given away twice

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name in FORBIDDEN:
            raise RuntimeError("operation not permitted when stream is capturing")
        if func._schema.is_mutable:
            self._remember(func, args)
        result = func(*args, **kwargs)
        made = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        self.kept.append((args, kwargs, made))
        if func._schema.is_mutable:
            self.calls.append(lambda: func(*args, **kwargs))
        elif not func.is_view and func._schema.name not in ("aten::detach", "aten::_unsafe_view"):
            self.known.update(_address(tensor) for tensor in made)

            def again() -> None:
                new = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, torch.Tensor)]
                for old, value in zip(made, new, strict=True):
                    if old.data_ptr() != value.data_ptr():
                        old.copy_(value)

            self.calls.append(again)
        return result

    def _remember(self, func: Any, args: tuple) -> None:
        """Keeps the values of memory that was there before the recording, once."""
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is None or not argument.alias_info.is_write or not isinstance(value, torch.Tensor):
                continue
            if _address(value) not in self.known:
                self.before.append((value.detach(), value.detach().clone()))


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
