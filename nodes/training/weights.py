"""The weights of a MODEL as training needs them: plain numbers, all of them on one device, and outside inference mode."""

from typing import Any

import comfy.ops
import torch
from torch import nn

from ...errors import UnsupportedModelError

NETWORK = "diffusion_model"  # the network's name in the host's object around it


def require_trainable(network: nn.Module) -> None:
    """Refuses a network through which nothing can be learnt; nothing is loaded or changed.

    A quantiser keeps a weight as a tensor of its own kind or as whole numbers, and its layers are often no longer torch's: the
    LoRA would silently leave them out.

    Raises: UnsupportedModelError for quantised weights, or for layers that multiply in fp8.
    """
    for name, weight in network.named_parameters():
        if type(weight) is not nn.Parameter or not weight.is_floating_point():
            raise UnsupportedModelError(
                f"Training needs unquantised weights, this model's are packed ({name} is a {type(weight).__name__} of "
                f"{weight.dtype}); instead of a GGUF, NF4, int8 or scaled fp8 file load the same model's .safetensors file in "
                "fp16, bf16 or fp32, with Load Checkpoint or Load Diffusion Model."
            )
    if network.dtype == torch.float8_e4m3fn and any(isinstance(m, comfy.ops.fp8_ops.Linear) for m in network.modules()):
        raise UnsupportedModelError(
            "Training needs layers that have a gradient, this model's multiply in fp8; load it with weight_dtype default or "
            "fp8_e4m3fn instead of fp8_e4m3fn_fast, and start ComfyUI without --fast."
        )


def whole_clone(model: Any) -> Any:
    """Returns a clone of a MODEL that the host loads as a whole.

    Under dynamic VRAM a MODEL's weights come to the device only while a layer computes, so the host reads its file once more,
    without dynamic VRAM. The MODEL itself stays as it is, and its patches act on both.

    Raises: UnsupportedModelError when the host cannot read it again, or when something is built into its layers.
    """
    if not is_dynamic(model):
        return model.clone()
    built_in = [*model.injections, *(name for name in model.object_patches if name.startswith(NETWORK))]
    if built_in:
        raise UnsupportedModelError(
            f"A node before the training has built {', '.join(built_in)} into the layers of this model, which the copy that is "
            "trained under ComfyUI's dynamic VRAM would lack; take that node away (for a LoRA use Load LoRA), or start ComfyUI "
            "with --disable-dynamic-vram."
        )
    if model.cached_patcher_init is None:
        raise UnsupportedModelError(
            f"Training needs the whole model on {model.load_device}, but ComfyUI's dynamic VRAM keeps parts of it elsewhere, "
            "and the node that loaded it gives no way to load it without; use Load Checkpoint or Load Diffusion Model, or "
            "start ComfyUI with --disable-dynamic-vram."
        )
    try:
        return model.clone(disable_dynamic=True)
    except FileNotFoundError as error:
        raise UnsupportedModelError(
            f"To train a model under dynamic VRAM, ComfyUI reads its file once more, and it is gone ({error}); put it back, or "
            "load another model."
        ) from error


def is_dynamic(model: Any) -> bool:
    """Whether the host keeps a MODEL's weights off the device; hosts before 0.15 have no such MODELs."""
    return hasattr(model, "is_dynamic") and model.is_dynamic()


def leave_inference_mode(network: nn.Module) -> None:
    """Replaces tensors that a node has loaded under inference mode, which cannot be trained through, by copies."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and _is_of_inference_mode(parameter):
                module._parameters[name] = nn.Parameter(parameter.clone(), requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None and _is_of_inference_mode(buffer):
                module._buffers[name] = buffer.clone()


def _is_of_inference_mode(tensor: torch.Tensor) -> bool:
    """Whether autograd cannot save a tensor: one moved since says it is not of inference mode, yet torch counts no versions."""
    try:
        return tensor.is_inference() or tensor._version < 0  # never below: the question is whether there is one
    except RuntimeError:
        return True
