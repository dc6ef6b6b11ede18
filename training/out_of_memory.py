"""What a person is told where the memory does not suffice."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import TrainingError
from .config import TrainingConfig


@contextmanager
def explaining_memory(config: TrainingConfig) -> Iterator[None]:
    """Turns what torch raises where memory does not suffice into a TrainingError that says what helps."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise TrainingError(_memory_advice(config, error)) from error


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "allocate memory" in str(error).lower()


def _memory_advice(config: TrainingConfig, error: BaseException) -> str:
    at_once = config.batch_size // config.accumulation
    steps = [] if config.gradient_checkpointing else ["turn on gradient_checkpointing"]
    less = f"raise accumulation (now {config.accumulation}, {at_once} examples at a time) or lower batch_size"
    steps += [less] if at_once > 1 else []
    records = isinstance(error, torch.cuda.OutOfMemoryError) and config.cuda_graphs != "off"
    steps += ['set cuda_graphs to "off"'] if records else []
    steps += [f"lower rank (now {config.rank})", "use smaller images"]
    return f"Not enough memory for this training ({error}). What helps, best first: {'; '.join(steps)}."
