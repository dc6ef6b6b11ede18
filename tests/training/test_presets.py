import math

import pytest
from hyper_sd.errors import TrainingError
from hyper_sd.training.preset_table import FAMILIES, PRESETS
from hyper_sd.training.presets import TrainRequest, parse_stages, phases
from hyper_sd.training.words import OBJECTIVES

KNOWN = ("precision", "starts_distilled")


def planned(objective, family, *, examples=100, **settings):
    """Returns the phases of a request with these settings; those in KNOWN are told of the model and the LoRA it starts from."""
    known = {name: settings.pop(name) for name in KNOWN if name in settings}
    return phases(TrainRequest(objective=objective, **settings), family, examples=examples, **known)


@pytest.mark.parametrize(("text", "expected"), [
    ("8-4-2-1", (8, 4, 2, 1)), ("4", (4,)), (" 8 - 3 ", (8, 3)), ("1-1", (1, 1)),
])  # fmt: skip
def test_stages_are_read_from_text(text, expected):
    assert parse_stages(text) == expected


@pytest.mark.parametrize("text", ["", "0", "9", "16-8", "2-4", "4-", "-4", "8,4", "4.5", "many", "auto", "\u00b2"])
def test_stages_that_cannot_be_are_refused_with_what_is_allowed(text):
    with pytest.raises(TrainingError, match=r"from 8 down to 1 joined by hyphens.*use \"8-4-2-1\""):
        parse_stages(text)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_gives_a_run_of_its_length(objective, family, preset):
    plan, size = planned(objective, family, preset=preset, one_step="off"), PRESETS[preset][family]
    assert sum(phase.config.total_steps for phase in plan) == size.steps
    assert {(p.config.rank, p.config.batch_size) for p in plan} == {(size.rank, size.batch_size)}
    assert all(p.config.warmup_steps < min(s.steps for s in p.config.stages) for p in plan)
    assert all(p.config.checkpoint_every < p.config.total_steps for p in plan)


def test_larger_presets_are_longer_and_no_narrower():
    for family in FAMILIES:
        small, medium, thorough = (PRESETS[name][family] for name in ("Small", "Medium", "Thorough"))
        assert small.steps < medium.steps < thorough.steps
        assert small.rank <= medium.rank <= thorough.rank


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_phase_has_the_optimizer_that_is_asked_for(objective, name):
    assert {phase.config.optimizer for phase in planned(objective, "embedded", optimizer=name)} == {name}


