"""The LoRAs of a training as the node's outputs."""

from collections.abc import Mapping

import torch
from comfy_execution.graph_utils import ExecutionBlocker

from ...training.export import TrainedLora
from ...training.job import Job
from ...training.lora_tensors import rank_of
from ...training.phases import Outcome
from ...training.presets import TrainRequest
from ...training.request import merged, metadata_of

NO_FEEDBACK = (
    "Hyper-SD Train LoRA made no feedback LoRA. Choose the objective human feedback; or take away the wire from feedback_lora."
)
NO_ONE_STEP = (
    "Hyper-SD Train LoRA made no LoRA for one step. Choose the objective TSCD distillation, stages that end on 1, and one_step "
    "on; or take away the wire from one_step_lora."
)


def trained_loras(
    request: TrainRequest, job: Job, outcome: Outcome
) -> tuple[TrainedLora, TrainedLora | ExecutionBlocker, TrainedLora | ExecutionBlocker]:
    """Returns the LoRA that draws by itself, the one for exactly one step, and what human feedback has added.

    Where one of the last two was not made, what stands in its place stops the nodes that are wired to it, and those alone.

    Args:
        request: what a person asked for.
        job: that was trained.
        outcome: of the training.
    """
    lora = merged(request, job, outcome)
    one_step, feedback = ExecutionBlocker(NO_ONE_STEP), ExecutionBlocker(NO_FEEDBACK)
    if outcome.one_step:
        one_step = _trained(outcome.one_step, metadata_of(request, job, outcome.rank, one_step=True))
    if outcome.feedback:
        feedback = _trained(outcome.feedback, metadata_of(request, job, outcome.rank, feedback_alone=True))
    return _trained(lora, metadata_of(request, job, rank_of(lora))), one_step, feedback


def _trained(lora: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> TrainedLora:
    return TrainedLora({name: tensor.to(torch.float16) for name, tensor in lora.items()}, metadata)
