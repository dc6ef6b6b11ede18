"""The LoRA that a training starts from, by its name in the node's list."""

import logging
from pathlib import Path
from typing import Any

from ...errors import UnsupportedModelError
from ...models import embedded
from ...models.lora import plan
from ...models.lora_keys import split_key
from ...training.lora_tensors import ALPHA, DOWN, UP, kohya_name
from ...training.request import StartingLora
from ...training.words import NONE, UNIFIED
from ..demo_model import is_embedded
from ..lora_files import fit, known_lora, lora_path, read_file, released_path
from .network import HostNetwork

logger = logging.getLogger("hyper_sd")
PARTS = {"down": DOWN, "up": UP, "alpha": ALPHA}


def starting_lora(host: HostNetwork, model: Any, name: str) -> StartingLora:
    """Returns the LoRA of a name in the node's list.

    Args:
        host: the network.
        model: the MODEL that the network is of.
        name: in the list.
    Raises: UnsupportedModelError for a file that is missing, of another family, or no plain LoRA.
    """
    if name == NONE:
        return StartingLora({})
    path = _unified_path(host, model) if name == UNIFIED else lora_path(name)
    info, tensors = read_file(path, model)
    if info.kind != "LoRA":
        raise UnsupportedModelError(f"start_from takes plain LoRAs, {path.name} is a {info.kind}; choose another, or none.")
    fitting = fit(model, path, tensors)
    if not fitting.match.is_whole:
        logger.warning("%s: %s; training starts from the rest.", path.name, fitting.match)
    own, rename, renamed, changed = host.host_names(), host.lora_name(), {}, set()
    for key, tensor in fitting.tensors.items():
        split = split_key(key)
        if split is None or split.module not in fitting.offered:
            continue
        if split.part not in PARTS:
            raise UnsupportedModelError(f"start_from takes plain LoRAs, {path.name} has {key}; choose another file, or none.")
        changed.add(own[split.module])
        renamed[f"{kohya_name(rename(own[split.module]))}.{PARTS[split.part]}"] = tensor
    if name == UNIFIED:
        return StartingLora(renamed, True, frozenset(changed))
    known = known_lora(name)
    is_unified = known.variant == "unified"
    return StartingLora(renamed, is_unified, frozenset(changed), known.steps or 1, known.start_timestep)


def _unified_path(host: HostNetwork, model: Any) -> Path:
    if is_embedded(model):
        return embedded.lora_file("unified", 1)
    return released_path(plan(host.family, 1, "unified").entry_id)