@pytest.mark.parametrize("word", ["auto", "off"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_phase_follows_the_word_for_cuda_graphs(objective, word):
    assert {phase.config.cuda_graphs for phase in planned(objective, "embedded", cuda_graphs=word)} == {word}


def test_style_is_one_phase_of_plain_denoising():
    (phase,) = planned("style finetune", "sd15", preset="Medium", stages="not read here")
    assert (phase.title, phase.config.objective, phase.config.distance) == ("style", "finetune", "mse")
    assert phase.config.learning_rate == 1e-4


def test_distillation_is_one_phase_in_stages_of_equal_length():
    (phase,) = planned("TSCD distillation", "sd15", preset="Medium", teacher_cfg=4.0)
    config = phase.config
    assert (phase.title, config.objective, config.guidance_scale) == ("distillation", "tscd", (4.0, 4.0))
    assert [(s.num_segments, s.steps) for s in config.stages] == [(8, 250), (4, 250), (2, 250), (1, 250)]
    assert not config.is_adversarial


def test_style_then_distil_shares_the_steps_two_to_three():
    style, distil = planned("style, then distil", "embedded", preset="Small", steps=101, stages="4-2-1")
    assert style.config.total_steps == 40
    assert [(s.num_segments, s.steps) for s in distil.config.stages] == [(4, 20), (2, 20), (1, 21)]
    assert (style.config.learning_rate, distil.config.learning_rate) == (3e-3, 1.5e-3)


def test_distillation_after_a_style_that_starts_distilled_learns_slowly():
    def rates(objective, **settings):
        plan = planned(objective, "embedded", preset="Small", starts_distilled=True, one_step="off", **settings)
        return [phase.config.learning_rate for phase in plan]

    assert rates("style, then distil") == [3e-3, 5e-4]
    assert rates("style, then distil", learning_rate=2e-3) == [2e-3, 2e-3]
    assert rates("TSCD distillation") == [1.5e-3]


@pytest.mark.parametrize(("family", "asked", "is_on"), [
    ("embedded", "auto", True), ("sd15", "auto", False), ("sdxl", "auto", False), ("sd15", "on", True),
    ("embedded", "off", False),
])  # fmt: skip
def test_adversarial_part_joins_at_two_segments_and_knows_the_examples(family, asked, is_on):
    style, distil = planned("style, then distil", family, preset="Medium", stages="4-2-1", adversarial=asked)
    (alone,) = planned("TSCD distillation", family, preset="Medium", adversarial="on", one_step="off")
    assert [s.adversarial_weight for s in distil.config.stages] == ([0, 0.05, 0.1] if is_on else [0, 0, 0])
    assert distil.config.adversarial_real == ("data" if is_on else "target")
    assert not style.config.is_adversarial
    assert not alone.config.is_adversarial


def test_distillation_that_starts_distilled_stays_at_one_segment():
    def segments(**options):
        (phase,) = planned("TSCD distillation", "sdxl", preset="Thorough", examples=9, starts_distilled=True, **options)
        return [s.num_segments for s in phase.config.stages]

    assert segments() == segments(stages=" Auto ") == [1]
    assert segments(stages="4-2") == [4, 2]


def test_given_values_replace_the_presets_in_every_phase():
    plan = planned(
        "style, then distil", "sd15", preset="Small", examples=3, steps=50, rank=5, learning_rate=2e-4, batch_size=7, seed=11,
        precision="bf16",
    )  # fmt: skip
    for phase in plan:
        c = phase.config
        assert (c.rank, c.learning_rate, c.batch_size, c.seed, c.precision) == (5, 2e-4, 7, 11, "bf16")
    assert sum(phase.config.total_steps for phase in plan) == 50


def test_preset_batch_is_no_larger_than_the_data():
    (phase,) = planned("style finetune", "embedded", preset="Medium", examples=5)
    assert phase.config.batch_size == 5


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("name", "value", "words"), [
    ("learning_rate", math.nan, r"learning_rate must lie in .* got nan"),
    ("learning_rate", -1e-4, "learning_rate must lie in .* got -0.0001"),
    ("learning_rate", math.inf, "learning_rate must lie in .* got inf"),
    ("rank", -1, "rank must lie in .* got -1"),
    ("batch_size", -4, "batch_size must lie in .* got -4"),
    ("steps", -10, "-10|steps"),
    ("seed", -1, "seed must lie in"),
    ("precision", "fp8", "precision must be one of"),
    ("family", "sd3", "family must be one of 'sd15', 'sdxl', 'embedded', got 'sd3'"),
    ("preset", "Huge", "preset must be one of 'Small', 'Medium', 'Thorough', got 'Huge'"),
])  # fmt: skip
def test_bad_values_are_refused_and_do_not_count_as_zero(objective, name, value, words):
    options = {"family": "sd15", "preset": "Small", "examples": 10, name: value}
    with pytest.raises(TrainingError, match=words):
        planned(objective, **options)


@pytest.mark.parametrize("value", [math.nan, -1.0, math.inf])
def test_bad_guidance_is_refused(value):
    with pytest.raises(TrainingError, match="guidance_scale must be"):
        planned("TSCD distillation", "sd15", preset="Small", examples=10, teacher_cfg=value)


def test_unknown_objectives_and_too_few_steps_are_refused():
    with pytest.raises(TrainingError, match="objective must be one of 'style, then distil'"):
        planned("tscd", "sd15", preset="Small", examples=10)
    with pytest.raises(TrainingError, match="3 steps are too few for the 4 stages 8-4-2-1; use 4 steps or more"):
        planned("TSCD distillation", "sd15", preset="Medium", examples=10, steps=3)


@pytest.mark.parametrize(("family", "asked", "is_on"), [
    ("embedded", "auto", True), ("sd15", "auto", False), ("sdxl", "auto", False), ("sd15", "on", True), ("sdxl", "on", True),
    ("embedded", "off", False),
])  # fmt: skip
def test_one_step_follows_a_distillation_and_leaves_it_as_it_was(family, asked, is_on):
    plan = planned("TSCD distillation", family, preset="Medium", one_step=asked)
    (alone,) = planned("TSCD distillation", family, preset="Medium", one_step="off")
    assert plan[0] == alone
    assert [phase.title for phase in plan[1:]] == (["one step"] if is_on else [])


@pytest.mark.parametrize(("family", "rates", "pair_steps"), [
    ("embedded", (1e-3, 2e-3), 25), ("sd15", (5e-5, 1e-4), 50), ("sdxl", (5e-5, 1e-4), 50),
])  # fmt: skip
@pytest.mark.parametrize("preset", PRESETS)
def test_phase_for_one_step_is_set_by_the_family_and_bounded_by_its_length(preset, family, rates, pair_steps):
    _, once = planned("TSCD distillation", family, preset=preset, one_step="on", teacher_cfg=4.0)
    config, size = once.config, PRESETS[preset][family]
    (stage,) = config.stages
    assert (stage.num_segments, stage.distance_weight, stage.score_weight, stage.pair_weight) == (1, 0.0, 0.5, 1.0)
    assert stage.steps == size.steps
    assert (config.learning_rate, config.fake_learning_rate) == pytest.approx(rates)
    assert (config.fake_updates, config.pair_steps, config.guidance_scale) == (2, pair_steps, (4.0, 4.0))
    assert (config.rank, config.batch_size, config.start_timestep) == (size.rank, size.batch_size, 800)
    assert config.fake_warmup <= stage.steps / 5
    # A picture takes a guided pass for each of its steps; a step of the stage takes about 17 passes.
    assert config.pairs <= 1024
    assert config.pairs * pair_steps * 2 <= stage.steps * config.batch_size * 17


def test_steps_that_are_given_are_those_of_both_phases():
    distil, once = planned("TSCD distillation", "embedded", steps=11, stages="2-1", learning_rate=4e-4)
    assert [stage.steps for stage in distil.config.stages] == [2, 3]
    assert once.config.total_steps == 6
    assert (once.config.learning_rate, once.config.fake_learning_rate) == pytest.approx((4e-4, 8e-4))


@pytest.mark.parametrize("objective", ["style, then distil", "style finetune"])
def test_one_step_is_for_the_distillation_alone(objective):
    assert planned(objective, "embedded") == planned(objective, "embedded", one_step="off")
    with pytest.raises(
        TrainingError, match=f'one_step "on" needs the objective "TSCD distillation", got "{objective}"; use "auto"'
    ):
        planned(objective, "embedded", one_step="on")


def test_one_step_needs_a_distillation_that_ends_on_one_segment():
    assert len(planned("TSCD distillation", "embedded", stages="8-4")) == 1
    with pytest.raises(TrainingError, match=r'one_step "on" needs .* ends on 1 segment, got stages 8-4; let them end on 1'):
        planned("TSCD distillation", "embedded", stages="8-4", one_step="on")


@pytest.mark.parametrize("steps", [1, 3])
def test_too_few_steps_for_a_distillation_and_one_step_are_refused(steps):
    with pytest.raises(
        TrainingError, match=r'too few for the 2 stages 4-1 before one step; use 4 steps or more .*one_step "off"'
    ):
        planned("TSCD distillation", "embedded", stages="4-1", steps=steps)
