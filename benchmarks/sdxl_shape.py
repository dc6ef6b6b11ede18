"""SDXL's UNet with random weights, in full size or narrow, and examples of its shapes, for the benchmarks of training."""

from typing import Any

import torch
from torch import nn

from ..samplers.schedule import NoiseSchedule
from ..training.data.examples import LatentExamples
from ..training.denoiser import Denoiser, half_dtype
from ..training.diffusion import Diffusion
from .measure import random_weights

TOKENS = 77
DEPTHS = (1, 2, 10)  # of the first level, which has no attention, only the form
FULL = {
    "block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048,
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
# The same blocks and layers with few channels: as many operators, and hardly anything to compute.
NARROW = {
    "block_out_channels": (32, 32, 64), "attention_head_dim": (1, 1, 2), "cross_attention_dim": 32,
    "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 80,
}  # fmt: skip
SIZE_NUMBERS = 6  # of an image, its crop and its target, each embedded in addition_time_embed_dim values


def build_network(
    narrow: bool, dtype: torch.dtype = torch.float32, device: str = "cpu", depths: tuple[int, ...] = DEPTHS
) -> nn.Module:
    """Returns diffusers' UNet with SDXL's blocks and seeded random weights, frozen and in eval mode.

    Args:
        narrow: whether the layers have a few channels only.
        dtype: of the weights.
        device: where they are made.
        depths: how many transformer blocks stand in a row, by the level.
    """
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        network = UNet2DConditionModel(
            sample_size=128,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=depths,
            layers_per_block=2,
            use_linear_projection=True,
            addition_embed_type="text_time",
            **(NARROW if narrow else FULL),
        )
    network = nn.Module.to(network, dtype).to_empty(device=device)
    random_weights(network, seed=0)
    return network.eval().requires_grad_(False)


def make_denoiser(network: nn.Module) -> Denoiser:
    """Returns a network of diffusers with Stable Diffusion's noise schedule, called as a run from a file calls it."""
    return Denoiser(network, Diffusion.from_schedule(NoiseSchedule.from_betas()), half_dtype=half_dtype(network))


def make_examples(network: nn.Module, count: int, size: int) -> LatentExamples:
    """Returns seeded random latents and prompts as SDXL's cache keeps them: float32, on the processor.

    Args:
        network: as build_network returns it.
        count: of the examples.
        size: height and width of the latents.
    """
    generator, config = torch.Generator().manual_seed(1), network.config
    pooled = config.projection_class_embeddings_input_dim - SIZE_NUMBERS * config.addition_time_embed_dim

    def prompts(rows: int) -> dict[str, Any]:
        return {
            "context": torch.randn(rows, TOKENS, config.cross_attention_dim, generator=generator),
            "pooled": torch.randn(rows, pooled, generator=generator),
            "time_ids": torch.tensor([[8.0 * size, 8.0 * size, 0.0, 0.0, 8.0 * size, 8.0 * size]]).repeat(rows, 1),
        }

    latents = torch.randn(count, 4, size, size, generator=generator)
    return LatentExamples(latents, prompts(count), prompts(1))
