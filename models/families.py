"""The families of models that Hyper-SD files exist for, and which of them a checkpoint file belongs to."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """Everything that this package has to know of a family; nothing of it stands anywhere else.

    Args:
        key: its name in the catalogue, in plans and in settings.
        title: its name for people.
        comfyui_class: its class in ComfyUI's comfy.supported_models.
        webui_flag: what the A1111 family sets on a loaded model of it; None where there is no such attribute.
        kohya_base: what kohya's trainer writes as ss_base_model_version.
        variants: the kinds of plan there are, the preferred one first.
        size: side in pixels of the squares it was trained on.
        latent_channels: of its VAE.
        is_flow: whether it learnt straight paths from noise to image, without a discrete noise schedule.
        is_trainable: whether the training node takes it.
        scale_without_alpha: scale of a released LoRA that carries no alpha, 1 where all of them carry one.
        text_encoders: beginning of its text encoders' names in a full checkpoint.
        text_width: values a token of the text states that a UNet's cross-attention reads, None for a transformer.
        cross_attentions: how many of them the UNet has, 0 for a transformer.
        stream_width: values a token of a transformer's image stream, None for a UNet.
        blocks: a transformer's blocks with two streams and with one.
    """

    key: str
    title: str
    comfyui_class: str
    webui_flag: str | None
    kohya_base: str
    variants: tuple[str, ...]
    size: int
    latent_channels: int
    is_flow: bool
    is_trainable: bool
    text_encoders: str
    scale_without_alpha: float = 1.0
    text_width: int | None = None
    cross_attentions: int = 0
    stream_width: int | None = None
    blocks: tuple[int, int] = (0, 0)


_ALL_VARIANTS = ("unified", "n-step", "cfg", "merged", "other")
# Sources: the configurations of the models' own repositories; kohya-ss/sd-scripts for the names it writes. The released SD3 and
# FLUX LoRAs carry no alpha: the scale that their card gives is that of the others' alpha 8 at rank 64.
_SD15 = Family(
    key="sd15",
    title="SD1.5",
    comfyui_class="SD15",
    webui_flag="is_sd1",
    kohya_base="sd_v1",
    variants=_ALL_VARIANTS,
    size=512,
    latent_channels=4,
    is_flow=False,
    is_trainable=True,
    text_encoders="cond_stage_model.transformer.",
    text_width=768,
    cross_attentions=16,
)
_SDXL = Family(
    key="sdxl",
    title="SDXL",
    comfyui_class="SDXL",
    webui_flag="is_sdxl",
    kohya_base="sdxl_base_v1-0",
    variants=_ALL_VARIANTS,
    size=1024,
    latent_channels=4,
    is_flow=False,
    is_trainable=True,
    text_encoders="conditioner.embedders.",
    text_width=2048,
    cross_attentions=70,
)
_SD3 = Family(
    key="sd3",
    title="SD3",
    comfyui_class="SD3",
    webui_flag="is_sd3",
    kohya_base="medium",
    variants=("cfg",),
    size=1024,
    latent_channels=16,
    is_flow=True,
    is_trainable=False,
    text_encoders="text_encoders.",
    scale_without_alpha=0.125,
    stream_width=1536,
    blocks=(24, 0),
)
_FLUX = Family(
    key="flux",
    title="FLUX.1-dev",
    comfyui_class="Flux",
    webui_flag=None,
    kohya_base="flux1",
    variants=("n-step",),
    size=1024,
    latent_channels=16,
    is_flow=True,
    is_trainable=False,
    text_encoders="text_encoders.",
    scale_without_alpha=0.125,
    stream_width=3072,
    blocks=(19, 38),
)
FAMILIES: dict[str, Family] = {family.key: family for family in (_SD15, _SDXL, _SD3, _FLUX)}

# What is told by the same widths and is no family: keys of FAMILIES, or plain names.
TEXT_WIDTHS = {family.text_width: family.key for family in FAMILIES.values() if family.text_width}
TEXT_WIDTHS |= {1024: "SD2.x", 1280: "the SDXL refiner"}
STREAM_WIDTHS = {family.stream_width: family.key for family in FAMILIES.values() if family.stream_width}
STREAM_WIDTHS |= {2432: "SD3.5 Large", 6144: "FLUX.2"}


def title_of(name: str) -> str:
    """Returns a model's name for people.

    Args:
        name: a key of FAMILIES, or a plain name, which stays as it is.
    """
    return FAMILIES[name].title if name in FAMILIES else name


NETWORK = "model.diffusion_model."  # before the network's names in a full checkpoint in the original layout
_CROSS_ATTENTION = re.compile(
    r"(?:input|output|down|up)_blocks\..+\.attn2\.to_k\.weight|mid(?:dle)?_block\..+\.attn2\.to_k\.weight"
)
_BLOCK = re.compile(r"(?:joint|double|transformer|(?P<single>single(?:_transformer)?))_blocks\.(?P<index>\d+)\.")
_STREAM_ENTRIES = ("x_embedder.proj", "pos_embed.proj", "img_in", "x_embedder")
_FLOATS = ("F64", "F32", "F16", "BF16", "F8")  # beginnings of their names in a header
# Beginnings of names that only one model has. Source: ComfyUI comfy/model_detection.py.
_OTHERS = {
    "distilled_guidance_layer.": "Chroma",
    "double_stream_modulation_img.": "FLUX.2",
    "txt_in.individual_token_refiner.": "HunyuanVideo",
    "transformer_blocks.0.txt_mod.": "a model of Qwen-Image's kind",
}
# The same, of a relative whose stream is as wide as a family's; models of other widths have such names too.
_RELATIVES = {"joint_blocks.0.x_block.attn2.": "SD3.5 Medium", "transformer_blocks.0.attn2.": "SD3.5 Medium"}

Shape = Sequence[int] | None


def model_of(header: Mapping[str, Any]) -> str | None:
    """Returns which model a file holds: a key of FAMILIES, another model's plain name, or None where it cannot be told.

    Names alone do not tell: the SDXL refiner has SDXL's. So the sizes decide: the width of the text states and the number of
    layers that read them, or the width of a transformer's stream and the number of its blocks.

    Args:
        header: of a safetensors file, as read_header gives it.
    """
    prefix = NETWORK if any(name.startswith(NETWORK) for name in header) else ""
    network = {name.removeprefix(prefix): entry for name, entry in header.items() if name.startswith(prefix)}
    network.pop("__metadata__", None)
    return model_of_network({name: _shape_in_header(name, entry) for name, entry in network.items()})


def model_of_network(shapes: Mapping[str, Shape]) -> str | None:
    """Returns which model a network is of, as model_of does.

    Args:
        shapes: of the network's tensors by name, in the original layout or diffusers'; None for one that is not known, because
            a quantiser has packed it.
    """
    if any(name.endswith(".weight") and shape is None for name, shape in shapes.items()):
        return None
    return _unet(shapes) or _transformer(shapes)


def family_of_checkpoint(header: Mapping[str, Any]) -> str | None:
    """Returns the family of the model in a file, None where there is none, it is of another, or it cannot be told.

    Args:
        header: of a safetensors file, as read_header gives it.
    """
    name = model_of(header)
    return name if name in FAMILIES else None


def _shape_in_header(name: str, entry: Mapping[str, Any]) -> Shape:
    """Returns a tensor's shape, None for a weight that a quantiser has packed, whose shape tells nothing."""
    is_packed = name.endswith(".weight") and not str(entry.get("dtype")).startswith(_FLOATS)
    return None if is_packed else entry.get("shape")


