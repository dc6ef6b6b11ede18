"""Counts the operators that torch dispatches in one training step, which is what Python costs where the device is fast.

A test sets a bar on the number like this:

    counted = count_step(embedded_run("tscd", "bf16"))
    assert counted["operators"] <= 0.5 * BEFORE

or prints the table of all that are counted: `counts()`.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..training.config import PRECISIONS, Stage, TrainingConfig
from ..training.data.examples import Examples
from ..training.denoiser import Denoiser
from ..training.engine import PRECISION_DTYPES, LocalEngine
from ..training.lora_layers import LoraLayers
from ..training.preset_table import PRESETS
from ..training.recompute import recomputing
from ..training.run import Run
from . import sdxl_shape, step_cost

WARM_UP = 2  # steps before the one that is counted: the first makes the optimizer's state
EMBEDDED_RANK, SDXL_RANK = (PRESETS["Thorough"][family].rank for family in ("embedded", "sdxl"))


class OpCounter(TorchDispatchMode):
    """While active, counts the operators that torch dispatches, forward and backward, by the part of the step and by name."""

    def __init__(self) -> None:
        super().__init__()
        self.part = "forward"
        self.parts: Counter[str] = Counter()
        self.names: Counter[str] = Counter()
        self.views = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        self.parts[self.part] += 1
        self.names[func._schema.name] += 1
        self.views += func.is_view
        return func(*args, **(kwargs or {}))

    def during(self, part: str, call: Callable) -> Callable:
        """Returns a function that does as `call` does, and whose operators are counted under `part`."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            before, self.part = self.part, part
            try:
                return call(*args, **kwargs)
            finally:
                self.part = before

        return counted


def count_step(run: Run, most: int = 12) -> dict[str, Any]:
    """Takes WARM_UP steps of a run and counts the operators of the next one, Run.advance().

    Args:
        run: whose steps are taken.
        most: how many names of operators are listed.
    Returns: "operators", all of them; "views", those among them that only look at a tensor in another way and launch
        nothing; "parts", all of them by "forward" (with all that is neither of the others), "backward" and "update" (clipping
        and optimizer); "names", the most frequent ones.
    """
    for _ in range(WARM_UP):
        run.advance()
    counter, engine = OpCounter(), run.engine
    engine.backward, engine.update = counter.during("backward", engine.backward), counter.during("update", engine.update)
    try:
        with counter:
            run.advance()
    finally:
        del engine.backward, engine.update  # the class's own are seen again
    return {
        "operators": counter.parts.total(), "views": counter.views, "parts": dict(counter.parts),
        "names": dict(counter.names.most_common(most)),
    }  # fmt: skip


def embedded_run(objective: str, precision: str, batch_size: int = 2) -> Run:
    """Returns a run of the embedded model's UNet, untrained, its weights in the precision's dtype as a run file has them.

    Args:
        objective: "tscd" or "finetune".
        precision: "fp32", "bf16" or "fp16".
        batch_size: examples in a step.
    """
    network = nn.Module.to(step_cost.make_network(), PRECISION_DTYPES[precision] or torch.float32)
    examples, denoiser = step_cost.make_examples("cpu"), sdxl_shape.make_denoiser(network)
    return _run(denoiser, examples, objective, precision, batch_size, EMBEDDED_RANK)


@contextmanager
def sdxl_run(objective: str, precision: str, checkpointing: bool, batch_size: int = 1) -> Iterator[Run]:
    """Lends a run of SDXL's UNet with all its blocks and layers, narrow, with the rank of the preset "Thorough".

    Args:
        objective: "tscd" or "finetune".
        precision: "fp32", "bf16" or "fp16".
        checkpointing: whether blocks are recomputed.
        batch_size: examples in a step.
    """
    network = sdxl_shape.build_network(narrow=True, dtype=PRECISION_DTYPES[precision] or torch.float32)
    examples, denoiser = sdxl_shape.make_examples(network, count=4, size=8), sdxl_shape.make_denoiser(network)
    run = _run(denoiser, examples, objective, precision, batch_size, SDXL_RANK)
    with ExitStack() as stack:
        if checkpointing:
            stack.enter_context(recomputing(network, run.layers))
        yield run


def counts() -> dict[str, dict[str, Any]]:
    """Returns count_step() of the embedded model and of SDXL's structure, by a name for each case."""
    found = {}
    for objective in ("tscd", "finetune"):
        for precision in PRECISIONS[:2]:
            found[f"embedded, {objective}, {precision}"] = count_step(embedded_run(objective, precision))
            for checkpointing in (False, True):
                with sdxl_run(objective, precision, checkpointing) as run:
                    how = "checkpointing" if checkpointing else "plain"
                    found[f"sdxl narrow, {objective}, {precision}, {how}"] = count_step(run)
    return found


def _run(denoiser: Denoiser, examples: Examples, objective: str, precision: str, batch_size: int, rank: int) -> Run:
    config = TrainingConfig(
        stages=(Stage(4, 1000),), objective=objective, batch_size=batch_size, rank=rank, precision=precision, warmup_steps=0
    )
    layers = LoraLayers(denoiser.network, config.rank)
    return Run(config, denoiser, layers, examples, LocalEngine("cpu", precision), None)
