"""The adversarial part: heads on the denoiser's own encoder, so that no second network is held."""

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import nn
from torch.func import functional_call

from ...errors import UnsupportedModelError
from ..data.texts import Conditioning, at_own_lengths
from ..denoiser import Denoiser
from ..lora_layers import LoraLayers


def encoder_stages(network: nn.Module) -> list[str]:
    """Returns the names of the modules whose outputs are the features: each encoder level, then the middle block.

    It knows the UNets of diffusers, and those of the original Stable Diffusion layout, which the hosts use.

    Raises: UnsupportedModelError for other networks.
    """
    if hasattr(network, "down_blocks") and hasattr(network, "mid_block"):
        return [f"down_blocks.{i}" for i in range(len(network.down_blocks))] + ["mid_block"]
    if hasattr(network, "input_blocks") and hasattr(network, "middle_block"):
        blocks, last = network.input_blocks, len(network.input_blocks) - 1
        ends = [i for i, block in enumerate(blocks) if i == last or type(block[-1]).__name__ == "Downsample"]
        # The host walks through a block's layers without calling the block, so the hook sits on the last layer.
        names = [f"input_blocks.{i}.{len(blocks[i]) - 1}" for i in ends]
        return [*names, f"middle_block.{len(network.middle_block) - 1}"]
    raise UnsupportedModelError(
        f"The adversarial loss needs a UNet with encoder and middle block, got {type(network).__name__}; "
        "set adversarial_weight to 0."
    )


class _Reached(Exception):
    """Ends a forward pass after the last layer whose output is needed."""


class Features:
    """Runs the denoiser up to its middle block and returns what the stages put out.

    Args:
        denoiser: the network.
        layers: its adapter sets.
        backbone: name of the set that is active meanwhile; None for the bare network.
    """

    def __init__(self, denoiser: Denoiser, layers: LoraLayers, backbone: str | None = None):
        self.denoiser, self.layers, self.backbone = denoiser, layers, backbone
        modules = dict(denoiser.network.named_modules())
        self.stages = [modules[name] for name in encoder_stages(denoiser.network)]

    def __call__(
        self, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, frozen: bool = False
    ) -> list[torch.Tensor]:
        """Returns a feature map [batch, channels, height, width] of every stage.

        Args:
            x: noisy latents, [batch, ...].
            t: timesteps, [batch].
            conditioning: of the prompts.
            frozen: whether gradients pass through the backbone's set without reaching its weights.
        """
        with self.layers.using(self.backbone, frozen=frozen):
            return at_own_lengths(self._encoded, x, t, conditioning)

    def _encoded(self, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> list[torch.Tensor]:
        features: list[torch.Tensor] = []

        def keep(module: nn.Module, args: tuple, output: torch.Tensor | tuple) -> None:
            features.append(output if isinstance(output, torch.Tensor) else output[0])
            if module is self.stages[-1]:
                raise _Reached

        hooks = [stage.register_forward_hook(keep) for stage in self.stages]
        try:
            self.denoiser.predict(x, t, conditioning)
        except _Reached:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return features


class Heads(nn.Module):
    """One head per feature stage: conv (kernel 4, stride 2), GroupNorm, SiLU, 1x1 conv to a logit map.

    Source: SDXL-Lightning, arXiv 2402.13929, section 3.3, which concatenates the features of both points; Hyper-SD,
    arXiv 2404.13686, section 3.2.
    Args:
        channels: of each stage's feature map.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(2 * width, width, 4, stride=2, padding=1),
                nn.GroupNorm(math.gcd(32, width, max(width // 4, 1)), width),
                nn.SiLU(),
                nn.Conv2d(width, 1, 1),
            )
            for width in channels
        )

    def forward(self, here: list[torch.Tensor], there: list[torch.Tensor]) -> torch.Tensor:
        """Returns one logit for each example [batch], the mean over every stage's map.

        Features in half precision are judged in it, with the weights in float32.

        Args:
            here: features of one point, a map for each stage.
            there: features of the other point.
        """
        device, dtype = here[0].device.type, here[0].dtype
        with torch.autocast(device, dtype) if dtype in (torch.float16, torch.bfloat16) else nullcontext():
            return self._judge(here, there)

    def _judge(self, here: list[torch.Tensor], there: list[torch.Tensor]) -> torch.Tensor:
        maps = [head(torch.cat(pair, 1)).flatten(1).mean(1) for head, *pair in zip(self.heads, here, there, strict=True)]
        stacked = torch.stack(maps)
        return stacked.to(torch.promote_types(stacked.dtype, torch.float32)).mean(0)

    def judge_frozen(self, here: list[torch.Tensor], there: list[torch.Tensor]) -> torch.Tensor:
        """Returns what forward() does, without a gradient to the heads."""
        fixed = {name: p.detach() for name, p in self.named_parameters()}
        return functional_call(self, fixed, (here, there))


def discriminator_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Returns the hinge loss, mean(relu(1 - real)) + mean(relu(1 + fake)), of logits [batch]."""
    return torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()


def generator_loss(fake: torch.Tensor) -> torch.Tensor:
    """Returns the student's part, -mean(fake), of logits [batch]."""
    return -fake.mean()
