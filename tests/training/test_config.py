import dataclasses
import json
import math

import pytest
from hyper_sd.errors import TrainingError
from hyper_sd.training.config import Stage, TrainingConfig, progressive_stages
from hyper_sd.training.plain_config import differences, from_plain, to_plain


def test_progressive_stages_move_from_distance_to_adversarial():
    stages = progressive_stages(100, 0.1)
    assert [s.num_segments for s in stages] == [8, 4, 2, 1]
    assert [s.adversarial_weight for s in stages] == [0, 0, 0.05, 0.1]
    config = TrainingConfig(stages=stages)
    assert config.total_steps == 400
    assert [config.stage_at(s) for s in (0, 99, 100, 399)] == [(0, 0), (0, 99), (1, 0), (3, 99)]
    with pytest.raises(TrainingError, match="ends before step 400"):
        config.stage_at(400)


def test_rate_warms_up_and_falls_in_every_stage():
    config = TrainingConfig(stages=(Stage(4, 10), Stage(1, 10, learning_rate=5e-5)), warmup_steps=2, final_rate=0.1)
    rates = [config.rate_at(s) for s in range(20)]
    assert rates[0] == pytest.approx(0.5)
    assert rates[5] == pytest.approx(0.1 + 0.9 / 2)
    assert rates[10:] == pytest.approx([0.5 * r for r in rates[:10]])
    constant = TrainingConfig(stages=(Stage(1, 10),), warmup_steps=0)
    assert [constant.rate_at(s) for s in range(10)] == [1.0] * 10


@pytest.mark.parametrize(("name", "value", "words"), [
    ("objective", "dmd", "objective must be one of tscd, finetune, feedback, got 'dmd'"),
    ("precision", "fp8", "precision must be one of"),
    ("learning_rate", math.nan, r"learning_rate must lie in \[1e-12, 1\], got nan; 1e-4 is usual"),
    ("learning_rate", 0, "learning_rate must lie"),
    ("batch_size", 0, "batch_size must lie"),
    ("ema_decay", 1.5, "ema_decay must lie"),
    ("rank", 0, "rank must lie"),
    ("guidance_scale", (5.0, 2.0), "guidance_scale must be"),
    ("guidance_scale", (1.0, math.inf), "guidance_scale must be"),
    ("solver_steps", 30, "solver_steps must divide 1000"),
    ("stages", (), "stages need 1 step"),
    ("stages", (Stage(1, 0),), "stages need 1 step"),
    ("stages", (Stage(51, 1),), "1 to 50 segments"),
    ("stages", (Stage(1, 1, -1.0),), "weights of a stage must be 0 or more"),
    ("seed", -1, "seed must lie"),
    ("pair_steps", 7, "pair_steps must divide 1000"),
    ("start_timestep", 800.5, "start_timestep must be a whole number, got 800.5"),
    ("start_timestep", True, "start_timestep must be a whole number, got True"),
    ("start_timestep", 1000, r"start_timestep must lie in \[1, 999\], got 1000"),
    ("fake_updates", "2", "fake_updates must be a whole number, got '2'"),
    ("learning_rate", "1e-4", "learning_rate must be a number, got '1e-4'"),
    ("gradient_checkpointing", "on", "gradient_checkpointing must be true or false, got 'on'"),
    ("cuda_graphs", "on", "cuda_graphs must be one of auto, off, got 'on'; use 'auto'"),
    ("cuda_graphs", False, "cuda_graphs must be one of auto, off, got False; use 'auto'"),
    ("stages", (Stage(1, 2.5),), "steps must be a whole number, got 2.5"),
    ("stages", (Stage(1, 2, score_weight="high"),), "score_weight must be a number, got 'high'"),
    ("stages", (Stage(1, 2, 0.0),), "a stage needs one weight above 0"),
])  # fmt: skip
def test_bad_settings_are_named_with_what_is_allowed(name, value, words):
    with pytest.raises(TrainingError, match=words):
        TrainingConfig(**{"stages": (Stage(1, 1),), name: value})


def test_settings_survive_json():
    config = TrainingConfig(stages=progressive_stages(10), guidance_scale=(3.0, 5.0), lora_alpha=4.0)
    assert from_plain(json.loads(json.dumps(to_plain(config)))) == config


def test_unknown_and_missing_settings_are_refused():
    with pytest.raises(TrainingError, match=r"Unknown settings \['learningrate'\]; there are"):
        from_plain({"stages": [{"num_segments": 1, "steps": 1}], "learningrate": 1})
    with pytest.raises(TrainingError, match="need a list of stages"):
        from_plain({})
    with pytest.raises(TrainingError, match="need a list of stages"):
        from_plain({"stages": [3]})
    with pytest.raises(TrainingError, match="do not fit"):
        from_plain({"stages": [{"num_segments": 1}]})
    with pytest.raises(TrainingError, match="learning_rate must be a number, got 'fast'"):
        from_plain({"stages": [{"num_segments": 1, "steps": 1}], "learning_rate": "fast"})


@pytest.mark.parametrize("value", [5, ["a", "b"], [1, 2, 3], [True, 2.0]])
def test_guidance_of_a_file_that_is_no_pair_of_numbers_is_named(value):
    with pytest.raises(
        TrainingError, match=r"guidance_scale must be a list of two numbers, got .*; use for example \[2.0, 9.0\]"
    ):
        from_plain({"stages": [{"num_segments": 1, "steps": 1}], "guidance_scale": value})


def test_only_what_cannot_change_the_result_may_differ_in_a_resumed_run():
    config = TrainingConfig(stages=progressive_stages(10))
    saved = to_plain(config)
    free = dataclasses.replace(config, checkpoint_every=7, accumulation=2, gradient_checkpointing=True)
    assert differences(free, saved) == []
    assert len(differences(dataclasses.replace(config, rank=8, seed=1), saved)) == 2


@pytest.mark.parametrize(
    ("weights", "passes"),
    [
        ({"pair_weight": 1.0}, 1),
        ({"score_weight": 1.0, "pair_weight": 1.0}, 2),
        ({"pair_weight": 1.0, "adversarial_weight": 0.1}, 2),
        ({"score_weight": 1.0, "pair_weight": 1.0, "adversarial_weight": 0.1}, 2),
    ],
)
def test_graphs_counts_every_picture_that_the_student_draws(weights, passes):
    for consistency in (0.0, 1.0):
        stage = Stage(1, 5, distance_weight=consistency, **weights)
        assert TrainingConfig(stages=(Stage(2, 5), stage)).graphs == passes + bool(consistency)