def _size(shape: Shape, at: int) -> int | None:
    return shape[at] if shape and isinstance(shape[at], int) else None


def _unet(network: Mapping[str, Shape]) -> str | None:
    widths = [_size(shape, -1) for name, shape in network.items() if _CROSS_ATTENTION.fullmatch(name)]
    if not widths:
        return None
    name = TEXT_WIDTHS.get(widths[0], f"a UNet of text width {widths[0]}")
    is_whole = name not in FAMILIES or widths == widths[:1] * FAMILIES[name].cross_attentions
    return name if is_whole else _relative(name)


def _transformer(network: Mapping[str, Shape]) -> str | None:
    blocks = {match.group("single", "index") for match in map(_BLOCK.match, network) if match}
    if not blocks:
        return None
    if other := _named(network, _OTHERS):
        return other
    entry = next((name for name in _STREAM_ENTRIES if f"{name}.weight" in network), None)
    name = STREAM_WIDTHS.get(_size(network[f"{entry}.weight"], 0)) if entry else None
    if name not in FAMILIES:
        return name
    single = sum(bool(kind) for kind, _ in blocks)
    is_whole = FAMILIES[name].blocks == (len(blocks) - single, single)
    return _named(network, _RELATIVES) or (name if is_whole else _relative(name))


def _named(network: Mapping[str, Shape], names: Mapping[str, str]) -> str | None:
    return next((model for start, model in names.items() if any(name.startswith(start) for name in network)), None)


def _relative(family: str) -> str:
    return f"a relative of {FAMILIES[family].title} with another number of layers"
