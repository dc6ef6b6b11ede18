"""Room on the disk, and files that are whole or not there."""

import errno
import os
from pathlib import Path
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


def test_error_while_writing_keeps_the_old_file(tmp_path):
    target = tmp_path / "a.png"
    target.write_bytes(b"old")

    def write() -> None:
        with disk.whole_file(target) as partial:
            partial.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.png": b"old"}


def test_name_that_cannot_be_given_leaves_nothing_beside(tmp_path):
    target = tmp_path / "a.png"
    target.mkdir()
    with pytest.raises(OSError):  # noqa: PT011 - another on every system: a folder has the name
        disk.write_whole(target, b"new")
    assert list(tmp_path.iterdir()) == [target]


def test_content_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    order, sync, replace = [], os.fsync, Path.replace

    def watched_sync(descriptor):
        order.append(("sync", os.fstat(descriptor).st_size))
        sync(descriptor)

    def watched_replace(self, target):
        order.append(("name", target.name))
        return replace(self, target)

    monkeypatch.setattr(disk.os, "fsync", watched_sync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    disk.write_whole(tmp_path / "a.png", b"four")
    assert order == [("sync", 4), ("name", "a.png")]


@pytest.mark.skipif(os.name == "nt", reason="there the whole path may have 260 characters alone")
def test_longest_name_that_the_system_takes_is_written(tmp_path):
    target = tmp_path / ("x" * 251 + ".png")
    disk.write_whole(target, b"new")
    assert list(tmp_path.iterdir()) == [target]


def test_temporary_names_differ_and_are_hidden(tmp_path):
    parts = {disk.part_beside(tmp_path / "a.png") for _ in range(20)}
    assert len(parts) == 20
    assert all(part.parent == tmp_path and part.name[0] == "." and part.suffix == disk.PART for part in parts)


def test_room_of_a_folder_that_is_not_there_yet_is_that_of_the_nearest_one(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: asked.append(folder) or SimpleNamespace(free=7))
    assert disk.free_bytes(tmp_path / "new" / "folder") == 7
    monkeypatch.chdir(tmp_path)
    assert disk.free_bytes(Path("new")) == 7
    assert asked == [tmp_path, tmp_path]


def test_full_disk_says_what_is_free_and_what_is_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: SimpleNamespace(free=disk.SPARE + 10**6))
    disk.require_room(tmp_path / "not made yet", 10**6)
    with pytest.raises(OSError, match="too little room") as raised:
        disk.require_room(tmp_path, 10**6 + 1)
    assert disk.is_full(raised.value)
    said = disk.explain(raised.value, tmp_path, 10**6 + 1)
    assert said == f"the disk of {tmp_path} is too full: 68 MB are free, 68 MB are needed; make room and try again"
    assert (
        disk.explain(raised.value, tmp_path) == f"the disk of {tmp_path} is too full: 68 MB are free; make room and try again"
    )


@pytest.mark.parametrize(("error", "is_full"), [
    (OSError(errno.ENOSPC, "a"), True), (OSError(getattr(errno, "EDQUOT", errno.ENOSPC), "a"), True),
    (RuntimeError("I/O error: No space left on device (os error 28)"), True), (OSError(errno.EIO, "a"), False),
    (RuntimeError("invalid header"), False),
])  # fmt: skip
def test_full_disk_is_known_by_its_number_or_its_words(error, is_full):
    assert disk.is_full(error) is is_full


def test_folder_that_cannot_be_written_is_no_full_disk(tmp_path):
    error = PermissionError(errno.EACCES, "Permission denied")
    assert not disk.is_full(error)
    assert disk.explain(error, tmp_path, 10) == (
        f"{tmp_path} cannot be written ({error}); check the folder and its permissions, or choose another"
    )


@pytest.mark.parametrize(("count", "text"), [
    (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_499, "999 kB"), (999_500, "1 MB"), (269_127_064, "269 MB"),
    (999_499_999, "999 MB"), (999_500_000, "1.00 GB"), (6_940_000_000, "6.94 GB"), (5_000_000_000_000, "5000.00 GB"),
])  # fmt: skip
def test_sizes_are_written_as_people_read_them(count, text):
    assert disk.format_bytes(count) == text
