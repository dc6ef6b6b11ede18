"""How many operators does torch dispatch in one training step, each of which Python has to launch?

One command, from the repository root, in an environment with the `train` extra; it needs no card:

    python -m hyper_sd.benchmarks.op_count --out benchmarks/results/op_count.json

Counted is a step of the embedded model, and of SDXL's blocks and layers with few channels, at the rank of the preset
"Thorough", beside what it took while every pair of an adapter set was two tensors of its own. The numbers depend on the
version of torch, not on the machine.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
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
from .measure import command_line, logger, machine, start_logging, versions, write_result

OBJECTIVES = ("tscd", "finetune")
COUNTED = PRECISIONS[:2]  # a processor computes the third as it does the second
WARM_UP = 2  # steps before the one that is counted: the first makes the optimizer's state
EMBEDDED_RANK, SDXL_RANK = (PRESETS["Thorough"][family].rank for family in ("embedded", "sdxl"))
# What a step took while every pair of an adapter set was two tensors of its own, cast in every layer and call: all operators,
# and those that compute, which views do not. The network alone, without adapters, is a third of the first and more.
BEFORE = {
    "embedded, tscd, bf16": (9750, 6457), "embedded, finetune, bf16": (7002, 4738),
    "sdxl narrow, tscd, bf16, plain": (68187, 39647), "sdxl narrow, tscd, bf16, checkpointing": (88592, 46941),
    "sdxl narrow, finetune, bf16, plain": (48666, 29168), "sdxl narrow, finetune, bf16, checkpointing": (69071, 36462),
}  # fmt: skip


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


def count_case(case: str) -> dict[str, Any]:
    """Returns count_step() of a case by its name: model, objective, precision, and for SDXL whether blocks are recomputed.

    What BEFORE knows of the case, and the ratios to that, stand beside it.
    """
    _, objective, precision, *how = case.split(", ")
    if how:
        with sdxl_run(objective, precision, how == ["checkpointing"]) as run:
            counted = count_step(run)
    else:
        counted = count_step(embedded_run(objective, precision))
    counted["computing"] = counted["operators"] - counted["views"]
    if case not in BEFORE:
        return counted
    before = dict(zip(("operators", "computing"), BEFORE[case], strict=True))
    return counted | {"before": before, "ratio": {name: round(counted[name] / before[name], 3) for name in before}}


def report() -> dict[str, Any]:
    """Returns the whole result."""
    cases = [f"embedded, {objective}, {precision}" for objective in OBJECTIVES for precision in COUNTED]
    for objective, precision, how in product(OBJECTIVES, COUNTED, ("plain", "checkpointing")):
        cases.append(f"sdxl narrow, {objective}, {precision}, {how}")
    return {
        "what": "operators that torch dispatches in a training step", "device": "cpu",
        "ranks": {"embedded": EMBEDDED_RANK, "sdxl narrow": SDXL_RANK}, "versions": versions(), "machine": machine(),
        "cases": {case: count_case(case) for case in cases},
    }  # fmt: skip


def _run(denoiser: Denoiser, examples: Examples, objective: str, precision: str, batch_size: int, rank: int) -> Run:
    config = TrainingConfig(
        stages=(Stage(4, 1000),), objective=objective, batch_size=batch_size, rank=rank, precision=precision, warmup_steps=0
    )
    layers = LoraLayers(denoiser.network, config.rank)
    return Run(config, denoiser, layers, examples, LocalEngine("cpu", precision), None)


def main() -> None:
    """Reads the command line, counts, and writes JSON."""
    arguments = command_line(__doc__).parse_args()
    start_logging()
    torch.set_num_threads(1)
    result = report()
    for case, counted in result["cases"].items():
        logger.info("%s: %d operators, %d of them compute", case, counted["operators"], counted["computing"])
    write_result(result, arguments.out)


if __name__ == "__main__":
    main()
