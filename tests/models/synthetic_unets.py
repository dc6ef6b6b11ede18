"""SDXL UNets and full checkpoints with the released files' names and shapes, written to the disk in small blocks."""

import json
import math
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from hyper_sd.models.sdxl_unet import SDXL, UnetShape
from hyper_sd.models.unet_file import CLIP, DTYPES, PREFIX, VAE

SMALL = UnetShape(channels=32, depths=(0, 1, 2), context=64, vector=1536 + 16)  # the host adds 6 x 256 for the picture's sizes
BLOCK = 1 << 20  # values made and written at a time
NAMES = {dtype: name for name, dtype in DTYPES.items()}
Tensors = Iterable[tuple[str, tuple[int, ...]]]


def unet(layout: str, shape: UnetShape = SDXL, prefix: str = "") -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the UNet's (name, shape); layout is "diffusers" or "original"."""
    return ((prefix + getattr(tensor, layout), tensor.shape) for tensor in shape.tensors())


def checkpoint(shape: UnetShape = SDXL) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields a full SDXL checkpoint's: UNet, CLIP-L, OpenCLIP-bigG and VAE, 2515 tensors."""
    yield from unet("original", shape, PREFIX)
    yield from _clip_l(f"{CLIP}0.transformer.text_model.", 768, 12)
    yield from _clip_g(f"{CLIP}1.model.", 1280, 32)
    yield from _vae(VAE)


