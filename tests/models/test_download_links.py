"""Links, pipes and folders under the names that a download uses: nothing is written through them, and nobody waits."""

import os
from pathlib import Path

import pytest
from hyper_sd import disk
from hyper_sd.errors import DownloadError
from hyper_sd.models.files import index_folders, look, part_path
from hyper_sd.models.progress import State

VICTIM = b"somebody's own file"


@pytest.fixture
def victim(tmp_path) -> Path:
    """A file elsewhere that must stay as it is."""
    path = tmp_path / "victim.txt"
    path.write_bytes(VICTIM)
    return path


def _part(world) -> Path:
    return part_path(world.root, world.entry, world.entry.sha256)


def _lock(world) -> Path:
    return world.root / f"{world.entry.name}.lock"


def _link(path: Path, target: Path, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.symlink_to(target) if kind == "symbolic" else os.link(target, path)
    except OSError:
        pytest.skip("this system permits no links")


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
@pytest.mark.parametrize("name", [_part, _lock], ids=["part", "lock"])
def test_link_under_a_temporary_name_is_not_written_through(world, victim, caplog, name, kind):
    _link(name(world), victim, kind)
    assert world.download() == world.target
    assert world.target.read_bytes() == world.content
    assert not world.target.is_symlink()
    assert victim.read_bytes() == VICTIM
    assert "was a link to another file" in caplog.text


@pytest.mark.parametrize("name", [_part, _lock], ids=["part", "lock"])
def test_link_in_a_circle_or_to_nowhere_under_a_temporary_name_stops_no_download(world, name):
    for target in (name(world), world.root / "nowhere"):
        _link(name(world), target, "symbolic")
        assert world.download() == world.target
        world.target.unlink()
    assert not (world.root / "nowhere").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
@pytest.mark.parametrize("name", [_part, _lock], ids=["part", "lock"])
def test_pipe_under_a_temporary_name_is_told(world, name):
    name(world).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(name(world))
    with pytest.raises(DownloadError, match="it is not a file, remove it"):
        world.download()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_pipe_under_a_models_name_is_no_file_and_nobody_waits_for_it(world):
    world.root.mkdir(parents=True)
    os.mkfifo(world.target)
    found = look(world.entry, index_folders([world.root]))
    assert (found.state, found.problem) == (State.CORRUPT, "it is not a file")


def test_part_that_another_program_opens_as_a_link_is_refused_by_the_system(tmp_path, victim):
    _link(tmp_path / "link", victim, "symbolic")
    if not hasattr(os, "O_NOFOLLOW"):
        pytest.skip("this system cannot tell")
    with pytest.raises(OSError, match=r"link"), open(tmp_path / "link", "r+b", opener=disk.no_follow):
        pass


def test_claim_keeps_what_an_own_file_holds(tmp_path):
    path = tmp_path / "new" / "own.part"
    assert disk.claim(path) is False
    path.write_bytes(b"so far")
    assert disk.claim(path) is False
    assert path.read_bytes() == b"so far"
