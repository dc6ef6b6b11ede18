"""One process without a launcher: the training's own engine, with what the command line asks of an engine besides."""

import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from ...errors import TrainingError
from ..denoiser import Denoiser
from ..engine import LocalEngine

LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE")  # what launchers tell a process; accelerate's own variables begin with its name


def is_launched() -> bool:
    """Returns whether `accelerate launch`, torchrun or the like has started this process."""
    return any(name in LAUNCHED or name.startswith("ACCELERATE_") for name in os.environ)


def runs_alone() -> bool:
    """Returns whether this process trains without accelerate: nothing launched it, and it has a CUDA card or a processor."""
    return not is_launched() and (torch.cuda.is_available() or not _has_other_device())


def _has_other_device() -> bool:
    """Returns whether there is a device that is no CUDA card: Apple's, Intel's, or one that a plug-in of torch brings."""
    if torch.backends.mps.is_available() or (hasattr(torch, "xpu") and torch.xpu.is_available()):
        return True
    accelerator = getattr(torch, "accelerator", None)  # since torch 2.6
    found = accelerator.current_accelerator() if accelerator is not None and accelerator.is_available() else None
    return found is not None and found.type != "cuda"


class OneProcess(LocalEngine):
    """The engine of a process that runs_alone().

    Its arithmetic is that of accelerate's engine with one process, so that a run goes on to the bit under either.

    Args:
        precision: "fp32", "bf16" or "fp16".
        asked: returns whether this process was asked to stop; `stopping` says so from the end of a step on.
    Raises: TrainingError for a device that lacks the precision.
    """

    def __init__(self, precision: str = "fp32", asked: Callable[[], bool] = lambda: False):
        is_card = torch.cuda.is_available()
        device = torch.device("cuda", torch.cuda.current_device()) if is_card else torch.device("cpu")
        if precision == "fp16" and not is_card:
            raise TrainingError(f"precision {precision!r} needs a GPU, here is {device}; use bf16 or fp32.")
        if precision == "bf16" and is_card and not torch.cuda.is_bf16_supported():
            raise TrainingError(f"precision {precision!r} does not run here (the card lacks bf16); use fp16 or fp32.")
        super().__init__(device, precision)
        self.asked, self.stopping = asked, False

    def autocast(self, denoiser: Denoiser) -> AbstractContextManager:
        """Returns the context a pass of a network runs in, as accelerate puts it around every forward pass."""
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Returns `values`, and notes whether this process was asked to stop."""
        self.stopping = self.asked()
        return values

    def first_here(self) -> AbstractContextManager:
        """Returns the context of what one process of a machine is to do before the others."""
        return nullcontext()

    def wait(self) -> None:
        """Returns when every process has come here, which is at once."""

    def agree(self, number: int) -> bool:
        """Returns whether every process holds the same `number`."""
        return True

    def require_shared(self, paths: Iterable[Path], what: str) -> None:
        """Refuses to start where machines see other files; there is one machine."""

    def finish(self) -> None:
        """Ends the exchange between processes, of which there is none."""
