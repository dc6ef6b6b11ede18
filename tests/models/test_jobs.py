"""The downloads of one host: what a page is told, and what clicking does."""

import functools
import json
import threading
import time
from dataclasses import replace

import pytest
from hyper_sd.errors import CatalogError, DownloadError
from hyper_sd.models import jobs
from hyper_sd.models.catalog import Catalog
from hyper_sd.models.download import open_hub_file
from hyper_sd.models.entry import write_entry
from hyper_sd.models.files import UNVERIFIED
from hyper_sd.models.host_folders import HOST_ENDINGS
from hyper_sd.models.jobs import AT_ONCE, Downloads, listed_name, user_catalog
from hyper_sd.models.progress import State
from hyper_sd.tests.models.loopback_hub import ALWAYS, Fault
from hyper_sd.tests.models.world import MIB


@pytest.fixture
def downloads(world, tmp_path, transfer):
    """The downloads of a host with four small files of a person's own catalogue, and the rows it was notified of."""
    entries = []
    for number in range(4):
        name = f"mine-{number}.safetensors"
        world.hub.add(world.entry.repo, name, world.content)
        entries.append({**write_entry(world.entry), "id": f"mine-{number}", "file": name, "licence": "unknown"})
    user_file = user_catalog(tmp_path)
    user_file.parent.mkdir()
    user_file.write_text(json.dumps({"entries": entries}), encoding="utf-8")
    rows = []
    opener = functools.partial(open_hub_file, endpoint=world.hub.endpoint)
    running = Downloads(lambda kind: [tmp_path / "models" / kind, tmp_path / "more"], user_file, rows.append, opener)
    running.notified = rows
    yield running
    for row in running.active():
        running.cancel(row.id)
    finish(running)


def finish(downloads):
    """Waits until nothing is under way."""
    for _ in range(600):
        if not downloads.active():
            return
        time.sleep(0.05)
    raise AssertionError("a download does not end")


def row_of(downloads, entry_id):
    return next(row for row in downloads.rows() if row.id == entry_id)


def test_rows_list_every_entry_ready_for_json(downloads):
    rows = downloads.rows()
    assert len(rows) == 62
    assert {row.state for row in rows} == {State.MISSING}
    told = [row.to_json() for row in rows]
    assert json.loads(json.dumps(told)) == told
    assert row_of(downloads, "hyper-flux1-dev-8steps-lora").entry.licence.acknowledge is True


def test_start_downloads_in_the_background_and_tells_how_far_it_is(downloads, world):
    world.hub.faults.append(Fault(bytes_per_second=20 * MIB))
    assert downloads.start("mine-0").state is State.DOWNLOADING
    finish(downloads)
    row = row_of(downloads, "mine-0")
    assert (row.state, row.file, row.problem) == (State.READY, "mine-0.safetensors", "")
    seen = [row.progress.bytes_done for row in downloads.notified if row.state is State.DOWNLOADING]
    assert len(seen) > 1
    assert seen == sorted(seen)
    assert downloads.notified[-1].state is State.READY


def test_ready_row_always_has_the_name_of_its_file(downloads, world, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "my favourite.safetensors").write_bytes(world.content)
    downloads.start("mine-0")
    looked = []
    while not looked or looked[-1].state is not State.READY:
        looked.append(downloads.row("mine-0"))
    followed = list(downloads.follow("mine-0", pause=0))
    ready = [row for row in (*looked, *followed, *downloads.notified) if row.state is State.READY]
    assert {row.file for row in ready} == {"my favourite.safetensors"}
    assert all(row.is_busy for row in downloads.notified[:-1])


def test_ready_row_says_what_could_not_be_checked(downloads, world, tmp_path):
    entry = {**write_entry(world.entry), "id": "rough", "file": "rough.safetensors", "licence": "unknown"}
    entry = {name: value for name, value in entry.items() if name not in {"size", "sha256"}}
    user_catalog(tmp_path).write_text(json.dumps({"entries": [entry]}), encoding="utf-8")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "rough.safetensors").write_bytes(world.content)
    row = row_of(downloads, "rough")
    assert (row.state, row.progress.note) == (State.READY, UNVERIFIED)


