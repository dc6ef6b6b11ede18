"""A trained LoRA and its way to disk: under a name of its own in the host's loras folder, whole or not at all."""

from collections.abc import Mapping
from typing import Any


class TrainedLora(dict):
    """The host's LORA_MODEL, tensors by name, with what is known of their training.

    Args:
        tensors: a LoRA file's tensors, in names the host reads.
        metadata: base, objective, steps, settings and whatever else belongs into the file; strings only.
    """

    def __init__(self, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None):
        super().__init__(tensors)
        self.metadata: dict[str, str] = dict(metadata or {})
