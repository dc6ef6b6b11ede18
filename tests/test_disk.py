"""Room on the disk, and files that are whole or not there."""

import errno
from types import SimpleNamespace

import pytest
from hyper_sd import disk


def test_written_file_replaces_the_old_one_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "new folder" / "a.png"
    for content in (b"old", b"new"):
        disk.write_whole(path, content)
        assert path.read_bytes() == content
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("own_name", [False, True])
def test_stop_in_the_middle_leaves_the_old_file_and_nothing_beside(tmp_path, own_name):
    target = tmp_path / "a.png"
    target.write_bytes(b"old")

    def stop() -> None:
        with disk.whole_file(target, tmp_path / "a.part" if own_name else None) as partial:
            partial.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_given_temporary_name_takes_the_place_of_what_an_ended_program_left(tmp_path):
    left = tmp_path / "a.part"
    left.write_bytes(b"half a file of an ended program")
    with disk.whole_file(tmp_path / "a.png", left) as partial:
        assert partial == left
        partial.write_bytes(b"whole")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.png": b"whole"}


def test_full_disk_says_what_is_free_and_what_is_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: SimpleNamespace(free=disk.SPARE + 10**6))
    disk.require_room(tmp_path / "not made yet", 10**6)
    with pytest.raises(OSError, match="too little room") as raised:
        disk.require_room(tmp_path, 10**6 + 1)
    assert disk.is_full(raised.value)
    said = disk.explain(raised.value, tmp_path, 10**6 + 1)
    assert said == f"the disk of {tmp_path} is too full: 68 MB are free, 68 MB are needed; make room and try again"


def test_folder_that_cannot_be_written_is_no_full_disk(tmp_path):
    error = PermissionError(errno.EACCES, "Permission denied")
    assert not disk.is_full(error)
    assert f"{tmp_path} cannot be written" in disk.explain(error, tmp_path)
