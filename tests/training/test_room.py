"""How much of the disk a training asks for before it starts."""

import dataclasses

import pytest
from hyper_sd import disk
from hyper_sd.errors import TrainingError
from hyper_sd.tests.training.jobs import Follower, make_job


def saving_often(job):
    """Returns the job with a checkpoint after every step, so that two of each phase are kept."""
    phases = [dataclasses.replace(p, config=dataclasses.replace(p.config, checkpoint_every=1)) for p in job.phases]
    return dataclasses.replace(job, phases=tuple(phases))


def test_too_little_room_for_the_checkpoints_is_said_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "free_bytes", lambda folder: disk.SPARE)
    job, follower = make_job(tmp_path), Follower()
    with pytest.raises(TrainingError, match="make room, or choose a lower rank"):
        follower.run(job)
    assert follower.reports == []
    assert not job.folder.exists()


def test_room_that_is_asked_for_is_what_the_checkpoints_take(tmp_path, monkeypatch):
    job = saving_often(make_job(tmp_path, rank=64))
    Follower().run(job)
    assert [path.name for path in job.folder.rglob("previous_*")] == ["previous_checkpoint.safetensors"] * 2
    sizes = [path.stat().st_size for path in job.folder.rglob("*.safetensors")]
    elsewhere = dataclasses.replace(job, folder=tmp_path / "elsewhere")
    monkeypatch.setattr(disk, "free_bytes", lambda folder: disk.SPARE + sum(sizes))
    with pytest.raises(TrainingError):  # the largest one is there twice while it is replaced
        Follower().run(elsewhere)
    monkeypatch.setattr(disk, "free_bytes", lambda folder: disk.SPARE + sum(sizes) + max(sizes))
    assert Follower().run(elsewhere).is_finished


def test_room_that_is_asked_for_is_what_one_step_takes(tmp_path, monkeypatch):
    job = saving_often(make_job(tmp_path, rank=64, objective="TSCD distillation", one_step="on"))
    Follower().run(job)
    sizes = [path.stat().st_size for path in job.folder.rglob("*.safetensors")]
    elsewhere = dataclasses.replace(job, folder=tmp_path / "elsewhere")
    monkeypatch.setattr(disk, "free_bytes", lambda folder: disk.SPARE + sum(sizes))
    with pytest.raises(TrainingError):
        Follower().run(elsewhere)
    monkeypatch.setattr(disk, "free_bytes", lambda folder: disk.SPARE + sum(sizes) + max(sizes))
    assert Follower().run(elsewhere).is_finished
