"""Stage 6: a ControlNet that follows outlines, as a control LoRA: the UNet's own encoder, changed by low-rank pairs."""

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import save_file

from ...disk import whole_file
from ...models.unet_names import original_names
from ...training.launch.embedded_model import noise_schedule
from ...training.lora_layers import EXCLUDED, LoraLayers
from .sample import encode
from .train_denoiser import Denoiser, Epochs, load_state, min_snr_loss, save_state

STEPS, BATCH, RANK, LEARNING_RATE, WARMUP = 1500, 32, 16, 2e-3, 50
UNNAMED = 0.5  # share of empty captions, so that the lines are read: Zhang et al., ControlNet, arXiv 2302.05543, section 3.3
WIDTHS = (16, 32, 96, 256)  # of the hint's own layers, as in the original ControlNet
THRESHOLD = 0.05  # of the outlines, low and high
# Of the zero convolutions in the file. The model knows the drawings of a caption by heart, and lines of another drawing hardly
# count against that; with this gain, strengths of 0.5 to 1 do what a person expects of them.
GAIN = 3.0
SET = "control"
SAVE_EVERY = 100  # steps


def outlines(images: np.ndarray) -> torch.Tensor:
    """Returns the outlines of drawings, as the host's Canny node finds them: uint8 [count, 128, 128], 0 or 1.

    Args: images: uint8 [count, 128, 128, 3].
    """
    from kornia.filters import canny

    parts = torch.from_numpy(images).split(64)
    found = [canny(part.movedim(-1, 1).float() / 255, THRESHOLD, THRESHOLD)[1] for part in parts]
    return torch.cat(found)[:, 0].byte()


class OutlineControl(torch.nn.Module):
    """The UNet with a ControlNet beside it. Trained are the hint's layers, the zero convolutions and the low-rank pairs."""

    def __init__(self, unet: UNet2DConditionModel):
        super().__init__()
        self.unet = unet.requires_grad_(False)
        self.net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=WIDTHS).requires_grad_(False)
        self.layers = LoraLayers(self.net, RANK, excluded=(*EXCLUDED, "controlnet_*"))
        self.pairs = self.layers.add(SET)
        for part in self.whole.values():
            part.requires_grad_(True)

    @property
    def whole(self) -> dict[str, torch.nn.Module]:
        """The layers that are trained whole, by their original names."""
        hint, made = self.net.controlnet_cond_embedding, {}
        for number, layer in enumerate([hint.conv_in, *hint.blocks, hint.conv_out]):
            made[f"input_hint_block.{2 * number}"] = layer  # between them the original has an activation each
        for number, layer in enumerate(self.net.controlnet_down_blocks):
            made[f"zero_convs.{number}.0"] = layer
        return made | {"middle_block_out.0": self.net.controlnet_mid_block}

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, hint: torch.Tensor) -> torch.Tensor:
        """Predicts the noise.

        Args:
            noisy: latents, float [batch, 4, 16, 16].
            timestep: int [batch].
            context: of the prompts, float [batch, 77, width].
            hint: outlines, float [batch, 3, 128, 128] in 0..1.
        """
        with self.layers.using(SET):
            down, middle = self.net(noisy, timestep, context, controlnet_cond=hint, return_dict=False)
        added = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return self.unet(noisy, timestep, context, **added).sample

    def trained(self) -> dict[str, torch.Tensor]:
        """Returns what is trained, under the names in which the hosts read a control LoRA; its pairs have no scale but 1."""
        rename, tensors = original_names(self.unet), {}
        for name, down, up in zip(self.layers.layers, self.pairs.down, self.pairs.up, strict=True):
            tensors |= {f"{rename(name)}.down": down, f"{rename(name)}.up": up}
        for name, layer in self.whole.items():
            tensors |= {f"{name}.{kind}": value for kind, value in layer.named_parameters()}
        return tensors


def as_hint(lines: torch.Tensor) -> torch.Tensor:
    """Returns outlines as a ControlNet takes them. Args: lines: uint8 [batch, 128, 128], 0 or 1."""
    return lines[:, None].expand(-1, 3, -1, -1).float()


def train(
    latents: torch.Tensor,
    lines: torch.Tensor,
    caption: Callable[[int, random.Random], str],
    denoiser: Denoiser,
    checkpoint: Path,
    steps: int = STEPS,
) -> Iterator[tuple[int, float, OutlineControl]]:
    """Trains to the end, resuming from `checkpoint`, and yields (step, loss, network).

    Args:
        latents: float [count, 4, 16, 16] with deviation 1.
        lines: their outlines.
        caption: draws a caption of image i.
        denoiser: the network that learns to follow outlines.
        checkpoint: where the state is kept.
        steps: of the whole training.
    """
    torch.manual_seed(2)
    model, rng, epochs = OutlineControl(denoiser.unet), random.Random(2), Epochs(len(latents))
    trained, alpha_bar, start = [p for p in model.parameters() if p.requires_grad], noise_schedule().alphas_cumprod, 0
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=WARMUP / steps)
    parts = {"model": model, "optimizer": optimizer, "rate": rate}
    if checkpoint.exists():
        state = load_state(checkpoint, parts, rng)
        start, epochs.rest = state["step"], state["rest"]
    if start >= steps:  # trained before: only its file is to be written
        yield start, float("nan"), model
    for step in range(start + 1, steps + 1):
        picks = epochs.draw(BATCH)
        context = encode(denoiser, ["" if rng.random() < UNNAMED else caption(i, rng) for i in picks])
        given = {"context": context, "hint": as_hint(lines[picks])}
        loss = min_snr_loss(partial(model, **given), latents[picks], alpha_bar)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        rate.step()
        if step % SAVE_EVERY == 0 or step == steps:
            save_state(checkpoint, parts, {"step": step, "rest": epochs.rest, "python_rng": list(rng.getstate())})
        yield step, loss.item(), model


def save_control(model: OutlineControl, path: Path) -> None:
    """Writes the control LoRA in fp16, its zero convolutions times GAIN, whole or not at all."""
    gains = {name: GAIN if name.startswith(("zero_convs.", "middle_block_out.")) else 1.0 for name in model.trained()}
    tensors = {name: (tensor.detach() * gains[name]).half().contiguous() for name, tensor in model.trained().items()}
    with whole_file(path) as part:
        save_file(tensors | {"lora_controlnet": torch.zeros(0)}, part, metadata={"title": path.stem, "hint": "outlines"})
