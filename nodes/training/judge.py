"""The host's VAE and the scorers' files as what looks at pictures while a LoRA learns from human feedback."""

import copy
from collections.abc import Iterable
from typing import Any

import torch

from ...errors import TrainingError
from ...models.host_folders import REWARDS
from ...rewards.table import SCORERS, own_file
from ...training.feedback.judge import Judge
from ...training.feedback.make import make_judge, ready_scorers
from ...training.feedback.settings import FeedbackSettings
from ..model_downloads import model_folders
from .network import HostNetwork, stopping
from .weights import leave_inference_mode


def known_scorers() -> list[str]:
    """Returns the ids of the scorers that can watch a training and whose files are there."""
    return ready_scorers(model_folders(REWARDS))


def own_files(inputs: Iterable[Any]) -> str:
    """Returns what changes with the person's own files of the scorers among a node's inputs, "" where there are none."""
    named = [value for value in inputs if isinstance(value, str) and value in SCORERS]
    return "".join(own_file(scorer, model_folders(REWARDS)) for scorer in named)


def host_judge(host: HostNetwork, vae: Any, settings: FeedbackSettings) -> Judge:
    """Returns who looks at the pictures, on the host's device; the VAE that is wired in stays as it is.

    Args:
        host: the network.
        vae: that decodes.
        settings: of the feedback.
    Raises: TrainingError without a VAE; RewardError for files of scorers that are missing or damaged.
    """
    if vae is None:
        raise TrainingError(
            "Human feedback looks at whole pictures and needs the VAE: wire the vae of the loader into Hyper-SD Train LoRA."
        )
    # The host moves its own off the device when memory is short, and then no gradient could pass.
    decoder = copy.deepcopy(vae.first_stage_model).requires_grad_(False)
    leave_inference_mode(decoder)
    decoder.to(host.device, vae.vae_dtype)

    def decode(latents: torch.Tensor) -> torch.Tensor:
        with stopping():
            pictures = decoder.decode(host.model.process_latent_out(latents).to(vae.vae_dtype))
        return pictures.float().add(1).div(2)

    where = {"folders": model_folders(REWARDS), "device": host.device, "is_embedded": host.is_embedded}
    return make_judge(settings, decode, decoder, **where)
