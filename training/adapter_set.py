"""A set of low-rank pairs as one buffer: the optimizer, the moving average and a checkpoint see one tensor."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import nn

from .data.examples import seeded
from .flat import Layout, Slot, learning_parts

Pairs = tuple[list[torch.Tensor], list[torch.Tensor]]  # down [rank, inner, ..] and up [outer, rank, ..] of every layer


class ReadyPair(NamedTuple):
    """A layer's pair as a pass takes it, once more transposed, so that no pass has to do that.

    Args:
        down: [rank, inner, ..].
        up: [outer, rank, ..].
        down_t: [inner, rank] without a gradient; of a convolution [.., rank], which nobody needs.
        up_t: [rank, outer] without a gradient.
        slot: where the pair's gradients go, None where it does not learn.
    """

    down: torch.Tensor
    up: torch.Tensor
    down_t: torch.Tensor
    up_t: torch.Tensor
    slot: Slot | None = None


class AdapterSet(nn.Module):
    """One low-rank pair per layer: W x + scale * up(down(x)). `up` starts at zero, so a new set changes nothing.

    The pairs are views of the parameter `flat`.

    Source: Hu et al., "LoRA", arXiv 2106.09685, section 4.1; for convolutions the pair of LoCon: `down` has the layer's kernel,
    `up` is 1x1.
    Args:
        layers: the adapted layers of the network, by name.
        rank: 1 or more.
        lora_alpha: scale is lora_alpha / rank.
        dtype: of the weights.
        seed: from which, and from a layer's position, the first values of its `down` are drawn. None draws nothing, for a set
            that takes over other weights: all its values are zero.
    Attributes:
        flat: all weights, [count], on the device of the layers.
    """

    def __init__(self, layers: dict[str, nn.Module], rank: int, lora_alpha: float, dtype: torch.dtype, seed: int | None = 0):
        super().__init__()
        self.rank, self.lora_alpha, self.scale = rank, lora_alpha, lora_alpha / rank
        weights = [layer.weight for layer in layers.values()]
        self.layout = Layout([tuple(weight.shape) for weight in weights], rank)
        self.flat = nn.Parameter(torch.zeros(self.layout.count, dtype=dtype, device=weights[0].device))
        if seed is not None:
            _draw(self.down, seed)
        self.forget()

    def pairs_of(self, flat: torch.Tensor, transposed: bool = False) -> Pairs:
        """Returns the pairs in a tensor that is laid out like `flat`, such as its gradient, as views.

        Args:
            flat: [count].
            transposed: whether each view is the transposed matrix, a convolution's kernel flattened into it.
        """
        parts = self.layout.parts_of(flat, transposed)
        return parts[: self.layout.layers], parts[self.layout.layers :]

    @property
    def down(self) -> list[torch.Tensor]:
        """The `down` of every layer, views of the weights without a gradient."""
        return self.pairs_of(self.flat.detach())[0]

    @property
    def up(self) -> list[torch.Tensor]:
        """The `up` of every layer, views of the weights without a gradient."""
        return self.pairs_of(self.flat.detach())[1]

    def ready(self, dtype: torch.dtype, learns: bool) -> list[ReadyPair]:
        """Returns the pairs as a pass of the network takes them; all passes between two changes of the weights share them.

        Args:
            dtype: of the pass.
            learns: whether gradients are to reach the weights.
        """
        if self._state() != self._seen:
            self.forget()
        if (dtype, learns) not in self._ready:
            # Without a gradient, and in inference mode, later passes could not learn from what is made here.
            with torch.inference_mode(False), torch.enable_grad():
                self._ready[dtype, learns] = self._pairs(self._values(dtype), learns)
        return self._ready[dtype, learns]

    def _values(self, dtype: torch.dtype) -> torch.Tensor:
        """Returns the weights in a dtype, without a gradient."""
        if dtype == self.flat.dtype:
            return self.flat.detach()
        if dtype not in self._cast:
            self._cast[dtype] = self.flat.detach().to(dtype)
        return self._cast[dtype]

    def _pairs(self, values: torch.Tensor, learns: bool) -> list[ReadyPair]:
        if learns and self.flat.requires_grad:
            parts, slots = learning_parts(self.flat, values, self.layout)
        else:
            parts, slots = self.layout.parts_of(values), [None] * self.layout.layers
        turned, half = self.layout.parts_of(values, transposed=True), len(slots)
        fives = zip(parts[:half], parts[half:], turned[:half], turned[half:], slots, strict=True)
        return [ReadyPair(*five) for five in fives]

    @property
    def copies(self) -> list[torch.Tensor]:
        """The copies of the weights in other dtypes that ready() keeps."""
        return list(self._cast.values())

    def forget(self) -> None:
        """Lets go of what ready() keeps."""
        self._ready: dict[tuple[torch.dtype, bool], list[ReadyPair]] = {}
        self._cast: dict[torch.dtype, torch.Tensor] = {}
        self._seen = self._state()

    def _state(self) -> tuple[int, int, bool]:
        """Returns what changes with the weights: torch's count of their changes, where they are, and whether they learn.

        Changes through `.data` and by fused optimizers are not counted: whoever makes them calls forget().
        """
        flat = self.flat
        return flat._version, flat.data_ptr(), flat.requires_grad

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a copy is made of; what ready() keeps belongs to this set alone."""
        return {**self.__dict__, "_ready": {}, "_cast": {}, "_seen": None}

    @torch.no_grad()
    def copy_from(self, other: "AdapterSet") -> None:
        """Takes over the weights of a set of the same shape."""
        self.flat.copy_(other.flat)

    @torch.no_grad()
    def move_towards(self, other: "AdapterSet", decay: float) -> None:
        """The exponential moving average: self = decay * self + (1 - decay) * other."""
        self.flat.lerp_(other.flat, 1 - decay)


def _draw(downs: Sequence[torch.Tensor], seed: int) -> None:
    """Fills the `down` of every layer with its first values, on all cores: every layer has a random generator of its own."""
    is_in_place = (downs[0].device.type, downs[0].dtype) == ("cpu", torch.float32)

    def draw(position: int) -> None:
        down = downs[position]
        values = down if is_in_place else torch.empty(down.shape)
        nn.init.kaiming_uniform_(values, a=5**0.5, generator=seeded(seed, position))
        if not is_in_place:
            down.copy_(values)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(draw, range(len(downs))))
