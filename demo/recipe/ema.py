"""The moving average of a network's weights, which is what the demo model's recipe keeps."""

import torch


class Ema:
    """An exponential moving average of a module's parameters, warmed up as (1 + step) / (10 + step)."""

    def __init__(self, module: torch.nn.Module, decay: float):
        self.decay = decay
        self.shadow = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        state = module.state_dict()
        floats = [k for k in self.shadow if self.shadow[k].is_floating_point()]
        torch._foreach_lerp_([self.shadow[k] for k in floats], [state[k] for k in floats], 1 - decay)
