"""LoRA files with the released ones' names and shapes, made from the architectures by code and written tensor by tensor."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hyper_sd.models.entry import Entry

MODULES = {"sd15": 278, "sdxl": 788, "sd3": 341, "flux": 504}
BYTES = {"sd15": 269127064, "sdxl": 787359648, "sd3": 472049168, "flux": 1388026440}  # of the released files, rank 64
Tensor = tuple[str, tuple[int, ...], float | None]  # name, shape, value; None for random ones


@dataclass(frozen=True)
class Layer:
    """A layer of the network: its path in diffusers, and its weight [out, in, kernel, kernel] or [out, in]."""

    path: str
    out: int
    width: int
    kernel: int = 0

    @property
    def weight(self) -> tuple[int, ...]:
        return self._shape(self.out, self.width, self.kernel)

    def down(self, rank: int) -> tuple[int, ...]:
        return self._shape(rank, self.width, self.kernel)

    def up(self, rank: int) -> tuple[int, ...]:
        return self._shape(self.out, rank, min(self.kernel, 1))

    @staticmethod
    def _shape(out: int, width: int, kernel: int) -> tuple[int, ...]:
        return (out, width, kernel, kernel) if kernel else (out, width)


def layers(family: str) -> list[Layer]:
    """Returns the layers that a released LoRA of the family changes."""
    if family == "sd15":
        return list(_unet((1, 2, 4, 4), depths=(1, 1, 1, 0), context=768, kernel=1))
    if family == "sdxl":
        return list(_unet((1, 2, 4), depths=(0, 2, 10), context=2048, kernel=0))
    return list(_sd3() if family == "sd3" else _flux())


def _unet(mult: tuple[int, ...], depths: tuple[int, ...], context: int, kernel: int) -> Iterator[Layer]:
    """Two residual blocks a level on the way down, three on the way up, as in all of Stable Diffusion's UNets."""
    widths, levels = [320 * m for m in mult], len(mult)
    skips, width = [320], 320
    for level, out in enumerate(widths):
        for i in range(2):
            yield from _resnet(f"down_blocks.{level}.resnets.{i}", out, width)
            yield from _attention(f"down_blocks.{level}.attentions.{i}", out, depths[level], context, kernel)
            width = out
            skips.append(width)
        if level < levels - 1:
            yield Layer(f"down_blocks.{level}.downsamplers.0.conv", width, width, 3)
            skips.append(width)
    for i in range(2):
        yield from _resnet(f"mid_block.resnets.{i}", width, width)
    yield from _attention("mid_block.attentions.0", width, max(depths[-1], 1), context, kernel)
    for level, out in enumerate(reversed(widths)):
        for i in range(3):
            yield from _resnet(f"up_blocks.{level}.resnets.{i}", out, width + skips.pop())
            yield from _attention(f"up_blocks.{level}.attentions.{i}", out, depths[-1 - level], context, kernel)
            width = out
        if level < levels - 1:
            yield Layer(f"up_blocks.{level}.upsamplers.0.conv", width, width, 3)


def _resnet(path: str, out: int, width: int) -> Iterator[Layer]:
    yield Layer(f"{path}.conv1", out, width, 3)
    yield Layer(f"{path}.time_emb_proj", out, 4 * 320)
    yield Layer(f"{path}.conv2", out, out, 3)
    if out != width:
        yield Layer(f"{path}.conv_shortcut", out, width, 1)


def _attention(path: str, width: int, depth: int, context: int, kernel: int) -> Iterator[Layer]:
    if not depth:
        return
    yield Layer(f"{path}.proj_in", width, width, kernel)
    for block in (f"{path}.transformer_blocks.{i}" for i in range(depth)):
        for name, read in (("attn1", width), ("attn2", context)):
            yield Layer(f"{block}.{name}.to_q", width, width)
            yield Layer(f"{block}.{name}.to_k", width, read)
            yield Layer(f"{block}.{name}.to_v", width, read)
            yield Layer(f"{block}.{name}.to_out.0", width, width)
        yield Layer(f"{block}.ff.net.0.proj", 8 * width, width)
        yield Layer(f"{block}.ff.net.2", width, 4 * width)
    yield Layer(f"{path}.proj_out", width, width, kernel)


def _embedders(width: int, names: dict[str, int]) -> Iterator[Layer]:
    for name, read in names.items():
        yield Layer(f"time_text_embed.{name}_embedder.linear_1", width, read)
        yield Layer(f"time_text_embed.{name}_embedder.linear_2", width, width)


def _joint_block(path: str, width: int, last: bool = False) -> Iterator[Layer]:
    """A block on the image and the text stream; SD3's last one leaves the text stream as it is."""
    yield Layer(f"{path}.norm1.linear", 6 * width, width)
    yield Layer(f"{path}.norm1_context.linear", (2 if last else 6) * width, width)
    for name in (
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "add_q_proj",
        "add_k_proj",
        "add_v_proj",
        *([] if last else ["to_add_out"]),
    ):
        yield Layer(f"{path}.attn.{name}", width, width)
    for name in ("ff",) if last else ("ff", "ff_context"):
        yield Layer(f"{path}.{name}.net.0.proj", 4 * width, width)
        yield Layer(f"{path}.{name}.net.2", width, 4 * width)


