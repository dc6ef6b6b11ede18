"""A shifted question and an inpaint mask where the host noises the kept image itself, as Forge does before every call."""

from types import SimpleNamespace

import pytest
import torch
from hyper_sd.samplers.schedule import NoiseSchedule
from hyper_sd.samplers.tcd import sample_tcd
from hyper_sd.samplers.timesteps import sigmas_at

SCHEDULE = NoiseSchedule.from_betas()
GRID = [999, 749, 499, 249]
SHAPE = (2, 4, 8, 8)


def _normal(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


class Denoiser:
    """Forge's order: the kept image and noise of the level it is asked at, the callback, the network, the kept image again."""

    def __init__(self, correct, mixes: bool):
        self.correct, self.mixes, self.seen = correct, mixes, []
        self.mask = torch.linspace(1, 0, 8).expand(SHAPE)  # a soft one
        self.nmask, self.init_latent = 1 - self.mask, _normal(1)

    def __call__(self, x, sigma):
        level = sigma[:, None, None, None]
        if self.mixes:
            x = x * self.nmask + (self.init_latent + level * _normal(2)) * self.mask
        params = SimpleNamespace(x=x, denoiser=self)
        self.correct(params)
        self.seen.append(params.x / (1 + level**2) ** 0.5)
        return self.init_latent * (1 - self.nmask) + 0.1 * params.x * self.nmask


@pytest.fixture
def kept_image(host):
    from hyper_sd.webui_extension import kept_image

    assert kept_image.correct in host.callbacks["on_cfg_denoiser"]
    return kept_image


def _seen(kept_image, mixes: bool, shift: float, masked: bool = True) -> tuple[list[torch.Tensor], Denoiser]:
    """Returns what the network sees at every call of a run by NitroSD's rule."""
    denoiser, sigmas = Denoiser(kept_image.correct, mixes), sigmas_at(SCHEDULE, GRID)
    if not masked:
        denoiser.mask = None
        denoiser.mixes = False
        denoiser.nmask, denoiser.init_latent = torch.ones(SHAPE), torch.zeros(SHAPE)
    start, rule = _normal(3) * sigmas[0], {"eta": 1.0, "to_clean": True, "timestep_shift": shift}
    with kept_image.kept_by_own_level(denoiser, SCHEDULE, sigmas, shift) as asked:
        assert (asked is denoiser) == (shift == 1 or not masked)
        sample_tcd(asked, start, sigmas, schedule=SCHEDULE, disable=True, noise_sampler=lambda *_: _normal(4), **rule)
    assert not hasattr(denoiser, kept_image.OWN_LEVEL)
    return denoiser.seen, denoiser


@pytest.mark.parametrize("shift", [0.25, 0.5])
def test_kept_image_is_seen_with_the_images_own_noise(kept_image, shift):
    seen, denoiser = _seen(kept_image, True, shift)
    for t, x in zip(GRID, seen, strict=True):
        level = SCHEDULE.sigma(t)
        kept = (denoiser.init_latent + level * _normal(2)) / (1 + level**2) ** 0.5
        torch.testing.assert_close(x[..., 0], kept[..., 0], rtol=0, atol=1e-4)  # where the mask is 1


def test_what_is_made_anew_is_left_alone(kept_image):
    mixed, plain = (_seen(kept_image, mixes, 0.25)[0] for mixes in (True, False))
    torch.testing.assert_close(mixed[0][..., -1], plain[0][..., -1], rtol=0, atol=1e-5)  # where the mask is 0


def test_host_that_mixes_nothing_in_keeps_its_x(kept_image):
    seen, _ = _seen(kept_image, False, 0.25)
    torch.testing.assert_close(seen[0], _normal(3) * 14.6146 / (1 + 14.6146**2) ** 0.5, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("shift", "masked"), [(1.0, True), (0.25, False)])
def test_without_shift_or_mask_the_host_is_asked_itself(kept_image, shift, masked):
    assert len(_seen(kept_image, True, shift, masked)[0]) == 4