def _layer(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _clip_l(prefix: str, width: int, depth: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{prefix}embeddings.position_ids", (1, 77)
    yield f"{prefix}embeddings.token_embedding.weight", (49408, width)
    yield f"{prefix}embeddings.position_embedding.weight", (77, width)
    for block in (f"{prefix}encoder.layers.{index}." for index in range(depth)):
        for name in ("layer_norm1", "layer_norm2"):
            yield from _layer(block + name, width)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _layer(f"{block}self_attn.{name}", width, width)
        yield from _layer(f"{block}mlp.fc1", 4 * width, width)
        yield from _layer(f"{block}mlp.fc2", width, 4 * width)
    yield from _layer(f"{prefix}final_layer_norm", width)


def _clip_g(prefix: str, width: int, depth: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{prefix}positional_embedding", (77, width)
    yield f"{prefix}text_projection", (width, width)
    yield f"{prefix}logit_scale", ()
    yield f"{prefix}token_embedding.weight", (49408, width)
    for block in (f"{prefix}transformer.resblocks.{index}." for index in range(depth)):
        for name in ("ln_1", "ln_2"):
            yield from _layer(block + name, width)
        yield f"{block}attn.in_proj_weight", (3 * width, width)
        yield f"{block}attn.in_proj_bias", (3 * width,)
        yield from _layer(f"{block}attn.out_proj", width, width)
        yield from _layer(f"{block}mlp.c_fc", 4 * width, width)
        yield from _layer(f"{block}mlp.c_proj", width, 4 * width)
    yield from _layer(f"{prefix}ln_final", width)


def _vae(prefix: str, width: int = 128, multipliers: tuple[int, ...] = (1, 2, 4, 4)) -> Iterator[tuple[str, tuple[int, ...]]]:
    top, levels = width * multipliers[-1], len(multipliers)
    yield from _layer(f"{prefix}encoder.conv_in", width, 3, 3, 3)
    now = width
    for level, multiplier in enumerate(multipliers):
        for index in range(2):
            yield from _resnet(f"{prefix}encoder.down.{level}.block.{index}", now, width * multiplier)
            now = width * multiplier
        if level < levels - 1:
            yield from _layer(f"{prefix}encoder.down.{level}.downsample.conv", now, now, 3, 3)
    yield from _layer(f"{prefix}decoder.conv_in", top, 4, 3, 3)
    for half in ("encoder", "decoder"):
        yield from _resnet(f"{prefix}{half}.mid.block_1", top, top)
        yield from _layer(f"{prefix}{half}.mid.attn_1.norm", top)
        for name in ("q", "k", "v", "proj_out"):
            yield from _layer(f"{prefix}{half}.mid.attn_1.{name}", top, top, 1, 1)
        yield from _resnet(f"{prefix}{half}.mid.block_2", top, top)
    for level in reversed(range(levels)):
        for index in range(3):
            yield from _resnet(f"{prefix}decoder.up.{level}.block.{index}", now, width * multipliers[level])
            now = width * multipliers[level]
        if level:
            yield from _layer(f"{prefix}decoder.up.{level}.upsample.conv", now, now, 3, 3)
    yield from _layer(f"{prefix}encoder.norm_out", top)
    yield from _layer(f"{prefix}encoder.conv_out", 8, top, 3, 3)
    yield from _layer(f"{prefix}decoder.norm_out", width)
    yield from _layer(f"{prefix}decoder.conv_out", 3, width, 3, 3)
    yield from _layer(f"{prefix}quant_conv", 8, 8, 1, 1)
    yield from _layer(f"{prefix}post_quant_conv", 4, 4, 1, 1)


def _resnet(name: str, width: int, out: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _layer(f"{name}.norm1", width)
    yield from _layer(f"{name}.conv1", out, width, 3, 3)
    yield from _layer(f"{name}.norm2", out)
    yield from _layer(f"{name}.conv2", out, out, 3, 3)
    if width != out:
        yield from _layer(f"{name}.nin_shortcut", out, width, 1, 1)


def write(path: Path, tensors: Tensors, dtype: torch.dtype = torch.float32, sparse: bool = False) -> Path:
    """Writes a safetensors file and returns its path; never more than one block is in memory.

    Args:
        path: of the file.
        tensors: (name, shape) of each.
        dtype: of all but the position ids, which are int64.
        sparse: every value is zero, and the file, a hole, takes no room on the disk.
    """
    listed, header, end = list(tensors), {}, 0
    for name, shape in listed:
        kind = torch.int64 if name.endswith("position_ids") else dtype
        size = math.prod(shape) * kind.itemsize
        header[name] = {"dtype": NAMES.get(kind, "I64"), "shape": shape, "data_offsets": [end, end + size]}
        end += size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        if sparse:
            file.truncate(8 + len(head) + end)
        else:
            for name, shape in listed:
                file.writelines(_blocks(name, shape, dtype))
    return path


def _blocks(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[bytes]:
    if name.endswith("position_ids"):
        yield np.arange(77, dtype=np.int64).tobytes()
        return
    for at in range(0, math.prod(shape), BLOCK):
        values = _values(name, shape, at, min(BLOCK, math.prod(shape) - at))
        yield torch.from_numpy(values).to(dtype).view(torch.uint8).numpy().tobytes()


def _values(name: str, shape: tuple[int, ...], at: int, count: int) -> np.ndarray:
    """Values that keep activations near unit size, the same for every layout that is drawn under the same shape's name."""
    random = np.random.default_rng([zlib.crc32(name.encode()), at])
    values = random.standard_normal(count, dtype=np.float32)
    if len(shape) > 1:
        return values * np.float32(math.prod(shape[1:]) ** -0.5)
    return values * np.float32(0.1) + np.float32(name.endswith("weight"))


def diffusers_unet(shape: UnetShape):
    """Returns diffusers' own class with these sizes, on the meta device; without diffusers the test is skipped."""
    import pytest  # here, because a benchmark uses this module without it

    models = pytest.importorskip("diffusers")
    down = [f"{'CrossAttn' if depth else ''}DownBlock2D" for depth in shape.depths]
    up = [f"{'CrossAttn' if depth else ''}UpBlock2D" for depth in reversed(shape.depths)]
    with torch.device("meta"):
        return models.UNet2DConditionModel(
            block_out_channels=[shape.channels * multiplier for multiplier in shape.multipliers],
            down_block_types=down,
            up_block_types=up,
            transformer_layers_per_block=[max(depth, 1) for depth in shape.depths],
            cross_attention_dim=shape.context,
            attention_head_dim=[max(shape.channels * multiplier // 64, 1) for multiplier in shape.multipliers],
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=shape.vector,
        )