def test_copy_under_an_ending_of_the_host_is_ready(world, tmp_path, transfer):
    opener = functools.partial(open_hub_file, endpoint=world.hub.endpoint)
    downloads = Downloads(lambda kind: [world.root], opener=opener, endings=HOST_ENDINGS["comfyui"])
    downloads._released = lambda: (Catalog((world.entry,)), "")  # a stub of the file that lists it
    world.root.mkdir(parents=True)
    (world.root / "favourite.SFT").write_bytes(world.content)
    downloads.start(world.entry.id)
    finish(downloads)
    row = downloads.row(world.entry.id)
    assert (row.state, row.file) == (State.READY, "favourite.SFT")
    assert world.starts() == []


def test_second_start_joins_the_first(downloads, world):
    world.hub.faults.append(Fault(bytes_per_second=20 * MIB))
    downloads.start("mine-0")
    assert downloads.start("mine-0").is_busy
    assert len(downloads.active()) == 1
    finish(downloads)
    assert world.starts() == [0]


def test_only_a_few_run_at_once_and_the_rest_wait(downloads, world):
    world.hub.faults.append(Fault(times=ALWAYS, bytes_per_second=10 * MIB))
    for number in range(4):
        downloads.start(f"mine-{number}")
    notes = [row.progress.note for row in downloads.active()]
    assert sum("turn" in note for note in notes) >= 4 - AT_ONCE
    finish(downloads)
    assert {row_of(downloads, f"mine-{number}").state for number in range(4)} == {State.READY}


def test_cancel_keeps_what_came_and_start_goes_on(downloads, world):
    world.hub.faults.append(Fault(bytes_per_second=8 * MIB))
    downloads.start("mine-0")
    while not any(row.progress.bytes_done > MIB for row in downloads.notified):
        time.sleep(0.02)
    downloads.cancel("mine-0")
    finish(downloads)
    row = row_of(downloads, "mine-0")
    assert (row.state, row.problem) == (State.PARTIAL, "")
    assert row.progress.bytes_done > MIB
    downloads.start("mine-0")
    finish(downloads)
    assert row_of(downloads, "mine-0").state is State.READY
    assert world.starts()[-1] >= MIB


def test_waiting_download_can_be_cancelled(downloads, world):
    world.hub.faults.append(Fault(times=ALWAYS, stall_after=MIB, stall=1))
    for number in range(3):
        downloads.start(f"mine-{number}")
    downloads.cancel("mine-2")
    *_, last = downloads.follow("mine-2")
    assert last == row_of(downloads, "mine-2")
    assert last.state is State.MISSING


def test_failure_is_told_in_the_row_until_the_next_start(downloads, world):
    world.hub.faults.append(Fault(times=ALWAYS, status=404))
    downloads.start("mine-0")
    finish(downloads)
    row = row_of(downloads, "mine-0")
    assert row.state is State.MISSING
    assert "404" in row.problem
    assert downloads.notified[-1].problem == row.problem
    world.hub.faults.clear()
    downloads.start("mine-0")
    finish(downloads)
    assert row_of(downloads, "mine-0").problem == ""


def test_surprise_leaves_the_host_usable(downloads, monkeypatch):
    def surprise(*arguments, **options):
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr(jobs, "download", surprise)
    downloads.start("mine-0")
    finish(downloads)
    assert "surprise" in row_of(downloads, "mine-0").problem


def test_corrupt_file_is_set_aside_only_when_asked(downloads, tmp_path):
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "mine-0.safetensors").write_bytes(b"broken")
    assert row_of(downloads, "mine-0").state is State.CORRUPT
    downloads.start("mine-0")
    finish(downloads)
    assert (folder / "mine-0.safetensors").read_bytes() == b"broken"
    assert "set aside" in row_of(downloads, "mine-0").problem
    downloads.start("mine-0", set_aside=True)
    finish(downloads)
    assert row_of(downloads, "mine-0").state is State.READY
    assert (folder / "mine-0.safetensors.corrupt").read_bytes() == b"broken"


