"""The shapes of a loaded network's weights as the network computes with them, also where a quantiser has packed them."""

from collections.abc import Iterator
from typing import Any

from torch import nn

Shapes = dict[str, tuple[int, ...] | None]


def shapes_of(network: nn.Module) -> Shapes:
    """Returns name -> shape of every parameter and buffer; None for a packed one that does not say its shape.

    Args:
        network: or any module with networks in it. Nothing of its weights is read or copied.
    """
    return {name: _shape(layer, part, tensor) for layer, part, name, tensor in _tensors(network)}


def _tensors(network: nn.Module) -> Iterator[tuple[nn.Module, str, str, Any]]:
    for path, layer in network.named_modules():
        for part, tensor in [*layer._parameters.items(), *layer._buffers.items()]:
            if tensor is not None:
                yield layer, part, f"{path}.{part}" if path else part, tensor


def _shape(layer: nn.Module, part: str, tensor: Any) -> tuple[int, ...] | None:
    # ComfyUI-GGUF writes the shape on the tensor, bitsandbytes into its state. Both pack several values into one number.
    told = getattr(tensor, "tensor_shape", None) or getattr(getattr(tensor, "quant_state", None), "shape", None)
    if told is not None:
        return tuple(told)
    if tensor.is_floating_point():
        return tuple(tensor.shape)
    sizes = (getattr(layer, "out_features", None), getattr(layer, "in_features", None))
    return sizes if part == "weight" and None not in sizes else None
