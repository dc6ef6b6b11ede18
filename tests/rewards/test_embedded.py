"""The scorers of the embedded model's world, on pictures that the model draws and on networks of random weights."""

import pytest
import torch
from hyper_sd.demo.recipe.export import load_checkpoint
from hyper_sd.demo.recipe.sample import generate
from hyper_sd.errors import RewardError
from hyper_sd.models import embedded as files
from hyper_sd.models.embedded import CHECKPOINT, SCORERS
from hyper_sd.rewards.embedded import EmbeddedQuality, load_match, load_quality
from hyper_sd.rewards.table import load

NAMES = ("red apple", "fish", "sunflower", "red heart", "key", "mushroom", "umbrella", "penguin", "pizza", "guitar")


@pytest.fixture(scope="module")
def drawings():
    """Ten pictures that the model draws in 8 steps, [10, 3, 128, 128], and what was asked for."""
    drawn = generate(*load_checkpoint(CHECKPOINT), list(NAMES), steps=8)
    return drawn.permute(0, 3, 1, 2) / 255, list(NAMES)


@pytest.fixture(scope="module")
def match():
    return load("embedded_match", [])


def test_match_finds_the_right_words_for_most_pictures(match, drawings):
    images, names = drawings
    with torch.no_grad():
        scores = torch.stack([match.score(images, [name] * len(images)) for name in names], 1)
    assert (scores.argmax(1) == torch.arange(len(names))).sum() >= 7


def test_score_depends_on_neither_the_batch_nor_the_length_of_other_prompts(match, drawings):
    images, names = drawings
    prompts = [names[0], "a picture of a very long and winding sentence about nothing in particular", *names[2:]]
    with torch.no_grad():
        together, alone = match.score(images, prompts), match.score(images[:1], prompts[:1])
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-3)


def test_prompt_longer_than_the_text_tower_is_cut_and_that_is_said_once(match, drawings, caplog):
    images, names = drawings
    long = [" ".join(["apple"] * 200)] * 2
    with torch.no_grad():
        assert match.score(images[:2], long).isfinite().all()
        match.score(images[:2], long)
        match.score(images[:2], names[:2])
    assert [record.getMessage()[:35] for record in caplog.records] == ["A score reads the first 77 tokens o"]


def test_quality_is_lower_for_noise_and_for_blur(drawings):
    scorer, (images, names) = load_quality(SCORERS), drawings
    noisy = (images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    blurred = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(images, 8), images.shape[2:], mode="bilinear")
    with torch.no_grad():
        clean, worse, worst = (scorer.score(x, names) for x in (images, blurred, noisy))
    assert (worse < clean).sum() >= 9
    assert (worst < clean).sum() >= 9


@pytest.mark.parametrize("name", ["embedded_match", "embedded_quality"])
@pytest.mark.parametrize("size", [(128, 128), (8, 8), (200, 96)])
def test_gradient_reaches_the_picture_and_no_weight(name, size):
    scorer = load(name, [])
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1)).requires_grad_()
    scorer.score(images, ["apple", "fish"]).sum().backward()
    assert images.grad.isfinite().all()
    assert images.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in scorer.parameters())


def test_gradient_equals_finite_differences():
    torch.manual_seed(0)
    scorer = EmbeddedQuality().freeze().double()
    images = torch.rand(1, 3, 128, 128, dtype=torch.float64, requires_grad=True)
    scorer.rate(images, [""]).sum().backward()
    towards = torch.randn(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        high, low = (scorer.rate(images + step * towards, [""]) for step in (1e-5, -1e-5))
    torch.testing.assert_close((images.grad * towards).sum(), ((high - low) / 2e-5).sum(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("path", [CHECKPOINT, SCORERS.with_name("missing.safetensors")])
def test_file_of_another_model_is_refused(path):
    with pytest.raises(RewardError, match=r"cannot be read.*install the pack again"):
        load_match(path, files.TOKENIZER)
