"""Every released scorer at a small size: what it gives, what it takes, and where gradients go."""

import pytest
import torch
import torch.nn.functional as F
from hyper_sd.errors import RewardError
from hyper_sd.rewards.image_reward import DEVIATION, MEAN
from hyper_sd.rewards.scorer import score_all
from hyper_sd.tests.rewards.small_networks import drawn, head_shapes, pictures

KINDS = ("ClipScore", "Aesthetic", "ImageReward", "PickScore", "HumanPreference")
READERS = tuple(kind for kind in KINDS if kind != "Aesthetic")
each = pytest.mark.parametrize("kind", KINDS)
PROMPTS = ["w3 w7 w1", "w9"]

# Made once by the originals themselves, from the same random weights: hpsv2.src.open_clip.model.CLIP (GELU and QuickGELU), and
# ImageReward's BLIP (ImageReward.models.BLIP.vit and .med) with its head, on pictures() and the token numbers of PROMPTS.
COSINES = {"gelu": [0.3417791426, 0.3361355662], "quick_gelu": [0.3505850434, 0.3424200118]}
LOGIT_SCALE = 0.9626177549  # its exponential
IMAGE_REWARDS = [0.9070430398, -0.8751675487]
IMAGE_REWARD_IDS = [[101, 3000, 7, 19, 102], [101, 9, 102]]


@pytest.fixture
def scorer(small, kind):
    """One small scorer, from its files."""
    return getattr(small, kind)()


def test_hps_is_the_cosine_of_the_original(small):
    torch.testing.assert_close(small.HumanPreference().score(pictures(), PROMPTS), torch.tensor(COSINES["gelu"]))


def test_quick_gelu_gives_the_cosine_of_the_original(small, monkeypatch):
    from hyper_sd.rewards.hps import HumanPreference
    from hyper_sd.tests.rewards.small_networks import QUICK

    monkeypatch.setattr(HumanPreference, "towers", QUICK)
    torch.testing.assert_close(small.HumanPreference().score(pictures(), PROMPTS), torch.tensor(COSINES["quick_gelu"]))


def test_pick_score_and_clip_score_scale_the_cosine_and_do_not_cut_it(small, monkeypatch):
    from hyper_sd.rewards.hps import from_open_clip
    from hyper_sd.rewards.pick_score import PickScore
    from hyper_sd.tests.rewards.small_networks import open_clip_shapes

    scorer = small.PickScore()
    scorer.model.load_state_dict(from_open_clip(drawn(open_clip_shapes())), strict=False)
    cosines = torch.tensor(COSINES["gelu"])
    torch.testing.assert_close(scorer.score(pictures(), PROMPTS), LOGIT_SCALE * cosines)
    torch.testing.assert_close(scorer.cosine(pictures(), PROMPTS), cosines)
    assert isinstance(scorer, PickScore)
    clip = small.ClipScore()
    turned = clip.model.visual_projection.weight
    before = clip.score(pictures(), PROMPTS)
    torch.testing.assert_close(before, 100 * clip.cosine(pictures(), PROMPTS))
    turned.neg_()
    torch.testing.assert_close(clip.score(pictures(), PROMPTS), -before)


def test_image_reward_is_that_of_the_original(small, monkeypatch):
    scorer = small.ImageReward()
    ids, mask = torch.zeros(2, 35, dtype=torch.long), torch.zeros(2, 35, dtype=torch.long)
    for row, listed in enumerate(IMAGE_REWARD_IDS):
        ids[row, : len(listed)], mask[row, : len(listed)] = torch.tensor(listed), 1
    scorer.tokenize = lambda prompts: (ids, mask)
    scores = scorer.score(pictures(), PROMPTS)
    torch.testing.assert_close(scores, torch.tensor(IMAGE_REWARDS), rtol=1e-4, atol=1e-4)


def test_image_reward_has_its_mean_at_zero_and_its_deviation_as_one():
    from hyper_sd.rewards.image_reward import ImageReward

    numbers = torch.tensor([MEAN, MEAN + 2 * DEVIATION])
    scorer = ImageReward(lambda pixels, ids, mask: numbers, lambda prompts: (numbers, numbers), 32)
    torch.testing.assert_close(scorer.score(pictures(), PROMPTS), torch.tensor([0.0, 2.0]), atol=1e-6, rtol=0)


