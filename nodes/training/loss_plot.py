"""The losses of a training run as a picture, on the node itself and as an IMAGE."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui

from ...errors import TrainingError
from ...evaluation.loss_chart import loss_chart
from ..schema import TRAINING, found_as


def losses_and_stages(loss_map: Mapping[str, Any]) -> tuple[list[float], list[tuple[str, int]]]:
    """Returns a LOSS_MAP's losses, and the title and the first step of each of its stages.

    Raises: TrainingError when there is no loss in it.
    """
    losses = [float(loss) for loss in loss_map.get("loss", ())]
    if not losses:
        raise TrainingError("The loss map holds no loss; wire it from a training node that made at least one step.")
    return losses, [(str(stage["title"]), int(stage["first_step"])) for stage in loss_map.get("stages", ())]


class HyperSDLossPlot(io.ComfyNode):
    """A LOSS_MAP as a chart: each step, a smoothed line, and the stages of the run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperSDLossPlot",
            display_name="Hyper-SD Loss Plot",
            category=TRAINING,
            **found_as("loss graph", "training curve", "chart"),
            description="Draws how the loss went over a training run, with its stages; the node shows the picture itself.",
            inputs=[
                io.Custom("LOSS_MAP").Input(
                    "loss_map", tooltip="From Hyper-SD Train LoRA, or another node that trains: one loss for each step."
                )
            ],
            outputs=[io.Image.Output("plot", "plot", tooltip="800x480 pixels, for Save Image.")],
            is_output_node=True,
            is_experimental=True,
        )

    @classmethod
    def execute(cls, loss_map) -> io.NodeOutput:
        chart = loss_chart(*losses_and_stages(loss_map))
        image = torch.from_numpy(np.array(chart, dtype=np.float32) / 255)[None]
        return io.NodeOutput(image, ui=ui.PreviewImage(image))


NODES = [HyperSDLossPlot]
