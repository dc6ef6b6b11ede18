"""The way around a layer: scale * up(down(x)), added to the layer's output where that stands.

Written as autograd functions of its own, because what autograd would record is twice as many operators, and a copy of every
output.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .adapter_set import ReadyPair
from .flat import Given, Slot


def add_bypass(layer: nn.Module, x: torch.Tensor, output: torch.Tensor, pair: ReadyPair, scale: float) -> torch.Tensor:
    """Returns output + scale * up(down(x)); the values of `output` are written over.

    Args:
        layer: Linear or Conv2d, which convolves with `down` as it does with its own weights.
        x: its input, [..., inner] or [batch, inner, height, width], whose batch may be missing.
        output: what it made of that, in the dtype of the pair; nothing else may need its values.
        pair: of the layer.
        scale: factor.
    """
    device = output.device.type
    if torch.is_autocast_enabled(device) and output.dtype != torch.get_autocast_dtype(device):
        with torch.autocast(device, enabled=False):  # the layer has left it, too
            return _added(layer, x, output, pair, scale)
    return _added(layer, x, output, pair, scale)


def _added(layer: nn.Module, x: torch.Tensor, output: torch.Tensor, pair: ReadyPair, scale: float) -> torch.Tensor:
    x = x.to(output.dtype)
    if isinstance(layer, nn.Linear):
        if torch.is_grad_enabled():
            return _Linear.apply(x, output, *pair, scale)
        _add_linear(x.reshape(-1, x.shape[-1]), output, pair.down_t, pair.up_t, scale)
        return output
    if x.ndim == 3:  # one picture without a batch
        return _added(layer, x[None], output[None], pair, scale)[0]
    down = Given.apply(pair.down, pair.slot) if pair.slot is not None and torch.is_grad_enabled() else pair.down
    low = layer._conv_forward(x, down, None)  # its padding may be circular, or a host's own for seamless pictures
    return _Pointwise.apply(low, output, pair.up, pair.slot, scale)


def _add_linear(
    flat: torch.Tensor, output: torch.Tensor, down_t: torch.Tensor, up_t: torch.Tensor, scale: float
) -> torch.Tensor:
    """Adds the bypass to the output, and returns down(x), [rows, rank]."""
    low = flat.mm(down_t)
    output.view(-1, output.shape[-1]).addmm_(low, up_t, alpha=scale)
    return low


def _with_scale(tensor: torch.Tensor, scale: float) -> torch.Tensor:
    return tensor if scale == 1 else tensor * scale


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, output: torch.Tensor, *pair_and_scale: Any):
        down, up, down_t, up_t, slot, scale = pair_and_scale
        flat = x.reshape(-1, x.shape[-1])
        low = _add_linear(flat, output, down_t, up_t, scale)
        ctx.scale, ctx.shape, ctx.slot = scale, x.shape, slot
        ctx.save_for_backward(down, up, *((flat, low) if ctx.needs_input_grad[2] else ()))
        return output.detach()  # torch forbids networks to change what a function returns as it came in

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor):
        down, up, *kept = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        low = _with_scale(flat.mm(up), ctx.scale)
        grad_x = low.mm(down).view(ctx.shape) if ctx.needs_input_grad[0] else None
        grad_down, grad_up = (low.t().mm(kept[0]), _with_scale(flat.t().mm(kept[1]), ctx.scale)) if kept else (None, None)
        if ctx.slot is not None and kept:
            ctx.slot.gradient.give(ctx.slot.down, grad_down)
            ctx.slot.gradient.give(ctx.slot.up, grad_up)
            grad_down = grad_up = None
        return grad_x, grad, grad_down, grad_up, None, None, None, None


class _Pointwise(torch.autograd.Function):
    """The second half of a convolution's bypass, a matrix for every example."""

    @staticmethod
    def forward(ctx: Any, low: torch.Tensor, output: torch.Tensor, up: torch.Tensor, slot: Slot | None, scale: float):
        low = low.flatten(2)
        if output.is_contiguous():
            output.flatten(2).baddbmm_(up.flatten(1).expand(len(low), -1, -1), low, alpha=scale)
        else:  # channels last, on some cards
            output.add_((up.flatten(1) @ low).view(output.shape), alpha=scale)
        ctx.scale, ctx.shape, ctx.slot = scale, output.shape, slot
        ctx.save_for_backward(up, *((low,) if ctx.needs_input_grad[2] else ()))
        return output.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor):
        up, *kept = ctx.saved_tensors
        flat = grad.flatten(2)
        # detached, or torch would turn the whole gradient around to get by with one matrix product
        low = _with_scale(up.detach().flatten(1).t() @ flat, ctx.scale)
        grad_up = None
        if kept:
            grad_up = _with_scale((flat @ kept[0].transpose(1, 2)).sum(0), ctx.scale).view(up.shape)
            if ctx.slot is not None:
                ctx.slot.gradient.give(ctx.slot.up, grad_up)
                grad_up = None
        return low.view(len(grad), up.shape[1], *ctx.shape[2:]), grad, grad_up, None, None
