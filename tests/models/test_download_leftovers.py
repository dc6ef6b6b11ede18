"""What people's folders hold beside whole files: links that lead nowhere, leftovers, copies under other endings and sizes."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hyper_sd.errors import ChecksumMismatch, DownloadError
from hyper_sd.models import files
from hyper_sd.models.files import UNVERIFIED, Found, index_folders, look
from hyper_sd.models.host_folders import HOST_ENDINGS
from hyper_sd.models.progress import State
from hyper_sd.tests.models.world import MIB, lora_bytes


def link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.symlink_to(target)
    except OSError:
        pytest.skip("this system permits no links")


@pytest.fixture
def unreadable(monkeypatch):
    """Has the system refuse one file, which it would not to a superuser: a stub of what opening it raises."""
    original, refused = os.open, set()

    def opened(path, *arguments, **options):
        if Path(path) in refused:
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *arguments, **options)

    monkeypatch.setattr("os.open", opened)
    return refused.add


@pytest.mark.parametrize("name", ["gone.safetensors", "Hyper-SDXL-8steps-lora.safetensors"])
@pytest.mark.parametrize("leads", ["nowhere", "to itself"])
def test_link_that_leads_nowhere_stops_no_download(world, name, leads):
    broken = world.root / name
    link(broken, world.root / "unplugged" / name if leads == "nowhere" else broken)
    assert look(world.entry, index_folders([world.root])) == Found(State.MISSING)
    assert world.download() == world.target
    assert world.target.read_bytes() == world.content


def test_folder_that_is_a_link_to_nowhere_is_named(world):
    link(world.root, world.root.parent / "unplugged")
    with pytest.raises(DownloadError, match=r"loras cannot be written .* or choose another"):
        world.download()


def test_folder_that_cannot_be_looked_into_is_told_and_skipped(world, tmp_path, caplog):
    odd = tmp_path / "more"
    odd.write_text("a file where a folder is looked for", encoding="utf-8")
    assert world.download(also=[odd, tmp_path / "absent"]) == world.target
    told = {record.getMessage() for record in caplog.records if "cannot be looked into" in record.getMessage()}
    assert len(told) == 1
    assert str(odd) in told.pop()


def test_file_that_cannot_be_read_is_no_copy_and_told(world, unreadable, caplog):
    other = world.root / "other.safetensors"
    other.parent.mkdir(parents=True)
    other.write_bytes(world.content)
    unreadable(other)
    assert world.download() == world.target
    assert f"{other} cannot be read" in caplog.text


def test_file_of_the_released_name_that_cannot_be_read_is_not_called_unwritable(world, unreadable):
    world.target.parent.mkdir(parents=True)
    world.target.write_bytes(world.content)
    unreadable(world.target)
    with pytest.raises(ChecksumMismatch, match=r"it cannot be read \(.*Permission denied") as told:
        world.download()
    assert "cannot be written" not in str(told.value)


@pytest.mark.parametrize("more", [1, MIB])
def test_partial_file_longer_than_the_file_is_begun_anew(world, more):
    world.root.mkdir(parents=True)
    files.part_path(world.root, world.entry, world.entry.sha256).write_bytes(world.content + bytes(more))
    assert world.download().read_bytes() == world.content
    assert world.starts() == [0]
    assert world.names == {world.entry.name}


@pytest.mark.parametrize(
    ("host", "name", "known"),
    [
        ("comfyui", "copy.SAFETENSORS", True),
        ("comfyui", "copy.sft", True),
        ("comfyui", "copy.SFT", True),
        ("comfyui", "copy.bin", False),
        ("a1111", "copy.SafeTensors", True),
        ("a1111", "copy.sft", False),  # it would not list it
        ("forge", "copy.SAFETENSORS", True),
    ],
)
def test_copy_is_known_by_every_ending_that_the_host_reads(world, host, name, known):
    world.root.mkdir(parents=True)
    (world.root / name).write_bytes(world.content)
    found = world.download(endings=HOST_ENDINGS[host])
    assert found == (world.root / name if known else world.target)
    assert world.starts() == ([] if known else [0])


def test_released_name_in_capitals_is_the_file(world):
    world.root.mkdir(parents=True)
    capitals = world.root / world.entry.name.upper()
    capitals.write_bytes(world.content)
    assert world.download() == capitals
    assert world.hub.requests == []


def put(world, size: int, seed: int = 1) -> Found:
    """Writes another whole file of about so many bytes under the released name, and looks."""
    world.root.mkdir(parents=True, exist_ok=True)
    world.target.write_bytes(lora_bytes(size, seed))
    return look(world.entry, index_folders([world.root]))


@pytest.mark.parametrize("sha256", [True, False], ids=["hash", "no hash"])
def test_file_far_from_a_rough_size_is_damaged(world, sha256):
    rough = len(world.content) // 1000 * 1000
    world.entry = replace(world.entry, size=None, approximate_size=rough, sha256=world.entry.sha256 if sha256 else None)
    found = put(world, MIB)
    assert found.state is State.CORRUPT
    assert found.problem == f"it has {world.target.stat().st_size} bytes, the released file has about {rough}"
    assert put(world, len(world.content)).state is State.READY


def test_hash_decides_where_the_size_is_only_known_roughly(world):
    world.entry = replace(world.entry, size=None)
    put(world, len(world.content))
    with pytest.raises(ChecksumMismatch, match="its content"):
        world.download()
    assert look(world.entry, index_folders([world.root])).state is State.CORRUPT
    world.target.write_bytes(world.content)
    world.entry = replace(world.entry, approximate_size=MIB)  # the catalogue's guess was wrong
    assert look(world.entry, index_folders([world.root])).state is State.CORRUPT
    assert world.download() == world.target
    assert look(world.entry, index_folders([world.root])).state is State.READY
    assert world.hub.requests == []


def test_file_that_nothing_is_known_of_is_ready_and_said_to_be_unchecked(world):
    world.entry = replace(world.entry, size=None, sha256=None)
    assert put(world, len(world.content)).note == UNVERIFIED
    world.target.write_bytes(world.target.read_bytes()[:-1])
    found = look(world.entry, index_folders([world.root]))
    assert (found.state, found.note) == (State.CORRUPT, "")
    assert "cut off" in found.problem
    world.entry = replace(world.entry, approximate_size=0)
    assert put(world, MIB).state is State.READY


def test_server_that_offers_another_size_than_the_rough_one_is_refused(world):
    world.entry = replace(world.entry, size=None, sha256=None, approximate_size=MIB)
    with pytest.raises(ChecksumMismatch, match="the catalogue expects about 1048576; nothing was downloaded"):
        world.download()
    assert world.starts() == []


def test_index_of_a_folder_that_is_absent_is_empty_and_tells_why(tmp_path):
    told = []
    assert index_folders([tmp_path / "absent"], told.append) == {}
    assert [Path(error.filename) for error in told] == [tmp_path / "absent"]
    assert isinstance(told[0], OSError)
    assert os.listdir(tmp_path) == []
