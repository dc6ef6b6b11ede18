"""Downloads by the real hub client from a loopback hub: what arrives, what is found, what is refused."""

import functools
import hashlib
import io
import os
import threading
from dataclasses import replace

import pytest
import torch
from hyper_sd.errors import ChecksumMismatch, DownloadError
from hyper_sd.models import files
from hyper_sd.models.download import download, open_hub_file
from hyper_sd.models.progress import State
from hyper_sd.models.remote import Cancelled, Remote
from hyper_sd.tests.models.loopback_hub import Fault
from hyper_sd.tests.models.world import MIB, lora_bytes


def test_download_puts_the_whole_file_under_its_name(world):
    assert world.download() == world.target
    assert world.target.read_bytes() == world.content
    assert world.names == {world.entry.name}
    assert world.seen[-1].state is State.READY
    assert world.seen[-1].bytes_done == world.seen[-1].bytes_total == len(world.content)


def test_second_download_asks_nobody(world):
    world.download()
    before = len(world.hub.requests)
    assert world.download() == world.target
    assert len(world.hub.requests) == before


def test_progress_grows_and_tells_rate_and_time_left(world):
    world.hub.faults.append(Fault(bytes_per_second=10 * MIB))
    world.download()
    running = [p for p in world.seen if p.state is State.DOWNLOADING and p.bytes_done]
    assert [p.bytes_done for p in running] == sorted(p.bytes_done for p in running)
    assert any(p.rate and p.eta_seconds is not None and 0 < p.rate < 100 * MIB for p in running)
    assert all(p.bytes_total == len(world.content) for p in running)


def test_hash_comes_from_the_hub_when_the_catalogue_has_none(world):
    world.entry = replace(world.entry, sha256=None, size=None)
    assert world.download().read_bytes() == world.content


def test_file_without_any_known_hash_is_refused(world):
    world.entry = replace(world.entry, sha256=None)
    world.hub.faults.append(Fault(times=9, plain_etag=True))
    with pytest.raises(DownloadError, match=r"nor the catalogue knows the sha256 .* nothing was downloaded"):
        world.download()
    assert not world.kept
    assert world.starts() == []


def test_catalogue_hash_verifies_a_plain_mirror(world):
    world.hub.faults.append(Fault(times=9, plain_etag=True))
    assert world.download().read_bytes() == world.content


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"size": 12345}])
def test_other_file_on_the_server_is_refused_before_a_byte(world, change):
    world.entry = replace(world.entry, **change)
    with pytest.raises(ChecksumMismatch, match=r"offers another .* nothing was downloaded"):
        world.download()
    assert world.starts() == []
    assert world.names == set()


def test_existing_file_in_another_folder_is_used(world, tmp_path):
    other = tmp_path / "other" / "deep"
    other.mkdir(parents=True)
    (other / world.entry.name).write_bytes(world.content)
    assert world.download(also=[tmp_path / "other"]) == other / world.entry.name
    assert world.hub.requests == []


def test_renamed_copy_is_found_by_its_content(world):
    world.root.mkdir(parents=True)
    copy = world.root / "my favourite.safetensors"
    copy.write_bytes(world.content)
    assert world.download() == copy
    assert world.starts() == []


def test_corrupt_file_is_reported_and_left_alone(world):
    world.root.mkdir(parents=True)
    world.target.write_bytes(world.content[:-1])
    with pytest.raises(ChecksumMismatch, match=r"not whole or not the released file: it has .* bytes"):
        world.download()
    assert world.target.read_bytes() == world.content[:-1]
    assert world.hub.requests == []


def test_corrupt_file_of_the_right_size_is_found_by_its_hash(world):
    world.root.mkdir(parents=True)
    bad = world.content[:-1] + bytes([world.content[-1] ^ 1])
    world.target.write_bytes(bad)
    assert files.look(world.entry, files.index_folders([world.root])).state is State.READY
    with pytest.raises(ChecksumMismatch, match="its content"):
        world.download()
    assert files.look(world.entry, files.index_folders([world.root])).state is State.CORRUPT


def test_corrupt_file_is_set_aside_on_request_where_it_lies(world):
    folder = world.root / "sub"
    folder.mkdir(parents=True)
    (folder / world.entry.name).write_bytes(b"broken")
    assert world.download(set_aside=True) == folder / world.entry.name
    assert (folder / world.entry.name).read_bytes() == world.content
    assert (folder / f"{world.entry.name}.corrupt").read_bytes() == b"broken"


def test_corrupt_file_stays_when_the_new_one_does_not_arrive(world):
    world.root.mkdir(parents=True)
    world.target.write_bytes(b"broken")
    world.hub.faults.append(Fault(times=99, status=404))
    with pytest.raises(DownloadError, match="404"):
        world.download(set_aside=True)
    assert world.target.read_bytes() == b"broken"


def test_what_the_progress_raises_stops_the_download_and_keeps_what_came(world):
    world.hub.faults.append(Fault(bytes_per_second=8 * MIB))

    class Interrupt(Exception):
        pass

    def stop(progress):
        if progress.bytes_done > MIB:
            raise Interrupt

    with pytest.raises(Interrupt):
        download(world.entry, world.root, progress=stop, opener=functools.partial(open_hub_file, endpoint=world.hub.endpoint))
    kept = world.kept
    assert MIB < kept < len(world.content)
    assert world.download().read_bytes() == world.content
    assert world.starts()[-1] == kept


def test_stop_is_heard_while_the_server_is_silent(world):
    world.hub.faults.append(Fault(stall_after=2 * MIB))
    looks = []

    def stop(progress):
        looks.append(progress)
        if len([look for look in looks if look.bytes_done]) > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(world.entry, world.root, progress=stop, opener=functools.partial(open_hub_file, endpoint=world.hub.endpoint))
    assert 0 < world.kept <= 2 * MIB
    assert not world.target.exists()


