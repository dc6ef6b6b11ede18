"""How the pairs of an adapter set lie in one flat tensor, and how their gradients come back into one."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakValueDictionary, ref

import torch
from torch.autograd.function import once_differentiable

AT_FIRST = 4  # the flat gradient is made when a quarter of it has come: by then the pass back has let go of more than it takes
AT_ONCE = 64  # from then on so many portions of it are added, each as it is complete


class Layout:
    """Which pair lies where. Those of one shape stand together, so that a few operators make all views.

    Args:
        shapes: of the layers' weights, [outer, inner, ..].
        rank: of the pairs.
    Attributes:
        layers: how many there are.
        count: of all values.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], rank: int):
        self.layers = len(shapes)
        downs = [(rank, *inner) for _, *inner in shapes]
        ups = [(outer, rank, *[1] * (len(inner) - 1)) for outer, *inner in shapes]
        self._places: dict[tuple[int, ...], list[int]] = {}
        for place, shape in enumerate([*downs, *ups]):
            self._places.setdefault(shape, []).append(place)
        self._sizes = [len(places) * torch.Size(shape).numel() for shape, places in self._places.items()]
        self.count = sum(self._sizes)

    def parts_of(self, flat: torch.Tensor, transposed: bool = False) -> list[torch.Tensor]:
        """Returns views: the `down` of every layer, and then the `up` of every layer.

        Args:
            flat: [count].
            transposed: whether each view is the transposed matrix, a convolution's kernel flattened into it.
        """
        found: dict[int, torch.Tensor] = {}
        for part, (shape, places) in zip(flat.split(self._sizes), self._places.items(), strict=True):
            views = part.view(len(places), *shape)
            found.update(zip(places, (views.flatten(2).mT if transposed else views).unbind(), strict=True))
        return [found[place] for place in range(len(found))]


class FlatGradient:
    """Gathers what a backward pass finds for the parts of a flat tensor, so that no second copy of all of it is there.

    Where `flat` has a gradient already, the parts are added to that one where it stands. This is done only in a pass that adds
    to it: torch.autograd.grad(), and hooks of `flat` itself, get the whole gradient of their pass.

    Args:
        flat: the leaf that learns.
        layout: of its parts.
    """

    def __init__(self, flat: torch.Tensor, layout: Layout):
        self.flat, self.layout = flat, layout
        self._parts: Callable[[], Any] = lambda: None
        self._passes: WeakValueDictionary[int, _Pass] = WeakValueDictionary()  # by torch's number of the backward pass

    def follow(self, parts: Any) -> None:
        """Notes which node of autograd's graph takes what is gathered.

        Args:
            parts: the node that the views of the flat tensor come from.
        """
        self._parts = ref(parts)

    def give(self, place: int, gradient: torch.Tensor) -> None:
        """Adds the gradient of a part, from within a backward pass; one that does not go as far as `flat` leaves it out.

        Args:
            place: of the part, as in Layout.parts_of().
            gradient: in any dtype.
        """
        here = self._here()
        if here is not None:
            here.give(place, gradient)

    def take(self) -> torch.Tensor | None:
        """Returns what is still to be added to the gradient of `flat`, and starts anew; None where nothing was given."""
        here = self._here()
        del self._passes[here.number]
        return here.take()

    def _here(self) -> "_Pass | None":
        """Returns what the backward pass that runs has found; a pass may run inside another one."""
        number, node = torch._C._current_graph_task_id(), self._parts()
        if number not in self._passes and torch._C._will_engine_execute_node(node):
            found = self._passes[number] = _Pass(self.flat, self.layout, number, _is_run(node.next_functions[0][0]))
            # torch's pass holds it from here on, and lets go of it even where it fails
            torch.autograd.Variable._execution_engine.queue_callback(found)
        return self._passes.get(number)


