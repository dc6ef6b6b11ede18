"""Low-rank adapter sets on one frozen network: hooks add them to each layer's output, no weight is copied or changed."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import TrainingError
from .data.examples import seeded

logger = logging.getLogger("hyper_sd")

# The names of the adapter sets: what is trained, its moving average, a style that is distilled, a discriminator's backbone, and
# the score of what the student draws.
STUDENT, TARGET, TEACHER, BACKBONE, FAKE = "student", "target", "teacher", "discriminator", "fake"

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


class AdapterSet(nn.Module):
    """One low-rank pair per layer: W x + scale * up(down(x)). `up` starts at zero, so a new set changes nothing.

    Source: Hu et al., "LoRA", arXiv 2106.09685, section 4.1; for convolutions the pair of LoCon: `down` has the layer's kernel,
    `up` is 1x1.
    Args:
        layers: the adapted layers of the network, by name.
        rank: 1 or more.
        lora_alpha: scale is lora_alpha / rank.
        dtype: of the weights.
        seed: from which, and from a layer's position, the first values of its `down` are drawn.
    """

    def __init__(self, layers: dict[str, nn.Module], rank: int, lora_alpha: float, dtype: torch.dtype, seed: int = 0):
        super().__init__()
        self.rank, self.lora_alpha, self.scale = rank, lora_alpha, lora_alpha / rank
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for position, layer in enumerate(layers.values()):
            out_width, *inner = layer.weight.shape
            down = torch.empty(rank, *inner, dtype=torch.float32)
            nn.init.kaiming_uniform_(down, a=5**0.5, generator=seeded(seed, position))
            up = torch.zeros(out_width, rank, *[1] * (len(inner) - 1))
            self.down.append(nn.Parameter(down.to(layer.weight.device, dtype)))
            self.up.append(nn.Parameter(up.to(layer.weight.device, dtype)))

    @torch.no_grad()
    def copy_from(self, other: "AdapterSet") -> None:
        """Takes over the weights of a set of the same shape."""
        torch._foreach_copy_(list(self.parameters()), list(other.parameters()))

    @torch.no_grad()
    def move_towards(self, other: "AdapterSet", decay: float) -> None:
        """The exponential moving average: self = decay * self + (1 - decay) * other."""
        torch._foreach_lerp_(list(self.parameters()), list(other.parameters()), 1 - decay)


class LoraLayers:
    """The adapter sets of a network, of which one or none is active; none is the untouched network.

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
        self.active: str | None = None
        self.frozen = False
        numbered = enumerate(self.layers.values())
        self._hooks = [layer.register_forward_hook(self._make_hook(position)) for position, layer in numbered]

    def add(self, name: str, copy_of: str | None = None, seed: int = 0) -> AdapterSet:
        """Adds a set and returns it.

        Args:
            name: of the set; one of that name is replaced.
            copy_of: name of the set whose weights it gets; None makes a new one, which changes nothing yet.
            seed: of a new set.
        """
        adapters = AdapterSet(self.layers, self.rank, self.lora_alpha, self.dtype, seed)
        if copy_of is not None:
            adapters.copy_from(self.sets[copy_of])
        self.sets[name] = adapters
        return adapters

    @contextmanager
    def using(self, name: str | None, frozen: bool = False) -> Iterator[None]:
        """Activates a set and restores what was active before, also after an error.

        Args:
            name: of the set; None activates the bare network.
            frozen: whether gradients pass through the set without reaching its weights.
        """
        before = self.active, self.frozen
        self.active, self.frozen = name, frozen
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
        def add_bypass(layer: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
            if self.active is None:
                return None
            adapter, x = self.sets[self.active], args[0]
            down, up = adapter.down[position], adapter.up[position]
            if self.frozen:
                down, up = down.detach(), up.detach()
            down, up = down.to(x.dtype), up.to(x.dtype)  # the small matrices, not the activations
            if isinstance(layer, nn.Linear):
                low = F.linear(F.linear(x, down), up)
            else:
                low = F.conv2d(F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation), up)
            return torch.add(output, low, alpha=adapter.scale)

        return add_bypass
