"""Fills the shipped workflow, demo/workflow.json, with what one image needs."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path

from ..models.embedded import lora_title
from ..samplers.timesteps import LAST_TIMESTEP

WORKFLOW = Path(__file__).resolve().parent / "workflow.json"
NO_LORA, UNIFIED_LORA = "none", lora_title(("unified", 1))  # HyperSDDemoModel's names


def load_workflow() -> dict:
    """Returns the shipped workflow in ComfyUI's API format."""
    return json.loads(WORKFLOW.read_text(encoding="utf-8"))


def node_id(workflow: dict, title: str) -> str:
    """Returns the id of the node with a title."""
    return next(key for key, node in workflow.items() if node["_meta"]["title"] == title)


def fill_workflow(
    workflow: dict,
    *,
    prompt: str,
    negative: str,
    steps: int,
    seed: int,
    cfg: float,
    eta: float,
    size: int,
    checkpoint: str | None,
    lora: str = NO_LORA,
    start_timestep: int = LAST_TIMESTEP,
    num_segments: int = 1,
) -> dict:
    """Returns a copy of the workflow with these settings.

    Args:
        size: width and height in pixels.
        checkpoint: its name in CheckpointLoaderSimple, None for the demo model.
        lora: the demo model's, as its node lists them.
        start_timestep: where the first step is.
        num_segments: of the grid and the sampler.
    """
    filled = copy.deepcopy(workflow)

    def inputs(title: str) -> dict:
        return filled[node_id(filled, title)]["inputs"]

    inputs("Model")["hyper_sd_lora"] = lora
    inputs("Prompt")["text"] = prompt
    inputs("Negative prompt")["text"] = negative
    inputs("Size").update(width=size, height=size)
    inputs("Steps").update(steps=steps, start_timestep=start_timestep, num_segments=num_segments)
    inputs("Sampler").update(eta=eta, num_segments=num_segments)
    inputs("Sampling").update(noise_seed=seed, cfg=cfg)
    if checkpoint:
        filled[node_id(filled, "Model")].update(class_type="CheckpointLoaderSimple", inputs={"ckpt_name": checkpoint})
    return filled


def with_loras(workflow: dict, loras: Sequence[tuple[str, float]]) -> dict:
    """Returns a copy of the workflow whose model has LoRAs on it, by the host's own loader.

    Args:
        workflow: as fill_workflow returns it.
        loras: name among the host's LoRAs and strength of each.
    """
    filled = copy.deepcopy(workflow)
    model = [node_id(filled, "Model"), 0]
    users = [node["inputs"] for node in filled.values() if node["inputs"].get("model") == model]
    last = model
    for number, (name, strength) in enumerate(loras):
        key = f"lora{number}"
        inputs = {"model": last, "lora_name": name, "strength_model": strength}
        filled[key] = {"class_type": "LoraLoaderModelOnly", "inputs": inputs, "_meta": {"title": f"LoRA {number + 1}"}}
        last = [key, 0]
    for inputs in users:
        inputs["model"] = last
    return filled


def literal(prompt: str) -> str:
    """Returns a prompt in which ComfyUI reads brackets as brackets and not as weights."""
    return prompt.replace("(", "\\(").replace(")", "\\)")
