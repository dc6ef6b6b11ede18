"""The scorers with their released weights, for whoever has them: set HYPER_SD_REWARDS to the folder of the files.

    HYPER_SD_REWARDS=ComfyUI/models/hyper_sd_rewards python -m pytest tests/rewards/test_real_weights.py

Every scorer whose files are not in that folder is skipped, so without the variable all of them are.
"""

import os

import pytest
import torch
from hyper_sd.rewards.scorer import score_all
from hyper_sd.rewards.table import BOTH, SCORERS, find_files, load

FOLDER = os.environ.get("HYPER_SD_REWARDS", "")
RANGES = {"clip": (0, 50), "aesthetic": (1, 10), "image_reward": (-4, 4), "pick_score": (10, 30), "hps": (0, 0.5)}


@pytest.fixture
def pictures():
    """A red disc, and a blue square, both on white."""
    places = torch.linspace(-1, 1, 320)
    disc = (places[:, None] ** 2 + places**2 < 0.4).float()
    square = ((places[:, None].abs() < 0.6) & (places.abs() < 0.6)).float()
    red, blue = torch.tensor([0.9, 0.1, 0.1]).view(3, 1, 1), torch.tensor([0.1, 0.1, 0.9]).view(3, 1, 1)
    return torch.stack([disc * red + (1 - disc), square * blue + (1 - square)])


@pytest.mark.parametrize("scorer_id", SCORERS)
def test_right_text_scores_higher_than_the_other(pictures, scorer_id):
    kind = SCORERS[scorer_id]
    if not FOLDER or find_files(kind.files, FOLDER)[1]:
        pytest.skip("HYPER_SD_REWARDS names no folder with this score's files")
    scorer = load(scorer_id, FOLDER, "cuda" if torch.cuda.is_available() else "cpu")
    texts = ["a red circle on a white background", "a blue square on a white background"]
    right, wrong = score_all(scorer, pictures, texts), score_all(scorer, pictures, texts[::-1])
    low, high = RANGES[scorer_id]
    assert ((low <= right) & (right <= high)).all()
    assert (right > wrong).all() if kind.reads == BOTH else torch.equal(right, wrong)