def test_two_clicks_at_once_download_once(world):
    world.hub.faults.append(Fault(bytes_per_second=20 * MIB))
    results = []
    threads = [threading.Thread(target=lambda: results.append(world.download())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [world.target] * 3
    assert world.starts() == [0]
    assert any("another download" in progress.note for progress in world.seen)


def test_token_goes_to_the_hub_and_not_to_its_storage(world, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    world.hub.token, world.hub.redirect_to_cdn = "hf_secret", True
    assert world.download().read_bytes() == world.content
    sent = [(r.path, {k.lower(): v for k, v in r.headers.items()}.get("authorization")) for r in world.hub.requests]
    assert ("Bearer hf_secret" in {value for path, value in sent if "resolve" in path}) is True
    assert {value for path, value in sent if "resolve" not in path} == {None}


def test_damaged_partial_is_thrown_away_and_the_file_fetched_anew(world):
    world.root.mkdir(parents=True)
    files.part_path(world.root, world.entry, world.entry.sha256).write_bytes(b"\0" * 3 * MIB)
    assert world.download().read_bytes() == world.content
    assert world.starts() == [3 * MIB, 0]


def test_complete_partial_is_verified_without_another_byte(world):
    world.root.mkdir(parents=True)
    files.part_path(world.root, world.entry, world.entry.sha256).write_bytes(world.content)
    assert world.download().read_bytes() == world.content
    assert world.starts() == []


def test_partial_of_another_release_is_not_mixed_in(world):
    world.root.mkdir(parents=True)
    other = files.part_path(world.root, world.entry, "f" * 64)
    other.write_bytes(b"\1" * MIB)
    assert files.look(world.entry, files.index_folders([world.root])).state is State.MISSING
    assert world.download().read_bytes() == world.content
    assert other.exists()


def test_full_content_that_is_no_model_is_refused(world):
    content = os.urandom(MIB)
    sha256 = world.hub.add(world.entry.repo, world.entry.file, content)
    world.entry = replace(world.entry, sha256=sha256, size=len(content))
    with pytest.raises(ChecksumMismatch, match="no safetensors file"):
        world.download()
    assert not world.kept


@pytest.mark.parametrize(("file", "save_as"), [("model.pt", None), ("tokenizer.json", "words.json")])
def test_scorers_file_arrives_under_its_name_on_the_disk(world, file, save_as):
    content = io.BytesIO()
    torch.save({"weight": torch.zeros(9)}, content)
    content = b'{"model": {"vocab": {"a": 0}}}' if save_as else content.getvalue()
    sha256 = world.hub.add(world.entry.repo, file, content)
    changed = {"file": file, "save_as": save_as, "sha256": sha256, "size": len(content)}
    world.entry = replace(world.entry, **changed)
    world.hub.faults.append(Fault(times=9, plain_etag=True))  # small files have no sha256 on the hub
    assert world.download() == world.root / (save_as or file)
    assert world.target.read_bytes() == content


def test_renamed_copy_of_a_checkpoint_is_found_by_its_content(world):
    held = io.BytesIO()
    torch.save({"weight": torch.zeros(9)}, held)
    content = held.getvalue()
    sha256 = world.hub.add(world.entry.repo, "model.pt", content)
    world.entry = replace(world.entry, file="model.pt", sha256=sha256, size=len(content))
    world.root.mkdir(parents=True)
    (world.root / "mine.pt").write_bytes(content)
    assert world.download() == world.root / "mine.pt"


def test_scorers_file_that_is_no_checkpoint_is_refused(world):
    sha256 = world.hub.add(world.entry.repo, "model.pt", world.content)
    world.entry = replace(world.entry, file="model.pt", sha256=sha256)
    with pytest.raises(ChecksumMismatch, match="no checkpoint of torch"):
        world.download()
    assert not world.kept


def test_folder_that_cannot_be_made_is_named(world, tmp_path):
    (tmp_path / "models").write_text("a file in the way")
    with pytest.raises((DownloadError, OSError), match="models"):
        world.download()


def test_opener_may_be_anything_that_sends(world):
    """A stub in place of the hub: a Remote over bytes in memory."""
    content = lora_bytes(MIB, seed=3)
    entry = replace(world.entry, sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    remote = Remote(len(content), None, lambda sink, offset: sink.write(content[offset:]))
    assert download(entry, world.root, opener=lambda _: remote).read_bytes() == content


def test_server_that_sends_too_much_is_stopped(world):
    """A stub in place of the hub, since an HTTP client stops at the length that was announced."""
    remote = Remote(world.entry.size, None, lambda sink, offset: sink.write(world.content + b"more"))
    with pytest.raises(ChecksumMismatch, match="more than the"):
        download(world.entry, world.root, opener=lambda _: remote)
    assert not world.target.exists()


def test_cancelled_is_a_download_error():
    assert issubclass(Cancelled, DownloadError)


def test_hash_is_hashlibs(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(os.urandom(9 * MIB + 5))
    seen = []
    assert files.sha256_of(path, seen.append) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert seen[-1] == 9 * MIB + 5
    path.write_bytes(b"changed")
    assert files.sha256_of(path) == hashlib.sha256(b"changed").hexdigest()


def test_folders_with_a_circle_of_links_are_read_once(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "X.safetensors").write_bytes(b"")
    try:
        (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    except OSError:
        pytest.skip("this system permits no links")
    assert files.index_folders([tmp_path]) == {"x.safetensors": [tmp_path / "a" / "X.safetensors"]}
