"""Many processes on many devices and machines, by accelerate: the same methods as OneProcess."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
)
from torch import nn

from ...errors import TrainingError
from ..denoiser import Denoiser
from ..engine import Prepared, clip_gradients

MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
# These keep the whole objective on every device; the others cut up weights that the adapters' hooks need whole.
DATA_PARALLEL = {kind for kind in DistributedType if kind == DistributedType.NO or kind.startswith("MULTI_")}
PATIENCE = timedelta(hours=2)  # how long processes wait for others that encode or write


class AccelerateEngine:
    """The processes that `accelerate launch` started, or one.

    Args:
        precision: "fp32", "bf16" or "fp16".
        asked: returns whether this process was asked to stop. Every process learns of it in the same step, as `stopping`.
    Raises: TrainingError for a device that lacks the precision, and for sharded training.
    """

    records = False  # accelerate's own hooks run in every pass

    def __init__(self, precision: str = "fp32", asked: Callable[[], bool] = lambda: False):
        try:
            self.accelerator = Accelerator(
                mixed_precision=MIXED[precision],
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # the loop divides by itself
                kwargs_handlers=[
                    DistributedDataParallelKwargs(find_unused_parameters=True),  # heads rest in stages that are not adversarial
                    InitProcessGroupKwargs(timeout=PATIENCE),
                ],
            )
        except ValueError as error:  # accelerate's words for a precision that the device lacks
            raise TrainingError(f"precision {precision!r} does not run here ({error}); use bf16 or fp32.") from error
        if precision != "fp32" and not self.accelerator.native_amp:
            raise TrainingError(f"precision {precision!r} needs a GPU, here is {self.accelerator.device}; use bf16 or fp32.")
        kind = self.accelerator.distributed_type
        if kind not in DATA_PARALLEL:
            raise TrainingError(f"Launched as {kind.value}, but only data parallel training is done; choose multi-GPU or no.")
        self.device = self.accelerator.device
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.asked, self.stopping = asked, False
        self._first_scaler_state = self.scaler_state()

    def prepare(self, *parts: Prepared) -> tuple[Prepared, ...]:
        """Returns modules and optimizers as the loop is to use them; a new run starts with the loss scale of the first."""
        self.accelerator.free_memory()  # of the run before
        self.load_scaler_state(self._first_scaler_state)
        return self.accelerator.prepare(*parts)

    def autocast(self, denoiser: Denoiser) -> AbstractContextManager:
        """Returns the context a pass of a network runs in, the one that accelerate puts around every forward pass."""
        return self.accelerator.autocast()

    def accumulating(self, module: nn.Module, last: bool) -> AbstractContextManager:
        """Returns the context of one part of a step, as LocalEngine.accumulating()."""
        return torch.enable_grad() if last else self.accelerator.no_sync(module)

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of `loss`, scaled where the precision needs it."""
        self.accelerator.backward(loss)

    def update(self, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> bool:
        """Clips and steps as LocalEngine.update(); the processes' gradients are equal by now, so all return the same."""
        self.accelerator.unscale_gradients(optimizer)
        if not clip_gradients(optimizer, max_grad_norm) and not self.accelerator.scaler:
            return False
        optimizer.step()
        optimizer.zero_grad()
        return True

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Returns the mean of `values` [count] over all processes, and tells each whether any of them was asked to stop."""
        asked = values.new_full((1,), float(self.asked()))
        *means, asked = self.accelerator.reduce(torch.cat([values, asked]), "mean").unbind()
        self.stopping = bool(asked > 0)
        return torch.stack(means)

    def scaler_state(self) -> dict[str, float]:
        """Returns the loss scaler's numbers, none where there is no scaler."""
        return self.accelerator.scaler.state_dict() if self.accelerator.scaler else {}

    def load_scaler_state(self, state: dict[str, float]) -> None:
        """Takes over the loss scaler's numbers."""
        if state and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state)

    def first_here(self) -> AbstractContextManager:
        """Returns the context of what one process of a machine is to do before the others."""
        return self.accelerator.local_main_process_first()

    def wait(self) -> None:
        """Returns when every process has come here."""
        self.accelerator.wait_for_everyone()

    def agree(self, number: int) -> bool:
        """Returns whether every process holds the same `number`."""
        numbers = self.accelerator.gather(torch.tensor([number], device=self.device))
        return bool((numbers == numbers[0]).all())

    def require_shared(self, paths: Iterable[Path], what: str) -> None:
        """Refuses to start where machines see files of different sizes, missing ones included.

        Args:
            paths: of the files.
            what: they are, for the error.
        Raises: TrainingError where they do.
        """
        if not self.agree(sum(path.stat().st_size for path in paths if path.exists())):
            raise TrainingError(f"Not every machine sees the same {what}; choose an output.folder that all of them share.")

    def finish(self) -> None:
        """Ends the exchange between processes."""
        self.accelerator.end_training()
