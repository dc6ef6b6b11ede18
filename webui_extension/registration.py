"""What the A1111 family gets. The sampler and its panels are not written yet; this version serves ComfyUI."""

import logging

logger = logging.getLogger("hyper_sd")


def register() -> None:
    """Says in the host's log that nothing was added, so that nobody looks for a sampler that is not there."""
    logger.warning("Hyper-SD: this version adds nodes to ComfyUI only; nothing was added to this WebUI.")