def test_aesthetic_is_the_linear_head_on_the_features_of_length_one(small):
    scorer, weights = small.Aesthetic(), drawn(head_shapes())
    from hyper_sd.rewards.scorer import normalised

    with torch.no_grad():
        wanted = F.normalize(scorer.sight(normalised(pictures())), dim=1)
        assert wanted.shape == (2, 768)
        for place in (0, 2, 4, 6, 7):
            wanted = wanted @ weights[f"layers.{place}.weight"].T + weights[f"layers.{place}.bias"]
    torch.testing.assert_close(scorer.score(pictures(), ["", ""]), wanted[:, 0])
    assert not scorer.reads_prompt


@each
def test_gradients_reach_the_picture_and_no_weight(scorer):
    images = pictures().requires_grad_()
    scorer.score(images, PROMPTS).sum().backward()
    assert images.grad.isfinite().all()
    assert (images.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(weight.grad is None and not weight.requires_grad for weight in scorer.parameters())


@each
def test_gradient_is_the_slope_of_the_score(scorer):
    if hasattr(scorer, "texts"):  # the texts stay in float32: some releases of transformers cannot mask them in float64
        read = scorer.texts(PROMPTS[:1]).double()
        scorer.texts = lambda prompts: read
    scorer = scorer.double()
    scorer.score, images = scorer.rate, pictures(batch=1).double().requires_grad_()
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(4), dtype=torch.double)
    scorer.score(images, PROMPTS[:1]).backward()
    step = 1e-5 * direction
    with torch.no_grad():
        slope = (scorer.score(images + step, PROMPTS[:1]) - scorer.score(images - step, PROMPTS[:1])) / 2e-5
    torch.testing.assert_close((images.grad * direction).sum(), slope[0], rtol=1e-3, atol=1e-7)


@each
@pytest.mark.parametrize("shape", [(8, 8), (31, 57), (300, 64), (40, 512)])
def test_pictures_of_any_size_are_scored(scorer, shape):
    scores = scorer.score(torch.rand(1, 3, *shape), ["w1"])
    assert scores.shape == (1,)
    assert scores.isfinite().all()


@each
def test_batch_gives_what_each_picture_gives_alone(scorer):
    images, prompts = pictures(batch=5), ["w1", "w2 w3", "", "w4 " * 60, "w5"]
    alone = torch.cat([scorer.score(images[i : i + 1], prompts[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(scorer.score(images, prompts), alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(score_all(scorer, images, prompts, batch=2), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", READERS)
def test_another_prompt_gives_another_score(scorer):
    images = pictures(batch=1).expand(2, -1, -1, -1)
    first, second = scorer.score(images, PROMPTS)
    assert first != second


@each
def test_picture_that_is_not_a_number_is_refused(scorer):
    images = pictures()
    images[1, 0, 3, 3] = float("nan")
    with pytest.raises(RewardError, match="not numbers"):
        scorer.score(images, PROMPTS)


@each
def test_damaged_weights_are_told_and_not_scored(scorer):
    for weight in scorer.parameters():
        weight.fill_(float("nan"))
    with pytest.raises(RewardError, match="not a number"):
        scorer.score(pictures(), PROMPTS)


@each
def test_scores_of_half_precision_pictures_are_float32(scorer):
    assert scorer.score(pictures().half(), PROMPTS).dtype == torch.float32


@pytest.mark.parametrize("kind", READERS)
def test_long_prompt_is_cut_where_the_tower_ends_and_said_once(scorer, caplog):
    length = 35 if type(scorer).__name__ == "ImageReward" else 12
    long, cut = "w7 " * 100, " ".join(["w7"] * (length - 2))
    first = scorer.score(pictures(), [long, "w1"])
    torch.testing.assert_close(first, scorer.score(pictures(), [cut, "w1"]))
    scorer.score(pictures(), [long, long])
    said = [record.message for record in caplog.records if "of a prompt" in record.message]
    assert len(said) == 1
    assert f"the first {length} tokens" in said[0]