def _sd3(width: int = 24 * 64, depth: int = 24) -> Iterator[Layer]:
    yield Layer("pos_embed.proj", width, 16, 2)
    yield from _embedders(width, {"timestep": 256, "text": 2048})
    yield Layer("context_embedder", width, 4096)
    for i in range(depth):
        yield from _joint_block(f"transformer_blocks.{i}", width, last=i == depth - 1)
    yield Layer("norm_out.linear", 2 * width, width)
    yield Layer("proj_out", 2 * 2 * 16, width)


def _flux(width: int = 24 * 128, double: int = 19, single: int = 38) -> Iterator[Layer]:
    yield from _embedders(width, {"timestep": 256, "guidance": 256, "text": 768})
    yield Layer("context_embedder", width, 4096)
    yield Layer("x_embedder", width, 64)
    for i in range(double):
        yield from _joint_block(f"transformer_blocks.{i}", width)
    for path in (f"single_transformer_blocks.{i}" for i in range(single)):
        yield Layer(f"{path}.norm.linear", 3 * width, width)
        yield Layer(f"{path}.proj_mlp", 4 * width, width)
        yield Layer(f"{path}.proj_out", width, 5 * width)
        for name in ("to_q", "to_k", "to_v"):
            yield Layer(f"{path}.attn.{name}", width, width)
    yield Layer("norm_out.linear", 2 * width, width)
    yield Layer("proj_out", 64, width)


def _kohya(layer: Layer, rank: int, alpha: float | None) -> Iterator[Tensor]:
    name = f"lora_unet_{layer.path.replace('.', '_')}"
    if alpha is not None:
        yield f"{name}.alpha", (), alpha
    yield f"{name}.lora_down.weight", layer.down(rank), None
    yield f"{name}.lora_up.weight", layer.up(rank), None


def _dotted(prefix: str, down: str = "lora_A", up: str = "lora_B", path: Callable[[str], str] = str) -> Callable:
    def named(layer: Layer, rank: int, alpha: float | None) -> Iterator[Tensor]:
        name = f"{prefix}{path(layer.path)}"
        if alpha is not None:
            yield f"{name}.alpha", (), alpha
        yield f"{name}.{down}.weight", layer.down(rank), None
        yield f"{name}.{up}.weight", layer.up(rank), None

    return named


NAMINGS: dict[str, Callable[[Layer, int, float | None], Iterator[Tensor]]] = {
    "kohya": _kohya,
    "transformer": _dotted("transformer."),
    "unet": _dotted("unet."),
    "bare": _dotted(""),
    "diffusers": _dotted("unet.", "lora.down", "lora.up"),
    "peft": _dotted("base_model.model."),
    "peft default": _dotted("base_model.model.", "lora_A.default", "lora_B.default"),
}


@dataclass(frozen=True)
class Form:
    """How a file names its tensors: a key of NAMINGS, the alpha of every module, the header's metadata."""

    naming: str
    alpha: float | None = None
    metadata: dict[str, str] | None = None


# With these the size at rank 64 is the released file's to the byte; alpha 8 is inferred from the model card's scale of 0.125.
RELEASED = {
    "sd15": Form("kohya", 8.0),
    "sdxl": Form("kohya", 8.0, {"format": "pt"}),
    "sd3": Form("transformer"),
    "flux": Form("transformer"),
}


def tensors(family: str, rank: int = 4, form: Form | None = None) -> list[Tensor]:
    """Returns the tensors of a LoRA file in the order safetensors writes them, as the released ones name them by default."""
    form = form or RELEASED[family]
    return sorted(tensor for layer in layers(family) for tensor in NAMINGS[form.naming](layer, rank, form.alpha))


def head(made: list[Tensor], metadata: dict[str, str] | None = None) -> tuple[bytes, int]:
    """Returns the first bytes of a safetensors file, up to its data, and the data's length."""
    header, end = {"__metadata__": metadata} if metadata else {}, 0
    for name, shape, _ in made:
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, end


def write_tensors(path: Path, made: list[Tensor], metadata: dict[str, str] | None = None, seed: int = 0) -> Path:
    """Writes float32 tensors of small seeded values, one at a time, as a safetensors file."""
    random = np.random.default_rng(seed)
    with path.open("wb") as file:
        file.write(head(made, metadata)[0])
        for _, shape, value in made:
            values = (
                np.full(shape, value, np.float32) if value is not None else random.standard_normal(shape, np.float32) * 0.02
            )
            file.write(values.tobytes())
    return path


def write_lora(path: Path, family: str, rank: int = 4, form: Form | None = None) -> Path:
    """Writes a synthetic LoRA in the released form, or another."""
    form = form or RELEASED[family]
    return write_tensors(path, tensors(family, rank, form), form.metadata)


def write_sparse(path: Path, entry: Entry, **metadata: str) -> Path:
    """Writes a file with a released LoRA's layers and about its size, of zeros that take no room on the disk."""
    rank = round(64 * (entry.size or entry.approximate_size or BYTES[entry.family] / 2) / BYTES[entry.family])
    start, size = head(tensors(entry.family, rank, Form("kohya")), metadata or None)
    if entry.size:  # to the byte: the format allows blanks after its head
        rank -= size + len(start) > entry.size
        start, size = head(tensors(entry.family, rank, Form("kohya")), metadata or None)
        text = start[8:].ljust(entry.size - size - 8)
        start = len(text).to_bytes(8, "little") + text
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + size)
    return path
