"""Links, pipes and folders under the names that a download uses: nothing is written through them, and nobody waits."""

import os
from pathlib import Path

import pytest
from hyper_sd import disk
from hyper_sd.errors import DownloadError
from hyper_sd.models.download import download
from hyper_sd.models.files import index_folders, look, part_path
from hyper_sd.models.progress import State
from hyper_sd.models.remote import Remote

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


def _link(path: Path, target: Path) -> None:
    try:
        path.symlink_to(target)
    except OSError:
        pytest.skip("this system permits no links")


KINDS = {
    "link": lambda path, victim: path.symlink_to(victim),
    "second name": lambda path, victim: os.link(victim, path),
    "link to itself": lambda path, victim: path.symlink_to(path),
    "link to nowhere": lambda path, victim: path.symlink_to(victim.with_name("nowhere")),
    "folder": lambda path, victim: path.mkdir(),
    "pipe": lambda path, victim: os.mkfifo(path),
}
TOLD = (KINDS["folder"], KINDS["pipe"])  # the others are taken away


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_what_lies_under_a_temporary_name_is_taken_away_or_told_and_never_written_through(world, victim, caplog, reliability):
    refused = right = 0
    world.root.mkdir(parents=True)
    for make in KINDS.values():
        for name in (_part, _lock):
            make(name(world), victim)
            caplog.clear()
            if make in TOLD:
                with pytest.raises(DownloadError, match="it is not a file, remove it"):
                    world.download()
                name(world).rmdir() if name(world).is_dir() else name(world).unlink()
                refused += 1
            else:
                assert world.download() == world.target
                assert world.target.read_bytes() == world.content
                assert not world.target.is_symlink()
                assert "was a link to another file" in caplog.text
                world.target.unlink()
                right += 1
            assert victim.read_bytes() == VICTIM
            assert not victim.with_name("nowhere").exists()
    reliability(
        "links, folders and pipes under a download's temporary names",
        tried=refused + right, refused=refused, right=right, wrong=0,
    )  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_pipe_under_a_models_name_is_no_file_and_nobody_waits_for_it(world):
    world.root.mkdir(parents=True)
    os.mkfifo(world.target)
    found = look(world.entry, index_folders([world.root]))
    assert (found.state, found.problem) == (State.CORRUPT, "it is not a file")


def test_part_that_another_program_opens_as_a_link_is_refused_by_the_system(tmp_path, victim):
    _link(tmp_path / "link", victim)
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


def test_link_that_is_planted_while_the_file_comes_is_told_and_never_written_through(world, victim):
    world.root.mkdir(parents=True)
    part = _part(world)
    part.write_bytes(b"damaged")

    def send(sink, offset):
        part.unlink()
        _link(part, victim)
        sink.write(world.content[offset:])

    opener = lambda entry: Remote(len(world.content), entry.sha256, send)  # noqa: E731 - one line of a test
    with pytest.raises(DownloadError, match=r"Another program took .*\.part away.*Start it again"):
        download(world.entry, world.root, opener=opener)
    assert victim.read_bytes() == VICTIM
    assert not world.target.exists()
    assert world.download() == world.target
    assert victim.read_bytes() == VICTIM
