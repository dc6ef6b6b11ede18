import dataclasses

import pytest
import torch
from hyper_sd.errors import TrainingError
from hyper_sd.tests.training.test_loop import CONFIG, run, start
from hyper_sd.training.loop import CHECKPOINT
from safetensors.torch import save_file


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


def test_full_disk_loses_nothing_older(tmp_path, monkeypatch):
    states, _, _ = start(folder=tmp_path)
    for _ in range(3):
        next(states)
    old = (tmp_path / CHECKPOINT).read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hyper_sd.training.checkpoint.save_file", full)
    with pytest.raises(TrainingError, match="free some space"):
        states.close()
    assert (tmp_path / CHECKPOINT).read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == [CHECKPOINT]
