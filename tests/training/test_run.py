"""Runs that end with a stage for one step: what a step changes, stopping and going on, and pairs that are drawn once."""

import contextlib
import dataclasses

import pytest
import torch
from hyper_sd.tests.training.runs import CONFIG, Interrupted, equal, run, start, weights
from hyper_sd.training.checkpoint import load_checkpoint
from hyper_sd.training.config import Stage, TrainingConfig
from hyper_sd.training.data.teacher_pairs import TeacherPairs
from hyper_sd.training.engine import LocalEngine
from hyper_sd.training.run import CHECKPOINT

FIRST = Stage(4, 3)
PLAIN = (FIRST, Stage(1, 5, 0.0, score_weight=0.5))
WHOLE = (FIRST, Stage(2, 5, 0.5, 0.2, score_weight=0.5, pair_weight=1.0))
SETTINGS = {"fake_warmup": 2, "pairs": 10, "pair_steps": 4, "checkpoint_every": 3}


def one_step(stages=WHOLE, **settings):
    return dataclasses.replace(CONFIG, stages=stages, **SETTINGS | settings)


@pytest.fixture
def drawn(monkeypatch):
    """How many chunks of pairs were drawn, one entry each."""
    calls = []

    def draw(self, *given, original=TeacherPairs._draw):
        calls.append(len(given[0]))
        return original(self, *given)

    monkeypatch.setattr(TeacherPairs, "_draw", draw)
    return calls


def test_states_tell_the_losses_of_each_stage():
    states, layers = run(one_step())
    assert set(states[0].losses) == {"loss", "distance"}
    assert set(states[-1].losses) == {"loss", "distance", "pairs", "score", "fake", "adversarial", "discriminator"}
    assert set(run(one_step(PLAIN))[0][-1].losses) == {"loss", "distance", "score", "fake"}
    assert set(layers.sets) == {"student", "target", "fake"}


def test_fake_score_learns_while_the_student_rests():
    config = one_step(fake_warmup=2)
    states, layers, network = start(config)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    seen = [{k: v.clone() for k, v in weights(layers).items()} for _ in states]
    assert equal(network.state_dict(), before)

    def changed(name, step):
        keys = [key for key in seen[step] if key.startswith(name)]
        return any(not torch.equal(seen[step][key], seen[step - 1][key]) for key in keys)

    assert [changed("student", step) for step in range(1, 8)] == [True, True, False, False, True, True, True]
    assert [changed("fake", step) for step in range(1, 8)] == [False, False, True, True, True, True, True]


def test_fake_score_takes_as_many_updates_as_are_set(monkeypatch):
    rates = []

    def update(self, optimizer, max_grad_norm, original=LocalEngine.update):
        rates.append(optimizer.param_groups[0]["lr"])
        return original(self, optimizer, max_grad_norm)

    monkeypatch.setattr(LocalEngine, "update", update)
    run(one_step(PLAIN, fake_updates=3, fake_warmup=1, fake_learning_rate=5e-4))
    assert rates.count(5e-4) == 3 * 5
    assert len(rates) == 3 + 3 * 5 + 4


@pytest.mark.parametrize("cut", [2, 4, 5, 7])
@pytest.mark.parametrize("stages", [PLAIN, WHOLE])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, drawn, stages, cut):
    config = one_step(stages, train_backbone=True)
    whole, layers = run(config, tmp_path / "whole")
    expected, chunks = load_checkpoint(tmp_path / "whole" / CHECKPOINT)[0], len(drawn)
    drawn.clear()
    states, _, _ = start(config, tmp_path / "parts")
    first = [next(states) for _ in range(cut)]
    states.close()
    second, resumed = run(config, tmp_path / "parts")
    assert [s.losses for s in first + second] == [s.losses for s in whole]
    assert equal(weights(resumed), weights(layers))
    found = load_checkpoint(tmp_path / "parts" / CHECKPOINT)[0]
    assert {"fake", "optimizer", "fake_optimizer"} <= expected.keys() == found.keys()
    assert all(equal(tensors, found[name]) for name, tensors in expected.items())
    assert any(bool(t.any()) for key, t in found["fake_optimizer"].items() if key.endswith("exp_avg_sq"))
    assert len(drawn) == chunks == (3 if stages is WHOLE else 0)  # 10 pairs are three chunks of four


def test_pairs_are_drawn_anew_only_in_memory(tmp_path, drawn):
    config = one_step()
    run(config, tmp_path)
    assert len(drawn) == 3
    (tmp_path / CHECKPOINT).unlink()
    on_disk = run(config, tmp_path)[1]
    assert len(drawn) == 3
    assert equal(weights(run(config)[1]), weights(on_disk))
    assert len(drawn) == 6


@pytest.mark.parametrize("updates", [5, 6, 9])
def test_ctrl_c_between_the_updates_of_a_step_keeps_the_older_checkpoint(tmp_path, monkeypatch, updates):
    calls = []

    def update(self, optimizer, max_grad_norm, original=LocalEngine.update):
        stepped = original(self, optimizer, max_grad_norm)
        calls.append(1)
        if len(calls) == updates:  # 3 of the first stage, then 2 of the fake score, and from the third step on 1 of the student
            raise KeyboardInterrupt
        return stepped

    config = one_step(checkpoint_every=1)
    whole, layers = run(config)
    monkeypatch.setattr(LocalEngine, "update", update)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path)
    done = load_checkpoint(tmp_path / CHECKPOINT)[1]["step"]
    assert done == {5: 3, 6: 4, 9: 5}[updates]
    monkeypatch.undo()
    rest, resumed = run(config, tmp_path)
    assert [s.losses for s in rest] == [s.losses for s in whole[done:]]
    assert equal(weights(resumed), weights(layers))


def test_interrupt_in_the_consumer_saves_the_step(tmp_path):
    def node():
        with contextlib.closing(start(one_step(), tmp_path)[0]) as states:
            for state in states:
                if state.step == 5:
                    raise Interrupted

    with pytest.raises(Interrupted):
        node()
    assert load_checkpoint(tmp_path / CHECKPOINT)[1]["step"] == 5


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulated_parts_equal_the_whole_batch(accumulation):
    _, whole = run(one_step())
    _, parts = run(one_step(accumulation=accumulation))
    for key, value in weights(whole).items():
        assert torch.allclose(weights(parts)[key], value, atol=1e-4), key


def test_stages_for_one_step_alone_keep_no_average_that_nobody_reads_and_older_runs_go_on(tmp_path, monkeypatch):
    config = one_step(PLAIN[1:], fake_warmup=1)
    states, layers = run(config)
    assert set(layers.sets) == {"student", "fake"}
    whole = {name: value.clone() for name, value in weights(layers).items()}
    with monkeypatch.context() as patch:  # as it was
        patch.setattr(TrainingConfig, "has_target", True)
        older = start(config, tmp_path)[0]
        for _ in range(2):
            next(older)
        older.close()
        assert "target" in load_checkpoint(tmp_path / CHECKPOINT)[0]
    rest, layers = run(config, tmp_path)
    assert [state.losses for state in rest] == [state.losses for state in states[2:]]
    assert equal(weights(layers), whole)
