"""The SDXL UNet by rule: every tensor's name in diffusers and in the original layout, and its shape."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

BLOCKS = 2  # residual blocks a level on the way down; one more on the way up
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip


class UnetTensor(NamedTuple):
    """One tensor: its name in diffusers, its name in the original layout, its shape."""

    diffusers: str
    original: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class UnetShape:
    """The sizes that tell one UNet of SDXL's kind from another; the defaults are SDXL's.

    Source: Podell et al., "SDXL", arXiv 2307.01952, table 1; stabilityai/stable-diffusion-xl-base-1.0, unet/config.json.
    Args:
        channels: width of the first level.
        multipliers: each level's width in units of it, from the finest.
        depths: transformer blocks at each level, 0 for none. The middle has as many as the last level.
        context: width of the text states.
        vector: width of the pooled text with the sizes.
        latent: channels of the latents.
    """

    channels: int = 320
    multipliers: tuple[int, ...] = (1, 2, 4)
    depths: tuple[int, ...] = (0, 2, 10)
    context: int = 2048
    vector: int = 2816
    latent: int = 4

    def tensors(self) -> Iterator[UnetTensor]:
        """Yields every tensor: 1680 at the defaults."""
        time, top = 4 * self.channels, self.channels
        yield from _layer("conv_in", "input_blocks.0.0", top, self.latent, 3, 3)
        for name, original, width in (("time", "time_embed", top), ("add", "label_emb.0", self.vector)):
            yield from _layer(f"{name}_embedding.linear_1", f"{original}.0", time, width)
            yield from _layer(f"{name}_embedding.linear_2", f"{original}.2", time, time)
        skips = [top]
        yield from self._down(skips)
        yield from self._middle()
        yield from self._up(skips)
        yield from _layer("conv_norm_out", "out.0", top)
        yield from _layer("conv_out", "out.2", self.latent, top, 3, 3)

    def _down(self, skips: list[int]) -> Iterator[UnetTensor]:
        """Fills `skips` with the widths that the way up takes back, last first."""
        position = 1
        for level, (multiplier, depth) in enumerate(zip(self.multipliers, self.depths, strict=True)):
            out = self.channels * multiplier
            for i in range(BLOCKS):
                yield from self._block(f"down_blocks.{level}", i, f"input_blocks.{position}", skips[-1], out, depth)
                skips.append(out)
                position += 1
            if level < len(self.multipliers) - 1:
                yield from _layer(f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{position}.0.op", out, out, 3, 3)
                skips.append(out)
                position += 1

    def _middle(self) -> Iterator[UnetTensor]:
        width = self.channels * self.multipliers[-1]
        yield from _resnet("mid_block.resnets.0", "middle_block.0", width, width, 4 * self.channels)
        yield from _attention("mid_block.attentions.0", "middle_block.1", width, self.depths[-1], self.context)
        yield from _resnet("mid_block.resnets.1", "middle_block.2", width, width, 4 * self.channels)

    def _up(self, skips: list[int]) -> Iterator[UnetTensor]:
        width, position, levels = skips[-1], 0, len(self.multipliers)
        for level in range(levels):
            out, depth = self.channels * self.multipliers[-1 - level], self.depths[-1 - level]
            for i in range(BLOCKS + 1):
                yield from self._block(f"up_blocks.{level}", i, f"output_blocks.{position}", width + skips.pop(), out, depth)
                width = out
                position += 1
            if level < levels - 1:
                original = f"output_blocks.{position - 1}.{2 if depth else 1}.conv"
                yield from _layer(f"up_blocks.{level}.upsamplers.0.conv", original, out, out, 3, 3)

    def _block(self, block: str, i: int, original: str, width: int, out: int, depth: int) -> Iterator[UnetTensor]:
        yield from _resnet(f"{block}.resnets.{i}", f"{original}.0", width, out, 4 * self.channels)
        if depth:
            yield from _attention(f"{block}.attentions.{i}", f"{original}.1", out, depth, self.context)


SDXL = UnetShape()


def _layer(diffusers: str, original: str, *shape: int, bias: bool = True) -> Iterator[UnetTensor]:
    yield UnetTensor(f"{diffusers}.weight", f"{original}.weight", shape)
    if bias:
        yield UnetTensor(f"{diffusers}.bias", f"{original}.bias", shape[:1])


def _resnet(diffusers: str, original: str, width: int, out: int, time: int) -> Iterator[UnetTensor]:
    shapes = {
        "norm1": (width,), "conv1": (out, width, 3, 3), "time_emb_proj": (out, time),
        "norm2": (out,), "conv2": (out, out, 3, 3),
    }  # fmt: skip
    if width != out:
        shapes["conv_shortcut"] = (out, width, 1, 1)
    for name, shape in shapes.items():
        yield from _layer(f"{diffusers}.{name}", f"{original}.{RESNET[name]}", *shape)


def _attention(diffusers: str, original: str, width: int, depth: int, context: int) -> Iterator[UnetTensor]:
    """Both layouts use the same names inside."""

    def layer(name: str, *shape: int, bias: bool = True) -> Iterator[UnetTensor]:
        return _layer(f"{diffusers}.{name}", f"{original}.{name}", *shape, bias=bias)

    yield from layer("norm", width)
    yield from layer("proj_in", width, width)
    for index in range(depth):
        block = f"transformer_blocks.{index}"
        for attention, source in (("attn1", width), ("attn2", context)):
            yield from layer(f"{block}.{attention}.to_q", width, width, bias=False)
            yield from layer(f"{block}.{attention}.to_k", width, source, bias=False)
            yield from layer(f"{block}.{attention}.to_v", width, source, bias=False)
            yield from layer(f"{block}.{attention}.to_out.0", width, width)
        yield from layer(f"{block}.ff.net.0.proj", 8 * width, width)  # GEGLU: 4 x the width, and as much again for the gate
        yield from layer(f"{block}.ff.net.2", width, 4 * width)
        for norm in ("norm1", "norm2", "norm3"):
            yield from layer(f"{block}.{norm}", width)
    yield from layer("proj_out", width, width)
