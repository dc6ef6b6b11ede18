"""The network that is trained, seen in one way whatever host it comes from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from .data.texts import Conditioning, at_own_lengths
from .diffusion import Diffusion

Call = Callable[[nn.Module, torch.Tensor, torch.Tensor, Conditioning], torch.Tensor]


def call_diffusers_unet(network: nn.Module, x: torch.Tensor, time: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
    """Calls a diffusers UNet2DConditionModel; the conditioning may have another dtype than `x`.

    Args:
        network: the model.
        x: noisy latents, [batch, ...].
        time: as the network takes it, [batch].
        conditioning: "context" [batch, tokens, width], for SDXL also "pooled" [batch, width] and "time_ids" [batch, 6].
    """
    added = None
    if "pooled" in conditioning:
        # The sizes keep their dtype: bfloat16 holds no number such as 1336.
        added = {"text_embeds": conditioning["pooled"].to(x.dtype), "time_ids": conditioning["time_ids"]}
    return network(x, time, conditioning["context"].to(x.dtype), added_cond_kwargs=added, return_dict=False)[0]


def call_diffusers_transformer(
    network: nn.Module, x: torch.Tensor, time: torch.Tensor, conditioning: Conditioning
) -> torch.Tensor:
    """Calls a diffusers SD3Transformer2DModel; the conditioning may have another dtype than `x`.

    Args:
        network: the model.
        x: noisy latents, [batch, ...].
        time: as the network takes it, [batch].
        conditioning: "context" [batch, tokens, width] and "pooled" [batch, width].
    """
    texts = {"encoder_hidden_states": conditioning["context"], "pooled_projections": conditioning["pooled"]}
    states = {name: text.to(x.dtype) for name, text in texts.items()}
    return network(x, timestep=time, **states, return_dict=False)[0]


def half_dtype(network: nn.Module) -> torch.dtype | None:
    """Returns the dtype of a network's matrices, where all have the same and it is a half precision; else None."""
    dtypes = {weight.dtype for weight in network.parameters() if weight.ndim > 1}
    return dtypes.pop() if dtypes in ({torch.float16}, {torch.bfloat16}) else None


@dataclass(frozen=True)
class Denoiser:
    """A network, its diffusion process, and how it is called.

    Args:
        network: that is trained.
        diffusion: the process it was trained for.
        call: (network, x [batch, ...], time [batch], conditioning) -> its prediction [batch, ...].
        half_dtype: the half precision that the network computes in by itself, which spares every layer a cast; None where it
            needs autocast for that.
    """

    network: nn.Module
    diffusion: Diffusion
    call: Call = call_diffusers_unet
    half_dtype: torch.dtype | None = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Clears requires_grad of the network's parameters meanwhile."""
        trainable = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        for parameter in trainable:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)

    def predict(self, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """Returns the network's prediction about `x` [batch, ...] at timesteps `t` [batch], in x's dtype."""

        def call(x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> list[torch.Tensor]:
            seen = x if torch.is_autocast_enabled(x.device.type) else x.to(dtype=self.half_dtype)
            return [self.call(self.network, seen, self.diffusion.model_time(t), conditioning).to(x.dtype)]

        return at_own_lengths(call, x, t, conditioning)[0]

    def guided(
        self, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, unconditional: Conditioning, guidance: torch.Tensor
    ) -> torch.Tensor:
        """Returns the classifier-free guided prediction [batch, ...], both halves predicted together.

        Source: Ho and Salimans, "Classifier-Free Diffusion Guidance", arXiv 2207.12598, in the form that hosts use:
        without + guidance * (with - without).
        Args:
            x: noisy latents, [batch, ...].
            t: timesteps, [batch].
            conditioning: of the prompts.
            unconditional: of the empty prompt; an empty one gives the plain prediction.
            guidance: scale, [batch]; 1 is no guidance.
        """
        if not unconditional:
            return self.predict(x, t, conditioning)
        both = {key: torch.cat([conditioning[key], unconditional[key]]) for key in conditioning}
        positive, negative = self.predict(x.repeat(2, *[1] * (x.ndim - 1)), t.repeat(2), both).chunk(2)
        return negative + guidance.to(x).view(-1, *[1] * (x.ndim - 1)) * (positive - negative)
