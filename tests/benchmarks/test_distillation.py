import dataclasses

import pytest
import torch
from hyper_sd.benchmarks import digits, distillation, distillation_judge
from hyper_sd.benchmarks.distillation_arms import COMMON, ETAS, STEPS, Arm, Draw, arms
from hyper_sd.benchmarks.distillation_report import BARS, plot, report
from hyper_sd.samplers.timesteps import hyper_sd_timesteps
from hyper_sd.tests.benchmarks.figures import figures_of
from hyper_sd.training.config import Stage
from hyper_sd.training.data.examples import LatentExamples
from hyper_sd.training.lora_layers import LoraLayers
from hyper_sd.training.objectives.discriminator import Features, Heads


@pytest.fixture
def base():
    torch.manual_seed(0)
    return digits.DigitNet(width=128).eval().requires_grad_(False)


def test_digits_have_mean_zero_and_deviation_one():
    pytest.importorskip("sklearn")
    images, labels = digits.load_digits()
    assert images.shape == (1797, 1, 8, 8)
    assert labels.bincount().min() > 150
    assert abs(float(images.mean())) < 1e-5
    assert float(images.std()) == pytest.approx(1, abs=1e-4)


def test_scaled_ignores_brightness_and_contrast():
    images = torch.rand(5, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(digits.scaled(images), digits.scaled(images * 16 + 3))


def test_arms_train_for_the_same_number_of_steps_and_differ_in_the_objective_only():
    free = {"stages", "endpoint", "adversarial_real"}
    common = {k: v for k, v in vars(COMMON).items() if k not in free}
    for arm in arms(400).values():
        assert arm.config.total_steps == 400
        assert {k: v for k, v in vars(arm.config).items() if k not in free} == common


def test_no_two_arms_are_trained_alike():
    configs = [arm.config for arm in arms().values()]
    assert len(set(configs)) == len(configs)


@pytest.mark.parametrize("name", arms())
def test_draws_of_an_arm_have_a_grid_and_keys_of_their_own(name):
    draws = arms()[name].draws
    assert len({draw.key for draw in draws}) == len(draws)
    for draw in draws:
        assert len(hyper_sd_timesteps(draw.steps, draw.num_segments)) == draw.steps


@pytest.mark.parametrize("n", STEPS)
def test_n_step_arm_is_trained_and_drawn_on_n_segments(n):
    arm = arms()[f"direct_{n}"]
    assert [stage.num_segments for stage in arm.config.stages] == [n]
    assert Draw(n, n) in arm.draws


def test_draws_of_one_seed_start_from_the_same_noise(base, monkeypatch):
    seen = []
    monkeypatch.setattr(base, "forward", lambda x, t, context: seen.append(x.clone()) or torch.zeros_like(x))

    def first(seed: int, steps: int, **how) -> torch.Tensor:
        seen.clear()
        digits.sample(base, torch.arange(4), steps, seed, **how)
        return seen[0]

    torch.testing.assert_close(first(5, 1), first(5, 4, num_segments=4, guidance_scale=2.0))
    torch.testing.assert_close(first(5, 1), first(5, 8, eta=0.7))
    assert not torch.equal(first(5, 1), first(6, 1))


def test_energy_distance_is_small_between_equal_distributions_and_grows_apart():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 500, 1, 2, 2, generator=generator)
    assert abs(distillation_judge.energy_distance(a, b)) < 0.05
    assert distillation_judge.energy_distance(a, b + 1) > 0.5


def test_digit_net_offers_features_to_the_discriminator(base):
    layers = LoraLayers(base, 2)
    context = {"context": base.contexts(torch.arange(3))}
    found = Features(digits.denoiser_of(base), layers)(torch.randn(3, 1, 8, 8), torch.full((3,), 500), context)
    assert [f.shape for f in found] == [(3, 32, 2, 2)] * 3
    assert Heads([32] * 3)(found, found).shape == (3,)


def test_measured_arm_is_not_trained_again(base, tmp_path, monkeypatch):
    monkeypatch.setattr(distillation_judge, "SAMPLES", 20)
    images, labels = torch.randn(20, 1, 8, 8), torch.arange(20) % 10
    examples = LatentExamples(images, {"context": base.contexts(labels)}, {"context": base.contexts(torch.tensor([10]))})
    judge = distillation_judge.Judge(base, lambda x: x.flatten(1), images, torch.arange(20) % 10, seed=0)
    config = dataclasses.replace(COMMON, stages=(Stage(2, 2), Stage(1, 2)), batch_size=4, rank=2)
    arm = Arm(config, (Draw(1), Draw(2, 1, 0.3)))
    first = distillation.measure(arm, judge, examples, tmp_path / "arm")
    assert set(first) == {draw.key for draw in arm.draws}
    monkeypatch.setattr(distillation_judge, "train", None)
    assert distillation.measure(arm, judge, examples, tmp_path / "arm") == first


def _made_up(teacher: float, student: float) -> dict:
    def cell(value: float) -> dict:
        return dict.fromkeys(("kid", "energy", "kid_real", "detail"), value)

    scores = {name: [{draw.key: cell(student) for draw in arm.draws}] * 2 for name, arm in arms().items()}
    return scores | {"teacher": [{str(n): cell(teacher) for n in (*STEPS, 50)}] * 2}


@pytest.mark.parametrize(("student", "met"), [(0.5, {1, 2, 4}), (0.7, {4}), (0.9, set())])
def test_bars_compare_with_the_teacher_in_as_many_steps(student, met):
    bars = report(_made_up(1.0, student))["bars"]
    assert {bar["steps"] for bar in bars} == set(BARS)
    assert all(bar["met"] == (bar["steps"] in met) for bar in bars)


def test_report_answers_every_question_and_can_be_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    result = report(_made_up(1.0, 0.5))
    assert list(result["tables"]["c_eta"][4]) == [f"{eta:g}" for eta in ETAS]
    (figure,) = figures_of(lambda: plot(result, tmp_path / "plot.png"))
    drawn = {axis.get_title(): {text.get_text() for text in axis.get_legend().get_texts()} for axis in figure.axes}
    assert [title[0] for title in drawn] == list("aabccd")
    assert drawn["a. kid to the converged teacher"] == {"teacher", "n-step", "unified", "teacher, 50 steps"}
    assert drawn["c. eta, kid"] == {"4 steps", "8 steps"}
    assert drawn["d. adversarial loss, kid"] == set(result["tables"]["d_adversarial"])
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.filterwarnings("ignore:No artists with labels")
def test_report_of_a_few_arms_can_be_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    scores = _made_up(1.0, 0.5)
    result = report({arm: scores[arm] for arm in ("teacher", "lcm")})
    (figure,) = figures_of(lambda: plot(result, tmp_path / "plot.png"))
    assert {text.get_text() for text in figure.axes[2].get_legend().get_texts()} == {"lcm, eta 0.3", "lcm, eta 1"}
