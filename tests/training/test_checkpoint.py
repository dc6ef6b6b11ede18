import contextlib
import dataclasses
import logging

import pytest
import torch
from hyper_sd.errors import TrainingError
from hyper_sd.tests.training.runs import CONFIG, Interrupted, equal, run, start, weights
from hyper_sd.training.checkpoint import CheckpointError, load_checkpoint
from hyper_sd.training.lora_layers import TEACHER
from hyper_sd.training.run import CHECKPOINT
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def test_checkpoint_of_other_settings_is_refused_and_says_which(tmp_path):
    run(folder=tmp_path)
    with pytest.raises(TrainingError, match=r"other settings \(learning_rate: 0.01 then, 0.02 now\)"):
        run(dataclasses.replace(CONFIG, learning_rate=0.02), tmp_path)
    assert run(dataclasses.replace(CONFIG, checkpoint_every=1), tmp_path)[0] == []


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path):
    (tmp_path / CHECKPOINT).write_bytes(b"not a checkpoint")
    with pytest.raises(TrainingError, match="cannot be read"):
        run(folder=tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / CHECKPOINT)
    with pytest.raises(TrainingError, match="is not a checkpoint"):
        run(folder=tmp_path)


def test_full_disk_loses_nothing_older(tmp_path, monkeypatch, caplog):
    states, _, _ = start(folder=tmp_path)
    for _ in range(3):
        next(states)
    old = (tmp_path / CHECKPOINT).read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hyper_sd.training.checkpoint.save_file", full)
    with caplog.at_level(logging.WARNING):
        states.close()
    assert [r.message for r in caplog.records if "Step 3 is not saved" in r.message and "make room" in r.message]
    assert (tmp_path / CHECKPOINT).read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == [CHECKPOINT]


def fail_to_save(monkeypatch, attempts):
    """Lets the attempts of these numbers, counted from 1, find the disk full; returns the numbers of all."""
    made = []

    def save(*args, **kwargs):
        made.append(len(made) + 1)
        if made[-1] in attempts:
            raise OSError(28, "No space left on device")
        return save_file(*args, **kwargs)

    monkeypatch.setattr("hyper_sd.training.checkpoint.save_file", save)
    return made


def test_checkpoint_that_fails_on_the_way_is_logged_and_tried_again(tmp_path, monkeypatch, caplog):
    made = fail_to_save(monkeypatch, {1, 2})
    with caplog.at_level(logging.WARNING):
        states, _ = run(folder=tmp_path)
    assert [s.step for s in states] == [*range(1, 9)]
    messages = [r.message for r in caplog.records if "is not saved" in r.message]
    assert [m.split(" is not")[0] for m in messages] == ["Step 2", "Step 3"]
    assert "too full" in messages[0]
    assert len(made) == 5  # after the steps 2, 3, 4, 6, 8
    assert load_checkpoint(tmp_path / CHECKPOINT)[1]["step"] == 8


def test_checkpoint_that_fails_at_the_end_leaves_the_trained_weights_in_memory(tmp_path, monkeypatch):
    _, whole = run()
    fail_to_save(monkeypatch, range(99))
    states, layers, _ = start(folder=tmp_path)
    seen = []
    with pytest.raises(CheckpointError, match=r"too full.*make room"):
        seen.extend(state.step for state in states)
    assert seen == [*range(1, 9)]
    assert equal(weights(layers), weights(whole))


def test_stop_whose_checkpoint_fails_says_so(tmp_path, monkeypatch):
    fail_to_save(monkeypatch, range(99))
    with pytest.raises(CheckpointError, match="make room"):
        run(folder=tmp_path, stop=lambda: True)


def test_interrupt_is_not_hidden_by_a_checkpoint_that_fails(tmp_path, monkeypatch, caplog):
    fail_to_save(monkeypatch, range(99))

    def node():
        with contextlib.closing(start(folder=tmp_path)[0]) as states:
            for _ in states:
                raise Interrupted

    with caplog.at_level(logging.WARNING), pytest.raises(Interrupted):
        node()
    assert "Step 1 is not saved" in caplog.text


def test_ctrl_c_is_not_hidden_by_a_checkpoint_that_fails(tmp_path, monkeypatch, caplog):
    fail_to_save(monkeypatch, range(99))
    states, _, _ = start(folder=tmp_path)
    next(states)
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        states.throw(KeyboardInterrupt)
    assert "Step 1 is not saved" in caplog.text


def styled(folder=None, std=0.3):
    """A started run that distils a filled set "teacher"; returns (the generator, its layers)."""
    states, layers, _ = start(folder=folder)
    g = torch.Generator().manual_seed(5)
    for parameter in layers.add(TEACHER).parameters():
        torch.nn.init.normal_(parameter, std=std, generator=g)
    return states, layers


def test_teacher_set_stays_as_it_is_and_is_what_is_distilled():
    states, layers = styled()
    before = {k: v.clone() for k, v in layers.sets[TEACHER].state_dict().items()}
    losses = [s.losses for s in states]
    assert equal(layers.sets[TEACHER].state_dict(), before)
    assert not any(p.requires_grad or p.grad is not None for p in layers.sets[TEACHER].parameters())
    plain, without = run()
    assert losses[0] != plain[0].losses
    assert not equal(layers.sets["student"].state_dict(), without.sets["student"].state_dict())


def test_teacher_set_is_part_of_the_checkpoint(tmp_path):
    whole, layers = styled()
    losses = [s.losses for s in whole]
    states, _ = styled(tmp_path)
    first = [next(states).losses for _ in range(4)]
    states.close()
    assert "teacher" in load_checkpoint(tmp_path / CHECKPOINT)[0]
    states, resumed = styled(tmp_path, std=0.0)
    assert first + [s.losses for s in states] == losses
    assert equal(weights(resumed), weights(layers))


def test_checkpoint_with_and_without_a_teacher_are_not_mixed(tmp_path):
    run(folder=tmp_path / "plain")
    with pytest.raises(TrainingError, match="teacher: none then, a LoRA now"):
        next(styled(tmp_path / "plain")[0])
    list(styled(tmp_path / "styled")[0])
    with pytest.raises(TrainingError, match="teacher: a LoRA then, none now"):
        run(folder=tmp_path / "styled")


def test_checkpoint_of_another_version_is_refused_in_one_line(tmp_path):
    run(folder=tmp_path)
    path = tmp_path / CHECKPOINT
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata | {"format": "hyper_sd training checkpoint 1"})
    before = path.read_bytes()
    with pytest.raises(TrainingError, match=r"another version of Hyper-SD \(format 1, this one reads 3\).*move the file away"):
        run(folder=tmp_path)
    assert path.read_bytes() == before


def test_each_adapter_set_and_each_of_its_moments_is_one_tensor(tmp_path):
    run(folder=tmp_path)
    parts, _ = load_checkpoint(tmp_path / CHECKPOINT)
    assert list(parts["student"]) == list(parts["target"]) == ["flat"]
    assert parts["optimizer"]["0.exp_avg"].shape == parts["optimizer"]["0.exp_avg_sq"].shape == parts["student"]["flat"].shape
