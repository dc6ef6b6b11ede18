"""LoRA files for the host's small models, and their effect on a network, written out plainly."""

from pathlib import Path

import comfy.lora
import comfy.utils
import torch
from safetensors.torch import save_file

RANK, ALPHA = 2, 1.0


def small_lora(model, seed: int = 0, alpha: float | None = ALPHA, scale: float = 0.3) -> dict[str, torch.Tensor]:
    """Returns a kohya LoRA over every attention and convolution weight of a small UNet MODEL."""
    weights = model.model.state_dict()
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for target, name in _names(model).items():
        if weights[target].ndim < 2:
            continue
        shape = weights[target].shape
        tensors[f"{name}.lora_down.weight"] = scale * torch.randn(RANK, *shape[1:], generator=generator)
        up = (shape[0], RANK, *[1] * (len(shape) - 2))
        tensors[f"{name}.lora_up.weight"] = scale * torch.randn(up, generator=generator)
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


def _names(model) -> dict[str, str]:
    """Returns a weight's name -> its module's kohya name."""
    weights, listed = model.model.state_dict(), comfy.lora.model_lora_keys_unet(model.model, {})
    known = {target: name for name, target in listed.items() if name.startswith("lora_unet_") and isinstance(target, str)}
    return {target: name for target, name in known.items() if target in weights}


def write(path: Path, tensors: dict[str, torch.Tensor]) -> str:
    """Writes a LoRA file and returns its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path.name


def bypass_forward(network: torch.nn.Module, model, tensors: dict[str, torch.Tensor], strength: float, *inputs, **named):
    """Returns the network's output with the LoRA beside its weights: layer(x) + strength * alpha / rank * up(down(x))."""
    names = _names(model)
    handles = []
    for path, layer in network.named_modules():
        name = names.get(f"diffusion_model.{path}.weight")
        down = tensors.get(f"{name}.lora_down.weight") if name else None
        if down is not None:
            up, alpha = tensors[f"{name}.lora_up.weight"], float(tensors[f"{name}.alpha"])
            handles.append(layer.register_forward_hook(_beside(layer, down, up, strength * alpha / RANK)))
    try:
        return network(*inputs, **named)
    finally:
        for handle in handles:
            handle.remove()


def _beside(layer, down, up, scale):
    def hook(module, arguments, output):
        x = arguments[0]
        low, high = down.to(x.dtype), up.to(x.dtype)
        if down.ndim == 2:
            return output + scale * torch.nn.functional.linear(torch.nn.functional.linear(x, low), high)
        inner = torch.nn.functional.conv2d(x, low, stride=layer.stride, padding=layer.padding)
        return output + scale * torch.nn.functional.conv2d(inner, high)

    return hook
