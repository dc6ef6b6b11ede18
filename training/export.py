"""A trained adapter set as the LoRA file every host reads: kohya's names, with alpha."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import TrainingError
from .checkpoint import save_atomically
from .lora_layers import LoraLayers
from .unet_names import lora_names

PREFIX = "lora_unet_"


def kohya_name(module: str) -> str:
    """Returns "lora_unet_mid_block_attentions_0_proj_in" for the module "mid_block.attentions.0.proj_in"."""
    return PREFIX + module.replace(".", "_")


def lora_state_dict(
    layers: LoraLayers, name: str, dtype: torch.dtype = torch.float16, rename: Callable[[str], str] | None = None
) -> dict[str, torch.Tensor]:
    """Returns lora_down.weight, lora_up.weight and alpha of every adapted layer.

    Args:
        name: of the adapter set.
        rename: network's module name -> the file's; default unet_names.lora_names, for diffusers' networks. A host's network
            needs the host's own mapping to diffusers' names.
    """
    adapters, tensors = layers.sets[name], {}
    rename = rename or lora_names(layers.network)
    for module, down, up in zip(layers.layers, adapters.down, adapters.up, strict=True):
        key = kohya_name(rename(module))
        tensors[f"{key}.lora_down.weight"] = down.detach().to("cpu", dtype)
        tensors[f"{key}.lora_up.weight"] = up.detach().to("cpu", dtype)
        tensors[f"{key}.alpha"] = torch.tensor(adapters.lora_alpha, dtype=dtype)
    return tensors


def transformer_state_dict(layers: LoraLayers, name: str, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """Returns lora_A.weight and lora_B.weight of every adapted layer of a diffusers transformer, the scale folded into B.

    ComfyUI and diffusers read these names for SD3; the released SD3 LoRAs have them too, and no alpha.
    """
    adapters, tensors = layers.sets[name], {}
    for module, down, up in zip(layers.layers, adapters.down, adapters.up, strict=True):
        tensors[f"transformer.{module}.lora_A.weight"] = down.detach().to("cpu", dtype)
        tensors[f"transformer.{module}.lora_B.weight"] = (up.detach() * adapters.scale).to("cpu", dtype)
    return tensors


def save_lora(
    path: Path,
    layers: LoraLayers,
    name: str = "student",
    *,
    metadata: dict[str, str] | None = None,
    dtype: torch.dtype = torch.float16,
    rename: Callable[[str], str] | None = None,
    transformer: bool = False,
) -> None:
    """Writes a LoRA file whole or not at all.

    Args: transformer: in the names of diffusers' transformers in place of kohya's.
    Raises: TrainingError when it cannot be written.
    """
    described = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(layers.rank),
        "ss_network_alpha": f"{layers.lora_alpha:g}",
    }
    if transformer:
        tensors = transformer_state_dict(layers, name, dtype)
        # The scale is folded in; diffusers builds the adapter from this, and others can tell that nothing is left to scale.
        config = {"r": layers.rank, "lora_alpha": layers.rank, "target_modules": list(layers.layers)}
        described = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in config.items()})}
    else:
        tensors = lora_state_dict(layers, name, dtype, rename)
    save_atomically(path, tensors, described | (metadata or {}))


@torch.no_grad()
def load_lora(path: Path, layers: LoraLayers, name: str = "student", *, rename: Callable[[str], str] | None = None) -> None:
    """Adds an adapter set with the weights of a LoRA file in kohya's names, to train on or to sample with.

    Another lora_alpha / rank ratio in the file is folded into `up`; what a smaller rank leaves free
    starts as in a new set, where it changes nothing yet.

    Raises: TrainingError when the file cannot be read, its modules are not the network's, or its rank is higher than the set's.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"The LoRA {path} cannot be read ({error}); choose a .safetensors LoRA file.") from error
    given = {key for key in tensors if not key.endswith(".alpha")}
    for names in [rename] if rename else [lora_names(layers.network), str]:
        keys = [kohya_name(names(module)) for module in layers.layers]
        wanted = {f"{key}.{part}.weight" for key in keys for part in ("lora_down", "lora_up")}
        strangers = given ^ wanted
        if not strangers:
            break
    else:
        raise TrainingError(
            f"{path} does not fit this model: {len(strangers)} of {len(wanted)} tensors differ, for example "
            f"{min(strangers)}; choose a LoRA made for this family of models."
        )
    made = layers.add(name)
    for key, down, up in zip(keys, made.down, made.up, strict=True):
        low, high = tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"]
        rank = len(low)
        if rank > layers.rank or low.shape[1:] != down.shape[1:] or len(high) != len(up):
            raise TrainingError(
                f"{path} has {key} with rank {rank} and shape {tuple(low.shape[1:])}, here are rank {layers.rank} and "
                f"{tuple(down.shape[1:])}; train with rank {rank} or more, or choose another LoRA."
            )
        scale = float(tensors.get(f"{key}.alpha", rank)) / rank / made.scale
        up.zero_()
        down[:rank], up[:, :rank] = low.to(down), high.to(up) * scale
