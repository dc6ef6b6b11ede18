import pytest
import torch
from hyper_sd.benchmarks import one_step
from hyper_sd.benchmarks.distillation_arms import Draw
from hyper_sd.samplers.timesteps import LAST_TIMESTEP


def cell(value):
    return {"mean": value, "deviation": 0.0}


def scores(start, kid, energy, detail, many):
    one = {"kid": cell(kid), "energy": cell(energy), "detail": cell(detail)}
    others = {Draw(n, 1, one_step.ETA).key: {"kid": cell(many), "energy": cell(many)} for n in one_step.MANY}
    return {Draw(1, start_timestep=start).key: one, **others}


def test_arms_are_what_their_names_say():
    arms = one_step.one_step_arms(10)
    for name, config in arms.items():
        stage, last = config.stages[0], config.stages[-1]
        assert bool(stage.score_weight) == ("score" in name), name
        assert bool(stage.pair_weight) == ("pairs" in name), name
        assert bool(stage.adversarial_weight) == ("data" in name), name
        assert bool(last.distance_weight) == ("TSCD" in name), name
        assert last.is_one_step == ("in turn" not in name and name != one_step.GOES_ON), name
        assert config.start_timestep == (LAST_TIMESTEP if "999" in name else 800), name
        assert config.learning_rate == {"3": one_step.TOO_HIGH, "4": one_step.LOW}.get(
            name.partition("4e-")[2], one_step.RATE
        ), name
        assert config.total_steps == 10


def test_bars_judge_the_one_step_and_the_worst_of_the_others():
    found = {
        "TSCD": scores(800, 3.0, 0.5, 1.2, 0.1),
        "good": scores(800, 0.5, 0.09, 0.9, 0.14),
        "bad": scores(800, 0.7, 0.2, 0.8, 0.16),
        one_step.GOES_ON: scores(800, 3.0, 0.5, 1.2, 0.1),
    }
    met = one_step.bars(found)
    assert [met["good"][name] for name in ("kid", "energy", "detail", "many")] == [True] * 4
    assert [met["bad"][name] for name in ("kid", "energy", "detail", "many")] == [False] * 4
    assert met["bad"]["worst_share_at_2_to_8"] == pytest.approx(1.6)
    assert met["TSCD"]["worst_share_at_2_to_8"] == 1
    found[one_step.GOES_ON] = scores(800, 3.0, 0.5, 1.2, 0.2)
    found["bad"] = scores(800, 0.7, 0.2, 0.8, 0.3)
    met = one_step.bars(found)["bad"]
    assert met["many"]
    assert met["worst_share_at_2_to_8"] == pytest.approx(3)
    assert met["worst_share_beside_tscd_that_goes_on"] == pytest.approx(1.5)
    del found[one_step.GOES_ON]
    assert one_step.bars(found)["good"]["worst_share_beside_tscd_that_goes_on"] is None


def test_draws_from_another_start_have_a_key_of_their_own():
    assert Draw(1).key == "1 steps, 1 segments, eta 0"
    assert Draw(1, start_timestep=800).key == "1 steps, 1 segments, eta 0, from 800"


def test_scores_that_are_kept_are_not_measured_again(tmp_path, monkeypatch):
    monkeypatch.setattr(one_step, "student", None)  # a call of it would fail

    class Anyone:
        base = None

    config = one_step.one_step_arms(2)["score, pairs"]
    (tmp_path / "arm").mkdir()
    kept = {"config": one_step.to_plain(config), "scores": {"a": {"kid": 1.0}}}
    (tmp_path / "arm" / "scores.json").write_text(one_step.json.dumps(kept))
    assert one_step.measure(config, None, Anyone(), None, tmp_path / "arm", tmp_path) == {"a": {"kid": 1.0}}


def test_diversity_is_zero_for_equal_pictures_of_a_class():
    class Same:
        labels = torch.arange(40) % 10
        features = staticmethod(lambda images: images.flatten(1))

    assert one_step.spread_within(Same(), torch.ones(40, 1, 8, 8)) == 0
    assert one_step.spread_within(Same(), torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))) > 1


def test_curve_goes_from_no_consistency_to_nothing_else():
    found = {one_step.GOES_ON: scores(800, 3.0, 0.5, 1.2, 0.1), "pairs": scores(800, 0.5, 0.1, 1.0, 2.0)}
    found["pairs, 8 TSCD"] = scores(800, 0.6, 0.1, 1.0, 0.2)
    assert one_step.curve(found) == {
        "weight": [0.0, 8.0, None], "1": [0.5, 0.6, 3.0], "2": [2.0, 0.2, 0.1], "4": [2.0, 0.2, 0.1], "8": [2.0, 0.2, 0.1]
    }  # fmt: skip
