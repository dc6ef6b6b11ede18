"""Which files a MODEL comes from, by the workflow: hosts (0.3.75) do not keep a checkpoint's name in the MODEL."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

FOLDERS = {"ckpt_name": "checkpoints", "unet_name": "diffusion_models"}  # inputs by which loaders take a file -> its folder
ONE_STEP_LOADER = "HyperSDOneStepLoader"  # its input has the folder in front of the name
MODEL, LORA = "model", "lora_name"
LONGEST = 1000  # nodes from the loader on; a workflow that goes round in a ring ends, too


def checkpoint_of(node: type[io.ComfyNode]) -> Path | None:
    """Returns the file of the model that is wired to a running node, None where the wires do not lead to one loader.

    It follows the input "model" of each node, or the only wire that a node such as a reroute has. Two models merged into one
    have no name.

    Args:
        node: with the hidden inputs "prompt" and "unique_id".
    Returns: the path, which the caller may not find there: of a loader that has folders of its own only the name is known.
    """
    for kind, inputs in _nodes_before(node):
        files = [(folder, inputs[name]) for name, folder in FOLDERS.items() if isinstance(inputs.get(name), str)]
        if kind == ONE_STEP_LOADER and isinstance(inputs.get("file"), str):
            files.append(tuple(inputs["file"].partition("/")[::2]))
        for folder, name in files:
            return Path((folder_paths.get_full_path(folder, name) if folder in FOLDERS.values() else None) or name)
    return None


def loras_before(node: type[io.ComfyNode]) -> list[str]:
    """Returns the LoRAs' names in the loaders that the wires of a running node lead to, but for those of strength 0.

    Args:
        node: as checkpoint_of takes it.
    """
    loaders = [inputs for _, inputs in _nodes_before(node) if isinstance(inputs.get(LORA), str)]
    return [inputs[LORA] for inputs in loaders if inputs.get("strength_model") != 0]


def _nodes_before(node: type[io.ComfyNode]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yields the class and the inputs of each node that a running node's model went through, the nearest first."""
    prompt, node_id = getattr(node.hidden, "prompt", None) or {}, getattr(node.hidden, "unique_id", None)
    for _ in range(LONGEST):
        node_id = _source_of(prompt.get(node_id, {}).get("inputs", {}))
        if node_id not in prompt:
            return
        yield prompt[node_id].get("class_type"), prompt[node_id].get("inputs", {})


def _source_of(inputs: dict[str, Any]) -> str | None:
    """Returns the id of the node that gives the model."""
    wires = {name: value[0] for name, value in inputs.items() if isinstance(value, list) and len(value) == 2}
    if MODEL in wires:
        return wires[MODEL]
    return next(iter(wires.values())) if len(wires) == 1 else None
