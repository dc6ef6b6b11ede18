"""Writes a trained LoRA into the host's loras folder."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ...disk import format_bytes
from ...errors import TrainingError
from ...training.export import clean_name, save_trained
from ..schema import TRAINING, found_as, lasting_text

KEPT = "What was trained is kept while ComfyUI runs: queue again."


class HyperSDSaveLora(io.ComfyNode):
    """Writes a LORA_MODEL into the host's loras folder and says under which name the LoRA loaders list it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperSDSaveLora",
            display_name="Hyper-SD Save LoRA",
            category=TRAINING,
            **found_as("export LoRA", "write LoRA file", "keep training"),
            description="Saves a trained LoRA into models/loras under the next free number; nothing is ever overwritten.",
            inputs=[
                io.Custom("LORA_MODEL").Input("lora", tooltip="From Hyper-SD Train LoRA, or another node that trains a LoRA."),
                io.String.Input(
                    "name",
                    default="my_style",
                    tooltip="The file's name, or folder/name below models/loras; a number is added, my_style_00001_. "
                    "Characters that Windows forbids become _. Change it for every style.",
                ),
                io.String.Input(
                    "licence_note",
                    default="",
                    optional=True,
                    tooltip="Free text kept in the file: whose images it learnt from, and what others may do with it. Empty "
                    "leaves it out.",
                ),
            ],
            outputs=[
                io.String.Output("saved", "saved", tooltip="As the LoRA loaders list it; refresh the page (R) to choose it.")
            ],
            is_output_node=True,
            is_experimental=True,
        )

    @classmethod
    def validate_inputs(cls, name=None) -> bool | str:
        """Refuses a name before the run, not after hours of training."""
        try:
            if name is not None:  # wired from another node, it is known only later
                clean_name(name)
        except TrainingError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, lora, name, licence_note="") -> io.NodeOutput:
        root = Path(folder_paths.get_folder_paths("loras")[0])
        path = save_trained(root, name, lora, licence_note, KEPT)
        text = f"Saved {path}, {format_bytes(path.stat().st_size)}"
        return io.NodeOutput(str(path.relative_to(root)), ui=lasting_text(text))


NODES = [HyperSDSaveLora]
