"""A stand-in for the allocator under the host's dynamic VRAM, whose own library needs a card: the processor plays the card.

The host's own ModelPatcherDynamic and loaders run on it. It cannot show that weights leave the device: there is only one.
"""

import torch

CARD = torch.device("cpu", 0)  # the same memory, but to torch and to the host another device than cpu


class Range:
    """An address range for weights, none of which is ever resident."""

    def __init__(self, size, device):
        self.taken = 0

    def alloc(self, size):
        self.taken += size
        return self, self.taken - size, size

    def prioritize(self):
        pass

    def loaded_size(self):
        return 0

    def free_memory(self, size):
        return 0


class HostBuffer:
    """Pinned memory, of which nothing is ever taken."""

    size = 0

    def __init__(self, size, prewarm=0, max_grow_size=0, mark_cold=True):
        pass


def install(monkeypatch) -> None:
    """Turns dynamic VRAM on for CARD, as the host's main.py does for a graphics card."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy_aimdo.host_buffer
    import comfy_aimdo.model_vbar

    monkeypatch.setattr(comfy_aimdo.model_vbar, "ModelVBAR", Range)
    monkeypatch.setattr(comfy_aimdo.model_vbar, "vbar_unpin", lambda allocation: None)
    monkeypatch.setattr(comfy_aimdo.host_buffer, "HostBuffer", HostBuffer)
    monkeypatch.setattr(comfy.model_management, "is_device_cpu", lambda device: device == torch.device("cpu"))
    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcherDynamic)
