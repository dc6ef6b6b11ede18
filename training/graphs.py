"""A pass of fixed shapes, recorded once as a CUDA graph and replayed: Python launches one thing in place of thousands.

The first pass of its kind runs as always. The second is recorded, with everything that it reads in buffers of its own, and
replayed from then on with new values in these buffers.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch

from .adapter_set import AdapterSet
from .config import TrainingConfig
from .data.texts import TOKENS
from .engine import LocalEngine

logger = logging.getLogger("hyper_sd")

MOST = 32  # graphs in a run; each keeps some tens of megabytes of launches, and one belongs to every stage and size of picture
Losses = dict[str, torch.Tensor]


class Recorder(Protocol):
    """What records a pass on some device."""

    def warm(self, function: Callable[[], Losses]) -> Losses:
        """Runs a pass as always, in the way that a recording needs before it."""

    def record(self, function: Callable[[], Losses]) -> tuple[Losses, Callable[[], None]]:
        """Records a pass without running it, and returns the tensors that hold its results and what runs it."""


class CudaRecorder:
    """Records on a card; all its graphs share one pool of memory, as only one of them runs at a time.

    Args:
        device: the card.
    """

    def __init__(self, device: torch.device):
        self.stream, self.pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def warm(self, function: Callable[[], Losses]) -> Losses:
        """Runs a pass on the stream that records."""
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            losses = function()
        current.wait_stream(self.stream)
        return losses

    def record(self, function: Callable[[], Losses]) -> tuple[Losses, Callable[[], None]]:
        """Records a pass; the memory that plain passes have left in torch's cache is given back before."""
        graph = torch.cuda.CUDAGraph()
        # "thread_local": a host's other threads may use the card meanwhile
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            losses = function()
        return losses, graph.replay


@dataclasses.dataclass
class _Recorded:
    inputs: Any
    losses: Losses
    replay: Callable[[], None]
    learning: list[torch.nn.Parameter]


