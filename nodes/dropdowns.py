"""`hyper_sd_tcd` and `hyper_sd` in every KSampler's sampler and scheduler lists.

These lists are the host's own way to register: comfy.samplers looks a sampler up as comfy.k_diffusion.sampling.sample_<name>.
"""

import comfy.k_diffusion.sampling as k_diffusion
import comfy.samplers
import torch

from ..samplers.schedule import NoiseSchedule
from ..samplers.tcd import sample_tcd
from ..samplers.timesteps import sliceable_sigmas

SAMPLER, SCHEDULER = "hyper_sd_tcd", "hyper_sd"


def scheduler_sigmas(model_sampling, steps: int) -> torch.Tensor:
    """Returns the sigmas of the TCD grid, [steps + 1], for the host's model_sampling. A KSampler has no segments to choose."""
    return sliceable_sigmas(NoiseSchedule.from_sigmas(model_sampling.sigmas.double().cpu()), steps)


def register() -> None:
    """Adds both names once, however often it is called."""
    setattr(k_diffusion, f"sample_{SAMPLER}", sample_tcd)
    for names in (comfy.samplers.KSAMPLER_NAMES, comfy.samplers.SAMPLER_NAMES):
        if SAMPLER not in names:
            names.append(SAMPLER)
    comfy.samplers.SCHEDULER_HANDLERS[SCHEDULER] = comfy.samplers.SchedulerHandler(scheduler_sigmas)
    if SCHEDULER not in comfy.samplers.SCHEDULER_NAMES:
        comfy.samplers.SCHEDULER_NAMES.append(SCHEDULER)
