"""What LoRA files call their tensors, in every naming in use, and the names under which ComfyUI takes all of them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import UnsupportedModelError

DOWN = ("down", "hada_w1_b")  # the parts whose second dimension is the layer's input

# <module> followed by .lora_down.weight (kohya), .lora.down.weight, _lora.down.weight or .lora_linear_layer.down.weight
# (diffusers before PEFT), .lora_A.weight or .lora_A.<adapter>.weight (PEFT).
_PAIR = re.compile(
    r"(?P<module>.+?)(?:[._]lora(?:_linear_layer)?\.|\.lora_)(?P<part>down|up|mid|A|B)"
    r"(?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?(?:\.weight)?"
)
_OTHER = re.compile(
    r"(?P<module>.+?)\.(?P<part>alpha|dora_scale|diff|diff_b|set_weight|reshape_weight|w_norm|b_norm|"
    r"hada_\w+|lokr_\w+|oft_\w+|a[12]\.weight|b[12]\.weight)"
)
_PARTS = {"A": "down", "B": "up"}
_KOHYA = re.compile(r"^(?:lora_(?:unet|transformer|te\d?|prior_\w+?)_|lycoris_)")
_TEXT_ENCODER = re.compile(r"lora_(?:prior_)?te\d?_|text_encoders?(?:_\d)?\.")
_UNET_ROOT = re.compile(r"(?:down_blocks|up_blocks|mid_block|conv_in|conv_out|time_embedding|add_embedding)\.|conv_(?:in|out)$")
_TRANSFORMER_ROOT = re.compile(
    r"(?:(?:single_)?transformer_blocks|time_text_embed|norm_out|pos_embed)[._]|(?:context_embedder|x_embedder|proj_out)$"
)
_NATIVE_ROOT = re.compile(r"(?:double_blocks|single_blocks|joint_blocks|input_blocks|middle_block|output_blocks)\.")


@dataclass(frozen=True)
class Key:
    """One tensor's name taken apart.

    Args:
        module: the layer it changes, as the file calls it.
        part: "down", "up", "mid", "alpha" and others.
        adapter: PEFT's name for the LoRA, often empty.
    """

    module: str
    part: str
    adapter: str = ""


def split_key(key: str) -> Key | None:
    """Returns a tensor's module and part, None for a tensor of no LoRA."""
    found = _PAIR.fullmatch(key)
    if found:
        return Key(found["module"], _PARTS.get(found["part"], found["part"]), found["adapter"] or "")
    found = _OTHER.fullmatch(key)
    return Key(found["module"], found["part"]) if found else None


def naming(key: str) -> str:
    """Returns which naming a LoRA tensor's name follows: "kohya", "comfyui", "peft" or "diffusers"."""
    if _KOHYA.match(key):
        return "kohya"
    if key.startswith(("diffusion_model.", "model.diffusion_model.", "text_encoders.")):
        return "comfyui"
    return "peft" if ".lora_A" in key or ".lora_B" in key else "diffusers"


def is_text_encoder(module: str) -> bool:
    """Returns whether a module belongs to a text encoder."""
    return bool(_TEXT_ENCODER.match(module))


def layer_path(module: str) -> str:
    """Returns the layer's path without the naming's prefix and with underscores only: equal for kohya, PEFT and diffusers."""
    path = re.sub(r"base_model\.model\.|\.processor(?=\.)", "", module)
    path = re.sub(r"^(?:(?:model\.)?diffusion_model\.|unet\.|transformer\.)", "", path)
    return _KOHYA.sub("", path, count=1).replace(".", "_")


def _host_module(module: str) -> str:
    """Returns the name under which ComfyUI takes a module of SD1.5, SDXL, SD3 or FLUX; other names stay."""
    if _KOHYA.match(module):  # of diffusers' names for transformers the host knows the flat ones as lora_transformer_
        flat = module.removeprefix("lora_unet_")
        return f"lora_transformer_{flat}" if flat != module and _TRANSFORMER_ROOT.match(flat) else module
    path = module.replace("base_model.model.", "").removeprefix("model.")
    bare = path.removeprefix("unet.").removeprefix("transformer.")
    if _UNET_ROOT.match(bare):
        # attn1.processor.to_q is known to the host; of attn1.to_q it knows the flat name alone.
        return path if ".processor." in path else f"lora_unet_{bare.replace('.', '_')}"
    if _TRANSFORMER_ROOT.match(bare):
        return f"transformer.{bare}"
    return f"diffusion_model.{bare}" if _NATIVE_ROOT.match(bare) else path


def host_keys(keys: Iterable[str]) -> dict[str, str]:
    """Returns old name -> new name for every tensor of a LoRA, so that ComfyUI drops none that belongs to the model.

    The host knows UNets by kohya's flat names, by diffusers' old `processor` names and by its own; of PEFT's it misses the
    attention layers. Of SD3 and FLUX it knows `transformer.` names and its own. What it knows keeps its name.

    Source: ComfyUI comfy/lora.py model_lora_keys_unet, comfy/weight_adapter/lora.py.
    Raises: UnsupportedModelError when two tensors would get one name, as in a file of several adapters.
    """
    keys = list(keys)
    if "img_in.lora_A.weight" in keys:  # FLUX control LoRAs have a converter of their own in the host
        return {key: key for key in keys}
    renamed: dict[str, str] = {}
    for key in keys:
        split = split_key(key)
        module = _host_module(split.module) if split else ""
        if split is None or (module == split.module and not split.adapter):
            renamed[key] = key
        else:
            part = f"lora_{split.part}.weight" if split.part in ("down", "up", "mid") else split.part
            renamed[key] = f"{module}.{part}"
    if len(set(renamed.values())) < len(renamed):
        adapters = sorted({split.adapter for key in keys if (split := split_key(key)) and split.adapter})
        raise UnsupportedModelError(
            f"The file names some layers twice{', by the adapters ' + ', '.join(adapters) if adapters else ''}; "
            "a LoRA file must hold one adapter: save them one by one."
        )
    return renamed
