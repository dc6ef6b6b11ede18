"""Unfinished files of killed programs are taken away at the next start, and those of running ones are not."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hyper_sd import disk
from hyper_sd.tests.training.runs import run
from hyper_sd.training.data.cache import Encoders, encode
from hyper_sd.training.export import save_trained

PROGRAM = Path(__file__).with_name("writing_process.py")
Start = Callable[[Path], tuple[subprocess.Popen, Path]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a program that writes a file and never gets done; returns it and its unfinished file."""
    programs = []

    def begin(target: Path) -> tuple[subprocess.Popen, Path]:
        program = subprocess.Popen([sys.executable, str(PROGRAM), str(target)], stdout=subprocess.PIPE, text=True)
        programs.append(program)
        return program, target.with_name(program.stdout.readline().strip())

    yield begin
    for program in programs:
        _kill(program)


def _kill(program: subprocess.Popen) -> None:
    program.kill()
    program.wait()
    program.stdout.close()


def _train(folder: Path) -> None:
    run(folder=folder)


def _encode(folder: Path) -> None:
    encoders = Encoders(lambda images: images, lambda texts: {"context": torch.ones(len(texts), 2, 3)}, "tiny")
    list(encode([], encoders, folder))


def _save(folder: Path) -> None:
    save_trained(folder, "style", {"lora_unet_a.lora_down.weight": torch.ones(2, 3)})


DOORS = {  # what is done next in a folder, and the file that was being written there
    "training": (_train, "checkpoint.safetensors"),
    "pairs": (_train, "pairs/0123abcd/000000-0-4.safetensors"),
    "cache": (_encode, "ab/abcd.safetensors"),
    "export": (_save, "style_00001_.safetensors"),
}


@pytest.mark.skipif(disk.fcntl is None, reason="this system does not tell who writes a file")
@pytest.mark.parametrize("door", DOORS)
def test_next_start_clears_what_a_killed_program_left_and_nothing_of_a_running_one(tmp_path, start, door):
    act, target = DOORS[door]
    killed, left = start(tmp_path / target)
    _, growing = start(tmp_path / target)
    foreign = left.with_name(".somebody_else.part")
    foreign.write_bytes(b"another program's")
    _kill(killed)
    assert left.read_bytes() == b"half of it"
    act(tmp_path)
    assert not left.exists()
    assert growing.read_bytes() == b"half of it"
    assert foreign.exists()


def test_system_that_does_not_tell_who_writes_takes_a_file_for_left_behind_after_an_hour(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "fcntl", None)
    new, old = disk.part_beside(tmp_path / "a"), disk.part_beside(tmp_path / "a")
    for path in (new, old):
        path.write_bytes(b"half")
    os.utime(old, (10**9, 10**9))
    disk.clear_parts(tmp_path)
    assert list(tmp_path.iterdir()) == [new]


@pytest.mark.skipif(disk.fcntl is None, reason="this system does not tell who writes a file")
def test_writer_whose_new_file_was_cleared_at_once_takes_another_name(tmp_path, monkeypatch):
    lock, names = disk.fcntl.flock, []

    def cleared(descriptor, operation):
        if not names:
            names.extend(path.name for path in tmp_path.iterdir())
            os.unlink(tmp_path / names[0])
        lock(descriptor, operation)

    monkeypatch.setattr(disk.fcntl, "flock", cleared)
    disk.write_whole(tmp_path / "a", b"whole")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"whole"}
    assert len(names) == 1


def test_link_with_the_name_of_an_unfinished_file_is_left_alone(tmp_path):
    victim = tmp_path / "victim.txt"
    victim.write_bytes(b"somebody's")
    link = disk.part_beside(tmp_path / "a")
    try:
        link.symlink_to(victim)
    except OSError:
        pytest.skip("this system permits no links")
    disk.clear_parts(tmp_path)
    assert victim.read_bytes() == b"somebody's"
