"""The node that turns lines of text into prompts, so that whatever follows runs once for each."""

from comfy_api.latest import io

from ..errors import HyperSDError
from .schema import CATEGORY, found_as

INPUTS = [
    io.String.Input(
        "prompts",
        multiline=True,
        default="",
        tooltip="One prompt a line; empty lines are left out. All that is wired behind the output prompt runs once for each.",
    ),
]
OUTPUTS = [
    io.String.Output("prompt", "prompt", is_output_list=True, tooltip="Each prompt by itself, for CLIP Text Encode."),
    io.String.Output(
        "all_prompts", "all prompts", tooltip="All prompts in one text, a line each, for captions of Hyper-SD Training Data."
    ),
]


class HyperSDPrompts(io.ComfyNode):
    """Several prompts, drawn one after the other in one run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperSDPrompts",
            display_name="Hyper-SD Prompts",
            category=CATEGORY,
            **found_as("prompt list", "lines", "batch of prompts", "multiple prompts", "for each"),
            description="Several prompts, a line each: what follows runs once for each of them.",
            inputs=INPUTS,
            outputs=OUTPUTS,
        )

    @classmethod
    def execute(cls, prompts: str = "") -> io.NodeOutput:
        lines = [line.strip() for line in prompts.splitlines() if line.strip()]
        if not lines:
            raise HyperSDError("There is no prompt; write one or more, a line each.")
        return io.NodeOutput(lines, "\n".join(lines))


NODES = [HyperSDPrompts]
