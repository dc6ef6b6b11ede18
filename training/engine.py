"""What runs a step: one process here, or many under accelerate (launch/accelerate_engine.py), with the same methods."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from .denoiser import Denoiser

Prepared = nn.Module | torch.optim.Optimizer
PRECISION_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def usual_precision(device: torch.device) -> str:
    """Returns the precision that suits a device: "bf16" or "fp16" on a graphics card, "fp32" elsewhere."""
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def clip_gradients(optimizer: torch.optim.Optimizer, max_grad_norm: float) -> bool:
    """Scales each parameter group's gradients down to `max_grad_norm`; returns whether all are finite."""
    groups = (group["params"] for group in optimizer.param_groups)
    norms = [torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm) for parameters in groups]
    return bool(torch.stack([norm.cpu() for norm in norms]).isfinite().all())


class LocalEngine:
    """One process, one device.

    Args:
        device: of the network.
        precision: of the arithmetic, "fp32", "bf16" or "fp16"; with "fp16" the loss is scaled up, so that small gradients are
            not lost.
    """

    rank, world = 0, 1
    records = True  # whether a pass may be recorded and replayed

    def __init__(self, device: torch.device | str = "cpu", precision: str = "fp32"):
        self.device, self.dtype, self.precision = torch.device(device), PRECISION_DTYPES[precision], precision
        self.scaler = self._new_scaler()

    def _new_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def prepare(self, *parts: Prepared) -> tuple[Prepared, ...]:
        """Returns modules and optimizers as the loop is to use them; a new run starts with the loss scale of the first."""
        self.scaler = self._new_scaler()
        return parts

    def autocast(self, denoiser: Denoiser) -> AbstractContextManager:
        """Returns the context a pass of a network runs in: none where its weights have the precision's dtype already."""
        if self.dtype in (None, denoiser.half_dtype):
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def accumulating(self, module: nn.Module, last: bool) -> AbstractContextManager:
        """Returns the context of one part of a step.

        Args:
            module: the objective, as prepare() returned it.
            last: whether it is the step's last part, the only one in which processes exchange gradients.
        """
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of `loss`, scaled where the precision needs it."""
        self.scaler.scale(loss).backward()

    def update(self, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> bool:
        """Clips each parameter group to `max_grad_norm` and lets the optimizer step.

        Returns: False, with no weight changed, where a gradient is not finite; a loss scaler skips such a step and goes on.
        """
        self.scaler.unscale_(optimizer)
        if not clip_gradients(optimizer, max_grad_norm) and not self.scaler.is_enabled():
            return False
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return True

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Returns the mean of `values` over all processes."""
        return values

    def scaler_state(self) -> dict[str, float]:
        """Returns the loss scaler's numbers, none where there is no scaler."""
        return self.scaler.state_dict()

    def load_scaler_state(self, state: dict[str, float]) -> None:
        """Takes over the loss scaler's numbers."""
        if state:
            self.scaler.load_state_dict(state)
