"""How pictures are brought to a tower's size: as CLIP's own preparation, and as HPS's."""

import numpy as np
import pytest
import torch
from hyper_sd.rewards.hps import fitted
from hyper_sd.rewards.scorer import CLIP_STATISTICS, normalised, resized
from PIL import Image


@pytest.mark.parametrize(("height", "width"), [(500, 500), (300, 700), (640, 300), (100, 150), (224, 224)])
def test_preparation_is_that_of_clip_on_a_picture_file(height, width):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    short = min(height, width)
    scaled = coarse.resize((int(width * 224 / short), int(height * 224 / short)), Image.Resampling.BICUBIC)
    left, top = round((scaled.width - 224) / 2), round((scaled.height - 224) / 2)
    wanted = np.asarray(scaled.crop((left, top, left + 224, top + 224)), dtype=np.float32) / 255
    images = torch.tensor(np.asarray(coarse, dtype=np.float32)).permute(2, 0, 1)[None] / 255
    given = resized(images, 224)[0].permute(1, 2, 0).numpy()
    assert np.abs(given - wanted).mean() < 1.5 / 255  # a picture file has 255 steps, and the middle may lie half a pixel aside
    mean, deviation = CLIP_STATISTICS
    torch.testing.assert_close(
        normalised(images)[0, :, 0, 0], (images[0, :, 0, 0] - torch.tensor(mean)) / torch.tensor(deviation)
    )


def test_whole_picture_is_fitted_between_black_bars():
    images = torch.ones(2, 3, 100, 50)
    given = fitted(images, 224)
    assert given.shape == (2, 3, 224, 224)
    torch.testing.assert_close(given[..., 56:168], torch.ones(2, 3, 224, 112))
    assert not given[..., :56].any()
    assert not given[..., 168:].any()


@pytest.mark.parametrize("shape", [(8, 900), (900, 8), (224, 224), (224, 100), (9, 9)])
def test_picture_of_any_form_is_fitted(shape):
    given = fitted(torch.rand(1, 3, *shape), 224)
    assert given.shape == (1, 3, 224, 224)


def test_square_of_the_right_size_stays_as_it_is():
    images = torch.rand(1, 3, 224, 224)
    assert torch.equal(fitted(images, 224), images)
