"""The optimizers of a run: torch's AdamW, or the one of bitsandbytes that keeps its moments in 8 bits."""

import importlib.util
from typing import Any

import torch

from ..errors import TrainingError
from .config import TrainingConfig

BETAS = (0.9, 0.99)
PACKAGE = "bitsandbytes"


def require_optimizer(config: TrainingConfig, device: torch.device) -> None:
    """Refuses an optimizer that is not there, before anything else starts.

    Args:
        config: of the run.
        device: that trains.
    Raises: TrainingError saying what was asked for, what is there, and what to do.
    """
    if config.optimizer != "adamw8bit":
        return
    found = importlib.util.find_spec(PACKAGE) is not None
    if found and device.type == "cuda":
        return
    there = f"{PACKAGE} is {'installed' if found else 'not installed'}, and the training runs on {device.type}"
    remedy = f"run `pip install {PACKAGE}`, or" if device.type == "cuda" else "train on a card, or"
    raise TrainingError(
        f'optimizer "adamw8bit" needs a graphics card (cuda) and the package {PACKAGE}, but {there}; {remedy} use optimizer '
        '"adamw".'
    )


def make_optimizer(groups: list[dict[str, Any]], config: TrainingConfig) -> torch.optim.Optimizer:
    """Returns the optimizer of a run, which notes every group's rate as "base_lr".

    Args:
        groups: "params" and "lr" of each.
        config: of the run.
    """
    for group in groups:
        group["base_lr"] = group["lr"]
    settings: dict[str, Any] = {"betas": BETAS, "weight_decay": config.weight_decay}
    if config.optimizer == "adamw8bit":
        return _in_8_bits(groups, settings)
    try:
        return torch.optim.AdamW(groups, fused=True, **settings)
    except RuntimeError:  # this torch has no such kernel for the device
        return torch.optim.AdamW(groups, **settings)


def _in_8_bits(groups: list[dict[str, Any]], settings: dict[str, Any]) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except (ImportError, OSError, RuntimeError) as error:
        raise TrainingError(
            f'optimizer "adamw8bit" takes {PACKAGE}, which does not load here ({error}); install one for this torch, or use '
            'optimizer "adamw".'
        ) from error
    return AdamW8bit(groups, **settings)
