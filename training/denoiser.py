"""The network that is trained, seen in one way whatever host it comes from."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from .data.examples import Conditioning
from .diffusion import Diffusion

Call = Callable[[nn.Module, torch.Tensor, torch.Tensor, Conditioning], torch.Tensor]


def call_diffusers_unet(network: nn.Module, x: torch.Tensor, time: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
    """Calls a diffusers UNet2DConditionModel.

    Args: conditioning: "context" [batch, tokens, width]; SDXL also "pooled" [batch, width] and "time_ids" [batch, 6].
    """
    added = None
    if "pooled" in conditioning:
        added = {"text_embeds": conditioning["pooled"], "time_ids": conditioning["time_ids"]}
    return network(x, time, conditioning["context"], added_cond_kwargs=added, return_dict=False)[0]


def call_diffusers_transformer(
    network: nn.Module, x: torch.Tensor, time: torch.Tensor, conditioning: Conditioning
) -> torch.Tensor:
    """Calls a diffusers SD3Transformer2DModel.

    Args: conditioning: "context" [batch, tokens, width], "pooled" [batch, width].
    """
    return network(
        x,
        timestep=time,
        encoder_hidden_states=conditioning["context"],
        pooled_projections=conditioning["pooled"],
        return_dict=False,
    )[0]


@dataclass(frozen=True)
class Denoiser:
    """A network, its diffusion process, and how it is called.

    Args: call: call(network, x [batch, ...], time [batch], conditioning) -> prediction [batch, ...].
    """

    network: nn.Module
    diffusion: Diffusion
    call: Call = call_diffusers_unet

    def predict(self, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """Returns the network's prediction about `x` [batch, ...] at timesteps `t` [batch], in x's dtype."""
        return self.call(self.network, x, self.diffusion.model_time(t), conditioning).to(x.dtype)

    def guided(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        conditioning: Conditioning,
        unconditional: Conditioning,
        guidance_scale: torch.Tensor,
    ) -> torch.Tensor:
        """Returns the classifier-free guided prediction, both halves in one call; without an empty prompt, the plain one.

        Source: Ho and Salimans, "Classifier-Free Diffusion Guidance", arXiv 2207.12598, in the hosts' form
        without + guidance_scale * (with - without).
        Args: guidance_scale: [batch], 1 = off.
        """
        if not unconditional:
            return self.predict(x, t, conditioning)
        both = {key: torch.cat([conditioning[key], unconditional[key]]) for key in conditioning}
        positive, negative = self.predict(x.repeat(2, *[1] * (x.ndim - 1)), t.repeat(2), both).chunk(2)
        return negative + guidance_scale.to(x).view(-1, *[1] * (x.ndim - 1)) * (positive - negative)
