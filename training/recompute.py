"""Gradient checkpointing for networks of any host: blocks are computed again in the backward pass instead of kept."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import TrainingError
from .lora_layers import LoraLayers

# Class names of the repeated blocks in diffusers, the original Stable Diffusion layout and the hosts' transformers.
BLOCKS = ("ResnetBlock2D", "ResBlock", "TransformerBlock", "JointBlock", "DoubleStreamBlock", "SingleStreamBlock")


def recomputed_blocks(network: nn.Module) -> list[nn.Module]:
    """Returns the network's blocks of a known class, which `recomputing` computes again; none where it knows none."""
    return [module for module in network.modules() if type(module).__name__.endswith(BLOCKS)]


@contextmanager
def recomputing(network: nn.Module, layers: LoraLayers) -> Iterator[None]:
    """Lets the network's blocks keep only their inputs; in the backward pass each sees the adapter set it saw before.

    Raises: TrainingError for a network without a block of a known class.
    """
    blocks = recomputed_blocks(network)
    if not blocks:
        raise TrainingError(f"{type(network).__name__} has no block to recompute; turn gradient_checkpointing off.")
    before = [vars(block).get("forward") for block in blocks]
    draws = any(isinstance(module, nn.Dropout) and module.p and module.training for module in network.modules())
    for block in blocks:
        block.forward = _recomputed(block.forward, layers, draws)
    try:
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


def _recomputed(forward, layers: LoraLayers, draws: bool):
    """Returns `forward` as a block that is recomputed; where it draws nothing, the random state need not be kept for it,
    which a card would be waited for."""

    def run(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        names, frozen = layers.active, layers.frozen

        def contexts():
            return nullcontext(), layers.using(*names, frozen=frozen)

        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, preserve_rng_state=draws, **kwargs)

    return run
