"""Low-rank adapter sets on one frozen network: hooks add them to each layer's output, no weight is copied or changed."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _global_forward_hooks

from ..errors import TrainingError
from .adapter_set import AdapterSet
from .bypass import add_bypass

logger = logging.getLogger("hyper_sd")

# The names of the adapter sets: what is trained, its moving average, a style that is distilled, a discriminator's backbone, the
# score of what the student draws, the distilled student that human feedback is learnt on top of, and what was learnt of it
# when a reward that it does not learn from still approved.
STUDENT, TARGET, TEACHER, BACKBONE, FAKE = "student", "target", "teacher", "discriminator", "fake"
DISTILLED, APPROVED = "distilled", "approved"

# What the released Hyper-SD LoRAs leave out (278 modules of SD1.5, 788 of SDXL are left): first and last convolution, and the
# embeddings of time and size; in diffusers' and in the original Stable Diffusion's names.
EXCLUDED = (
    "conv_in", "conv_out", "time_embedding.*", "add_embedding.*", "class_embedding.*",
    "input_blocks.0.*", "out.*", "time_embed.*", "label_emb.*",
)  # fmt: skip


def adaptable_layers(network: nn.Module, excluded: Sequence[str] = EXCLUDED) -> dict[str, nn.Module]:
    """Returns the Linear and ungrouped Conv2d layers by name, without those whose name matches a pattern of `excluded`."""
    return {
        name: layer
        for name, layer in network.named_modules()
        if (isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1))
        and not any(fnmatch(name, pattern) for pattern in excluded)
    }


class LoraLayers:
    """The adapter sets of a network, of which none, one or several are active; none is the untouched network.

    The network keeps its parameters, buffers and modules; `detach` takes the hooks off again.

    Args:
        network: that is adapted; the caller freezes its own parameters.
        rank: of every set.
        lora_alpha: of every set; None takes the rank, which is scale 1.
        excluded: name patterns of layers to leave alone.
        dtype: of the adapter weights; the arithmetic runs in the dtype of each layer's input.
        order: a layer's name -> what the layers are sorted by, which decides the weights of new sets; None keeps the network's
            own order.
    Raises: TrainingError when there is no layer to adapt, or rank is not positive.
    """

    def __init__(
        self,
        network: nn.Module,
        rank: int = 64,
        lora_alpha: float | None = None,
        excluded: Sequence[str] = EXCLUDED,
        dtype: torch.dtype = torch.float32,
        order: Callable[[str], Any] | None = None,
    ):
        layers = adaptable_layers(network, excluded)
        names = layers if order is None else sorted(layers, key=order)
        self.network, self.layers = network, {name: layers[name] for name in names}
        if not self.layers:
            raise TrainingError(f"{type(network).__name__} has no Linear or Conv2d layer to adapt; check the excluded names.")
        if rank < 1:
            raise TrainingError(f"rank must be 1 or more, got {rank}; 64 is usual, less makes a smaller file.")
        self.rank, self.lora_alpha, self.dtype = rank, float(rank if lora_alpha is None else lora_alpha), dtype
        self.sets: dict[str, AdapterSet] = {}
        self.active: tuple[str, ...] = ()
        self.frozen = False
        numbered = enumerate(self.layers.values())
        self._hooks = [layer.register_forward_hook(self._make_hook(position)) for position, layer in numbered]

    @property
    def drawing(self) -> tuple[str, ...]:
        """The names of the sets that draw what is learnt: "student", on top of "distilled" where that is there."""
        return tuple(name for name in (DISTILLED, STUDENT) if name in self.sets)

    def add(self, name: str, copy_of: str | None = None, seed: int | None = 0, rank: int | None = None) -> AdapterSet:
        """Adds a set and returns it.

        Args:
            name: of the set; one of that name is replaced.
            copy_of: name of the set whose weights it gets; None makes a new one, which changes nothing yet.
            seed: of a new set; None leaves it at zero, where nothing is learnt from it.
            rank: of a set of its own size, which has scale 1; None takes the rank and the alpha of all.
        """
        sizes = (self.rank, self.lora_alpha) if rank is None else (rank, float(rank))
        adapters = AdapterSet(self.layers, *sizes, self.dtype, None if copy_of else seed)
        if copy_of is not None:
            adapters.copy_from(self.sets[copy_of])
        self.sets[name] = adapters
        return adapters

    @contextmanager
    def using(self, *names: str | None, frozen: bool = False) -> Iterator[None]:
        """Activates sets, whose changes add up, and restores what was active before, also after an error.

        Args:
            names: of the sets; none, or None alone, activates the bare network.
            frozen: whether gradients pass through the sets without reaching their weights.
        """
        before = self.active, self.frozen
        self.active, self.frozen = tuple(name for name in names if name is not None), frozen
        try:
            yield
        finally:
            self.active, self.frozen = before

    def detach(self) -> None:
        """Takes the hooks off, which leaves the network as it was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _make_hook(self, position: int):
        def hook(layer: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
            if not self.active:
                return None
            if self._is_seen(layer, position):
                output = output.clone()
            for name in self.active:
                adapters = self.sets[name]
                learns = torch.is_grad_enabled() and adapters.flat.requires_grad and not self.frozen
                pair = adapters.ready(output.dtype, learns)[position]
                output = add_bypass(layer, args[0], output, pair, adapters.scale)
            return output

        return hook

    def _is_seen(self, layer: nn.Module, position: int) -> bool:
        """Whether another hook got the layer's output before ours, and may have kept it: it must not be written over."""
        return bool(_global_forward_hooks) or next(iter(layer._forward_hooks)) != self._hooks[position].id
