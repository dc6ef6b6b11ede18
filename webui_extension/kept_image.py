"""A shifted question's image behind an inpaint mask: it is noised by the image's own level, not by the one that is asked at."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from modules import script_callbacks

from ..samplers.schedule import NoiseSchedule
from ..samplers.shift import question

OWN_LEVEL = "hyper_sd_own_level"  # on the host's denoiser, for as long as a run of ours needs it


class OwnLevel:
    """Stands before a host's denoiser and keeps what it is about to be asked.

    Args:
        denoiser: the host's CFGDenoiser.
        questions: of every call in turn: the image's own sigma, the asked sigma, and what x is multiplied by for it.
    """

    def __init__(self, denoiser: Any, questions: Iterator[tuple[float, float, float]]):
        self._denoiser, self._questions = denoiser, questions

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **arguments: Any) -> torch.Tensor:
        """Asks the denoiser; x is [batch, 4, height, width] in the scale of the asked sigma [batch]."""
        self.x, (self.own, self.asked, self.scale) = x, next(self._questions)
        return self._denoiser(x, sigma, **arguments)

    def noised(self, mixed: torch.Tensor) -> torch.Tensor:
        """Returns the host's mixture of x and the kept image with the image's noise brought to its own level.

        Args:
            mixed: x * nmask + (image + asked * noise) * mask.
        """
        mask, image = self._denoiser.mask, self._denoiser.init_latent
        noise = (mixed - self.x * self._denoiser.nmask - image * mask) / self.asked  # already times the mask
        return self.x * self._denoiser.nmask + self.scale * (image * mask + self.own * noise)


@contextmanager
def kept_by_own_level(denoiser: Any, schedule: NoiseSchedule, sigmas: torch.Tensor, shift: float) -> Iterator[Any]:
    """Gives what to ask in place of the host's denoiser: the denoiser itself where no mask or no shift is there.

    Args:
        denoiser: the host's CFGDenoiser.
        schedule: the model's noise levels.
        sigmas: of the run, [steps + 1]; a repeated level is asked at once.
        shift: as samplers.shift.shifted_timestep takes it.
    """
    if shift == 1 or getattr(denoiser, "mask", None) is None:
        yield denoiser
        return
    levels = dict.fromkeys(sigmas[:-1].tolist())
    asks = OwnLevel(denoiser, ((level, *question(schedule, level, schedule.timestep(level), shift)) for level in levels))
    setattr(denoiser, OWN_LEVEL, asks)
    try:
        yield asks
    finally:
        delattr(denoiser, OWN_LEVEL)


def correct(params: Any) -> None:
    """Corrects what the network is about to see, where the host has mixed the kept image in: F and C do, A and R do not.

    Args:
        params: the host's CFGDenoiserParams.
    """
    asks = getattr(getattr(params, "denoiser", None), OWN_LEVEL, None)
    if asks is not None and params.x.shape == asks.x.shape and not torch.equal(params.x, asks.x):
        params.x = asks.noised(params.x)


def register() -> None:
    """Has the host ask before every call of the network. Reload UI has forgotten earlier callbacks."""
    script_callbacks.on_cfg_denoiser(correct)
