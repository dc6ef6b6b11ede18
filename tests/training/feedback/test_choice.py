"""From the words of a request to who judges and who watches."""

import pytest
import torch
from hyper_sd.errors import RewardError, TrainingError
from hyper_sd.training.feedback.choice import EMBEDDED_REWARDS, TASTE_BRAKE, TASTE_RATE, feedback_of
from hyper_sd.training.feedback.make import make_judge, ready_scorers
from hyper_sd.training.feedback.settings import FeedbackSettings
from hyper_sd.training.presets import TrainRequest, phases
from torch import nn


def chosen(is_embedded=False, ready=(), start_steps=1, **words):
    request = TrainRequest(objective="human feedback", **words)
    return feedback_of(request, is_embedded=is_embedded, start_steps=start_steps, ready=ready)


@pytest.mark.parametrize(
    ("words", "rewards", "held_out"),
    [
        ({}, ("image_reward", "aesthetic"), "hps"),
        ({"second_reward": "none"}, ("image_reward",), "hps"),
        ({"reward": "hps"}, ("hps",), "clip"),
        ({"reward": "pick_score", "second_reward": "clip"}, ("pick_score", "clip"), "hps"),
        ({"reward": "my_taste"}, ("my_taste",), "hps"),
        ({"held_out_reward": "none"}, ("image_reward", "aesthetic"), ""),
        ({"held_out_reward": "pick_score"}, ("image_reward", "aesthetic"), "pick_score"),
    ],
)
def test_words_become_the_scorers_that_are_meant(words, rewards, held_out):
    found = chosen(ready=("hps", "clip"), **words)
    assert (found.rewards, found.held_out) == (rewards, held_out)


def test_nothing_watches_where_no_file_is_there():
    assert chosen().held_out == ""


def test_demo_model_has_scorers_of_its_own():
    found = chosen(is_embedded=True, ready=ready_scorers([]))
    assert {*found.rewards, found.held_out} - {""} <= set(EMBEDDED_REWARDS)
    assert found.rewards[0] == EMBEDDED_REWARDS[0]


@pytest.mark.parametrize("words", [
    {"reward": "clip", "second_reward": "clip"}, {"reward": "clip", "held_out_reward": "clip"},
    {"reward": "hps", "second_reward": "clip", "held_out_reward": "clip"},
])  # fmt: skip
def test_scorer_that_is_named_twice_is_refused(words):
    with pytest.raises(TrainingError, match="Each scorer has one part"):
        chosen(**words)


def test_student_is_drawn_as_its_lora_is_used():
    assert (chosen().steps, chosen().num_segments) == ((1, 2, 4, 8), 1)
    assert (chosen(start_steps=4).steps, chosen(start_steps=4).num_segments) == ((4,), 4)


@pytest.mark.parametrize("strength", [-0.1, 2.1, float("nan")])
def test_strength_out_of_range_is_refused(strength):
    with pytest.raises(TrainingError, match="feedback_strength"):
        TrainRequest(feedback_strength=strength)


def test_feedback_is_one_phase_as_long_as_the_preset():
    (phase,) = phases(TrainRequest(objective="human feedback", perceptual_weight=0.5), "sd15", examples=10)
    assert (phase.title, phase.config.objective, phase.config.total_steps) == ("human feedback", "feedback", 300)
    assert phase.config.feedback.instance_weight == 0.5
    assert not phase.config.is_guided


def test_taste_is_learnt_from_at_a_lower_rate_and_with_a_stronger_brake():
    def config(**words):
        return phases(TrainRequest(objective="human feedback", **words), "sd15", examples=10)[0].config

    usual, taste, own = config(), config(reward="my_taste"), config(reward="my_taste", learning_rate=3e-5)
    assert taste.learning_rate == pytest.approx(TASTE_RATE * usual.learning_rate)
    assert (usual.feedback.brake_weight, taste.feedback.brake_weight, own.learning_rate) == (5.0, TASTE_BRAKE, 3e-5)
    assert config(reward="clip", second_reward="my_taste").feedback.brake_weight == TASTE_BRAKE


def test_network_of_the_perceptual_term_says_where_its_file_is_had(tmp_path):
    settings = FeedbackSettings((), instance_weight=1.0)
    with pytest.raises(RewardError, match=r"maskrcnn_resnet50_fpn_v2_coco.*get it from https://"):
        make_judge(settings, nn.Identity(), nn.Identity(), folders=[tmp_path], device="cpu", is_embedded=False)
    judge = make_judge(settings, nn.Identity(), nn.Identity(), folders=[], device="cpu", is_embedded=True)
    assert judge.instances is not None


@pytest.mark.parametrize("settings", [FeedbackSettings(("my_taste",)), FeedbackSettings(("embedded_match",), "my_taste")])
def test_taste_under_the_floor_is_neither_learnt_from_nor_watched_by(taste_file, settings):
    folder = taste_file(low=0.55, missing=40)
    with pytest.raises(RewardError, match=r"too unsure to be used as a reward.*about 40 more votes are missing"):
        make_judge(settings, nn.Identity(), nn.Identity(), folders=[folder], device="cpu", is_embedded=True)


def test_taste_of_small_drawings_is_used_for_other_models_with_a_warning(taste_file, caplog):
    settings, folder = FeedbackSettings(("my_taste",)), taste_file(low=0.7)
    for is_embedded in (True, False):
        judge = make_judge(settings, nn.Identity(), nn.Identity(), folders=[folder], device="cpu", is_embedded=is_embedded)
        assert list(judge.scorers) == ["my_taste"]
        assert len(caplog.records) == (not is_embedded)
    assert "knows small drawings alone" in caplog.text


@pytest.fixture
def taste_file(tmp_path):
    """Returns a function that writes a taste and returns its folder; what it says of itself can be given."""
    from hyper_sd.rewards.personal import FILE, About, save_taste
    from hyper_sd.rewards.sights import EMBEDDED, FEATURES, network_of
    from hyper_sd.rewards.taste_head import Head

    def write(**about):
        rows = torch.zeros(3, FEATURES[EMBEDDED].width).double()
        rows[1:] = 1
        given = {"votes": 100, "accuracy": 0.8, "high": 0.9} | about
        save_taste(tmp_path / FILE, Head(*rows), About(EMBEDDED, network_of(EMBEDDED, {}), **given))
        return tmp_path

    return write
