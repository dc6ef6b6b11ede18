"""A stand-in for the weights of a GGUF file as ComfyUI-GGUF keeps them: a tensor of its own kind over packed bytes."""

import torch


class PackedWeight(torch.Tensor):
    """Blocks of 34 bytes for 32 values each (Q8_0); its shape is the layer's."""

    @property
    def shape(self):
        return self.tensor_shape

    def detach(self):
        return self


def pack(layer: torch.nn.Linear) -> None:
    """Gives a layer packed weights; its state_dict then has no values, as ComfyUI-GGUF's has none."""
    rows, columns = layer.weight.shape
    packed = torch.zeros(rows, columns // 32 * 34, dtype=torch.uint8).as_subclass(PackedWeight)
    packed.tensor_shape = layer.weight.shape
    layer.weight = torch.nn.Parameter(packed, requires_grad=False)

    def without_values(module, state, prefix, metadata):
        state[prefix + "weight"] = torch.empty(module.weight.size(), dtype=torch.uint8, device="meta")

    layer._register_state_dict_hook(without_values)