def test_unknown_id_and_unread_licence_start_nothing(downloads):
    with pytest.raises(CatalogError):
        downloads.start("../mine-0")
    with pytest.raises(DownloadError, match="Non-Commercial"):
        downloads.start("hyper-flux1-dev-8steps-lora")
    with pytest.raises(CatalogError):
        downloads.cancel("none")
    assert downloads.active() == []


def test_wrong_user_file_is_told_and_the_packs_entries_stay(downloads, tmp_path):
    user_catalog(tmp_path).write_text("{", encoding="utf-8")
    catalog, problem = downloads.catalog()
    assert len(catalog.models) == 50
    assert "cannot be read as JSON" in problem


def test_many_clicks_at_once_start_one_download(downloads, world):
    world.hub.faults.append(Fault(bytes_per_second=20 * MIB))
    threads = [threading.Thread(target=downloads.start, args=("mine-1",)) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    finish(downloads)
    assert world.starts() == [0]


def test_listed_name_is_relative_to_the_folder_that_holds_it(tmp_path):
    assert listed_name(tmp_path / "b" / "sub" / "x", [tmp_path / "a", tmp_path / "b"]) == str(
        (tmp_path / "sub" / "x").relative_to(tmp_path)
    )
    assert listed_name(tmp_path / "x", [tmp_path / "a"]) == "x"


def test_entry_may_change_between_two_listings(downloads, tmp_path, world):
    entry = replace(world.entry, id="late", file="late.safetensors", licence=downloads.catalog()[0].entries[-1].licence)
    user_catalog(tmp_path).write_text(json.dumps({"entries": [write_entry(entry)]}), encoding="utf-8")
    assert row_of(downloads, "late").state is State.MISSING


def test_followed_download_yields_rows_until_it_is_ready(downloads, world):
    world.hub.faults.append(Fault(bytes_per_second=20 * MIB))
    downloads.start("mine-0")
    *rows, last = downloads.follow("mine-0", pause=0.02)
    assert (last.state, last.file) == (State.READY, "mine-0.safetensors")
    done = [row.progress.bytes_done for row in rows if row.state is State.DOWNLOADING]
    assert len(set(done)) > 1
    assert done == sorted(done)
    assert downloads.active() == []


def test_following_what_is_not_under_way_yields_how_it_lies_on_the_disk(downloads):
    assert [row.state for row in downloads.follow("mine-0")] == [State.MISSING]
    downloads.start("mine-0")
    finish(downloads)
    assert [(row.state, row.file) for row in downloads.follow("mine-0")] == [(State.READY, "mine-0.safetensors")]


def test_following_an_unknown_id_names_those_that_look_like_it(downloads):
    with pytest.raises(CatalogError, match="did you mean mine-"):
        next(downloads.follow("mine-9"))


def test_leaving_a_followed_download_stops_nothing(downloads, world):
    world.hub.faults.append(Fault(bytes_per_second=20 * MIB))
    downloads.start("mine-0")
    for row in downloads.follow("mine-0"):
        assert row.is_busy
        break
    *_, last = downloads.follow("mine-0")
    assert last.state is State.READY
    assert world.starts() == [0]


def test_cancelled_download_is_followed_to_what_it_keeps(downloads, world):
    world.hub.faults.append(Fault(bytes_per_second=8 * MIB))
    downloads.start("mine-0")
    for row in downloads.follow("mine-0"):
        if row.is_busy and row.progress.bytes_done > MIB:
            downloads.cancel("mine-0")
    assert (row.state, row.problem) == (State.PARTIAL, "")
    assert row.progress.bytes_done > MIB
    assert downloads.active() == []  # whoever starts it now does not join what is ending


def test_failed_download_is_followed_to_its_problem(downloads, world):
    world.hub.faults.append(Fault(times=ALWAYS, status=404))
    downloads.start("mine-0")
    *_, last = downloads.follow("mine-0")
    assert last.state is State.MISSING
    assert "404" in last.problem


def test_entry_that_leaves_the_catalogue_is_followed_to_its_end(downloads, world, tmp_path):
    world.hub.faults.append(Fault(bytes_per_second=20 * MIB))
    downloads.start("mine-0")
    rows = downloads.follow("mine-0")
    assert next(rows).is_busy
    user_catalog(tmp_path).unlink()
    *_, last = rows
    assert last.state is State.READY