class _Pass:
    """What one backward pass has found for a flat tensor so far.

    Args:
        flat: the leaf that learns.
        layout: of its parts.
        number: torch's, of the pass.
        adds: whether the pass adds to the gradient of `flat`.
    """

    def __init__(self, flat: torch.Tensor, layout: Layout, number: int, adds: bool):
        self.flat, self.layout, self.number, self.adds = flat, layout, number, adds
        self._waiting: dict[int, torch.Tensor] = {}
        self._count = 0  # of the values that wait
        self._made: torch.Tensor | None = None
        self._views: list[torch.Tensor] = []
        self._stream: torch.cuda.Stream | None = None

    def __call__(self) -> None:
        """Is called at the end of the pass, when there is nothing left to do."""

    def give(self, place: int, gradient: torch.Tensor) -> None:
        """Adds the gradient of a part."""
        if place in self._waiting:  # of another pass of the network
            self._pour()
        self._waiting[place] = gradient
        self._count += gradient.numel()
        portions = AT_ONCE if self._views or self._stands() else AT_FIRST
        if self._count * portions >= self.layout.count:
            self._pour()

    def take(self) -> torch.Tensor | None:
        """Returns what is still to be added to the gradient of `flat`, and holds it no longer, or torch would copy it.

        Returns: None where nothing was given.
        """
        if self._stream not in (None, _stream_of(self.flat)):
            torch.cuda.current_stream(self.flat.device).wait_stream(self._stream)
        if self._waiting:
            self._pour()
        found, views, self._made, self._views = self._made, self._views, None, []
        if found is None and views:  # torch is told that the gradient has changed
            return self.flat.new_zeros(()).expand_as(self.flat)
        return found

    def _stands(self) -> bool:
        """Returns whether parts are added to a gradient that is there; hooks of `flat` are to see this pass alone."""
        return self.adds and self.flat.grad is not None and not self.flat._backward_hooks

    def _pour(self) -> None:
        if not self._views:
            self._made = None if self._stands() else torch.zeros_like(self.flat)
            self._views = self.layout.parts_of(self.flat.grad if self._made is None else self._made)
        torch._foreach_add_([self._views[place] for place in self._waiting], list(self._waiting.values()))
        self._waiting.clear()
        self._count, self._stream = 0, _stream_of(self.flat)


def _is_run(leaf: Any) -> bool:
    """Returns whether the backward pass that runs adds to a leaf's gradient.

    Args:
        leaf: its node of autograd's graph.
    """
    try:
        return torch._C._will_engine_execute_node(leaf)
    except RuntimeError:  # torch.autograd.grad() gives the gradient to its caller
        return False


def _stream_of(tensor: torch.Tensor) -> torch.cuda.Stream | None:
    return torch.cuda.current_stream(tensor.device) if tensor.is_cuda else None


class Slot(NamedTuple):
    """Where a layer's pair has its gradient.

    Args:
        gradient: of the whole set.
        down: place of the layer's `down`.
        up: place of its `up`.
    """

    gradient: FlatGradient
    down: int
    up: int


def learning_parts(flat: torch.Tensor, values: torch.Tensor, layout: Layout) -> tuple[list[torch.Tensor], list[Slot]]:
    """Returns the parts as views of `values` that learn, and where each layer's bypass may give their gradients by itself.

    Args:
        flat: the leaf that learns.
        values: of `flat`, in the dtype of a pass, without a gradient.
        layout: of its parts.
    """
    gradient = FlatGradient(flat, layout)
    parts = list(_Parts.apply(flat, values, gradient))
    gradient.follow(parts[0].grad_fn)
    return parts, [Slot(gradient, layer, layout.layers + layer) for layer in range(layout.layers)]


class _Parts(torch.autograd.Function):
    """The views of a flat tensor; gradients that come by themselves are gathered with those that layers gave."""

    @staticmethod
    def forward(ctx: Any, flat: torch.Tensor, values: torch.Tensor, gradient: FlatGradient):
        ctx.gradient = gradient
        ctx.set_materialize_grads(False)
        return tuple(gradient.layout.parts_of(values))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor | None):
        for place, gradient in enumerate(gradients):
            if gradient is not None:
                ctx.gradient.give(place, gradient)
        return ctx.gradient.take(), None, None


class Given(torch.autograd.Function):
    """A layer's `down` as it is, whose gradient is given to its slot as soon as it is there."""

    @staticmethod
    def forward(ctx: Any, down: torch.Tensor, slot: Slot):
        ctx.slot = slot
        return down.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor):
        ctx.slot.gradient.give(ctx.slot.down, gradient)
        return None, None