class Graphs:
    """The recorded passes of a run.

    Args:
        recorder: of the device.
        sets: returns the adapter sets that passes read.
    """

    def __init__(self, recorder: Recorder, sets: Callable[[], Iterable[AdapterSet]]):
        self.recorder, self.sets = recorder, sets
        self.off = ""  # why no more passes are recorded, or replayed
        self._said: set[str] = set()
        self._recorded: dict[tuple, _Recorded | None] = {}
        self._gradients: dict[torch.nn.Parameter, torch.Tensor] = {}

    def losses(
        self, kind: tuple, function: Callable[[Any], Losses], inputs: Any, parameters: Iterable[torch.nn.Parameter]
    ) -> Losses:
        """Runs a pass forward and backward, and returns its losses, which the next pass writes over.

        Args:
            kind: what decides the operators of the pass besides the shapes of its inputs.
            function: runs the pass on such inputs; gradients are added to those that are there.
            inputs: dataclasses, mappings and tensors.
            parameters: that may get gradients.
        """
        key = kind + tuple((tensor.shape, tensor.dtype) for tensor in tensors_of(inputs))
        if self.off:
            return function(inputs)
        if TOKENS in names_of(inputs):
            self._say("texts of several lengths in one batch")
            return function(inputs)
        if key not in self._recorded:
            if len(self._recorded) == MOST:
                self._say(f"more than {MOST} sizes of pictures and stages")
                return function(inputs)
            self._recorded[key] = None
            return self.recorder.warm(lambda: function(inputs))
        if self._recorded[key] is None:
            try:
                self._recorded[key] = self._record(function, inputs, [p for p in parameters if p.requires_grad])
            except RuntimeError as error:
                self._give_up(error)
                return function(inputs)
        return self._replayed(self._recorded[key], inputs)

    def _record(self, function: Callable[[Any], Losses], inputs: Any, parameters: list[torch.nn.Parameter]) -> _Recorded:
        buffers = mapped(lambda tensor: tensor.detach().clone(memory_format=torch.contiguous_format), inputs)
        used: list[torch.nn.Parameter] = []
        before = [(parameter, parameter.grad) for parameter in parameters]
        # A pass says by a gradient that it reaches a parameter, and a recorded one must find it where it will always be.
        hooks = [p.register_post_accumulate_grad_hook(used.append) for p in parameters]
        for parameter in parameters:
            parameter.grad = self._buffer(parameter)
        self._forget()
        try:
            losses, replay = self._recording(lambda: function(buffers))
        finally:
            self._forget()  # what was made while recording belongs to the graph
            for hook in hooks:
                hook.remove()
            for parameter, gradient in before:
                parameter.grad = gradient
        return _Recorded(buffers, losses, replay, used)

    def _recording(self, function: Callable[[], Losses]) -> tuple[Losses, Callable[[], None]]:
        """Records, and raises what ended the pass, such as an interrupt, even where a broken recording then fails to end."""
        ended: list[BaseException] = []

        def watched() -> Losses:
            try:
                return function()
            except BaseException as error:
                ended.append(error)
                raise

        try:
            return self.recorder.record(watched)
        except RuntimeError as error:
            if ended and not isinstance(ended[0], RuntimeError):
                raise ended[0] from error
            raise

    def _replayed(self, recorded: _Recorded, inputs: Any) -> Losses:
        for buffer, tensor in zip(tensors_of(recorded.inputs), tensors_of(inputs), strict=True):
            buffer.copy_(tensor, non_blocking=True)
        for parameter in recorded.learning:
            buffer, gradient = self._buffer(parameter), parameter.grad
            if gradient is None:
                buffer.zero_()
            elif gradient is not buffer:
                buffer.copy_(gradient)
            parameter.grad = buffer
        recorded.replay()
        return recorded.losses

    def _buffer(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Returns where recorded passes add a parameter's gradient."""
        if parameter not in self._gradients:
            self._gradients[parameter] = torch.zeros_like(parameter)
        return self._gradients[parameter]

    def _forget(self) -> None:
        for adapters in self.sets():
            adapters.forget()

    def _say(self, why: str) -> None:
        """Logs once why some steps of a run are plain ones."""
        if why not in self._said:
            self._said.add(why)
            logger.info("Some steps of this run are taken without CUDA graphs: %s.", why)

    def _give_up(self, error: RuntimeError) -> None:
        self.off = str(error).splitlines()[0] if str(error) else type(error).__name__
        self._recorded.clear()
        logger.warning(
            "CUDA graphs are off for this run, which is slower and learns the same: the step could not be recorded (%s).",
            self.off,
        )


def can_record(config: TrainingConfig, engine: LocalEngine) -> bool:
    """Returns whether the passes of such a run are recorded, as far as that is known before it."""
    is_wanted = config.cuda_graphs != "off" and config.feedback is None
    return is_wanted and engine.device.type == "cuda" and torch.version.hip is None and engine.records


def make_graphs(config: TrainingConfig, engine: LocalEngine, sets: Callable[[], Iterable[AdapterSet]]) -> Graphs | None:
    """Returns what records a run's passes, or None where it takes plain steps; the reason is logged where a card is there.

    Args:
        config: of the run; "off" as cuda_graphs is a wish, which needs no reason.
        engine: what runs a step.
        sets: returns the run's adapter sets.
    """
    if config.cuda_graphs == "off" or engine.device.type != "cuda":
        return None
    if not can_record(config, engine):
        why = "this torch is made for ROCm" if engine.records else "accelerate runs the steps"
        why = "the steps of human feedback differ from one another" if config.feedback is not None else why
        logger.info("CUDA graphs are off for this run: %s.", why)
        return None
    return Graphs(CudaRecorder(engine.device), sets)


def mapped(function: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """Returns dataclasses, mappings and sequences with another value in place of each tensor; other values stay."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, dict):
        return {name: mapped(function, part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(mapped(function, part) for part in value)
    if dataclasses.is_dataclass(value):
        return type(value)(**mapped(function, vars(value)))
    return value


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Returns the tensors that mapped() would replace, in order."""
    found: list[torch.Tensor] = []
    mapped(found.append, value)
    return found


def names_of(value: Any) -> set[str]:
    """Returns the names in all mappings inside a value that mapped() takes."""
    if isinstance(value, dict):
        return value.keys() | names_of(list(value.values()))
    if isinstance(value, list | tuple):
        return set().union(*map(names_of, value))
    return names_of(vars(value)) if dataclasses.is_dataclass(value) else set()
