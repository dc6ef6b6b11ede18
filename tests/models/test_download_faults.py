"""What goes wrong on the way from the hub, and what each fault leaves behind; the table in docs/downloads.md is what was seen.

HYPER_SD_WRITE=1 writes the table anew.
"""

import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hyper_sd import disk
from hyper_sd.errors import ChecksumMismatch, DownloadError, HyperSDError
from hyper_sd.models import files
from hyper_sd.models.download import open_hub_file
from hyper_sd.models.entry import write_entry
from hyper_sd.models.progress import State
from hyper_sd.tests.models.loopback_hub import ALWAYS, Fault
from hyper_sd.tests.models.world import MIB, World

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("download_process.py")
BEGIN, END = "<!-- faults: written by tests/models/test_download_faults.py -->", "<!-- end of faults -->"
HALF = {"cut_after": 6 * MIB + 12345}
rows: dict[str, tuple[str, str, str]] = {}


def redirect(location: str) -> bytes:
    """Returns an answer that leads elsewhere."""
    return f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


# name -> faults of the first run, a part of what it says (None: it gets the file), whether a partial file is kept
SERVER_FAULTS = {
    "the connection breaks in the middle, again and again": ([Fault(times=ALWAYS, **HALF)], None, False),
    "the connection breaks and does not come back": (
        [Fault(**HALF, method="GET"), Fault(times=ALWAYS, status=503, method="GET", retry_after=0)],
        "is busy (status 503)",
        True,
    ),
    "the connection breaks, and the server ignores the request for the rest": (
        [Fault(**HALF), Fault(ignore_range=True)],
        None,
        False,
    ),
    "it breaks every time, and the server always ignores the request for the rest": (
        [Fault(times=ALWAYS, ignore_range=True, **HALF)],
        "cannot go on in the middle",
        False,
    ),
    "silence in the middle": ([Fault(stall_after=6 * MIB, stall=3)], None, False),
    "the server announces another size": ([Fault(times=ALWAYS, size_error=-7)], "offers another", False),
    "other content of the same size": ([Fault(times=ALWAYS, wrong_content=True)], "expected", False),
    "401, no token": ([Fault(times=ALWAYS, status=401)], "set HF_TOKEN", False),
    "403, the licence was not accepted": ([Fault(times=ALWAYS, status=403)], "accept the licence there", False),
    "404, the file was moved": ([Fault(times=ALWAYS, status=404)], "was moved or removed", False),
    "429, too many requests, then let through": ([Fault(times=2, status=429, retry_after=0)], None, False),
    "500, the server is broken": ([Fault(times=ALWAYS, status=500)], "has a fault of its own (status 500)", False),
}

SERVER_FAULTS |= {
    "`100 Continue` without an end": (
        [Fault(ALWAYS, endless=b"HTTP/1.1 100 Continue\r\n\r\n")],
        "begin to answer within",
        False,
    ),
    "silence in place of an answer": ([Fault(ALWAYS, silent=math.inf)], "begin to answer within", False),
    **{
        f"a redirect to {scheme}:": ([Fault(ALWAYS, raw=redirect(f"{scheme}{rest}"))], "which is no address", False)
        for scheme, rest in {"file": ":///etc/passwd", "ftp": "://{cdn}/a", "data": ":,x", "gopher": "://x/_x"}.items()
    },
    "redirects in a circle": ([Fault(ALWAYS, raw=redirect("/again"))], "without an end", False),
    "the connection breaks, and the rest begins elsewhere": (
        [Fault(**HALF), Fault(ALWAYS, method="GET", headers=(("Content-Range", "bytes 7-99/100"),))],
        "another part of the file",
        True,
    ),
    "404 with a body without an end": (
        [Fault(ALWAYS, raw=b"HTTP/1.1 404 Not Found\r\n\r\n", endless=bytes(65536))],
        "was moved or removed",
        False,
    ),
    "a way into Xet storage on another host": (
        [Fault(ALWAYS, method="HEAD", headers=(("X-Xet-Hash", "0" * 64), ("Link", '<http://127.0.0.1:1/x>; rel="xet-auth"')))],
        None,
        False,
    ),
}


def outcome(call: Callable[[], Path]) -> str:
    """Returns "" when the call gives the file, else what it says."""
    try:
        call()
    except HyperSDError as error:
        return str(error)
    return ""


def record(name: str, world: World, said: str) -> None:
    """Writes down what a first run left, then runs again without the fault, which must give the file."""
    kept, first = world.kept, f"stops: {_short(said)}" if said else "gets the file"
    assert world.target.is_file() == (not said)
    if not said:
        assert world.target.read_bytes() == world.content
        again = "uses it"
    world.hub.faults.clear()
    before = len(world.starts())
    assert world.download().read_bytes() == world.content
    assert world.names == {world.entry.name}
    if said:
        starts = world.starts()[before:]
        assert starts == [kept]
        again = "goes on in the middle" if kept else "starts anew"
    rows[name] = (first, "what came" if kept else "the file" if not said else "nothing", again)


def _short(said: str) -> str:
    for remedy, text in {
        "HF_TOKEN to a token": "accept the licence, log in",
        "HF_TOKEN": "log in or set HF_TOKEN",
        "offers another": "not the released file, nothing downloaded",
        "thrown away": "wrong checksum, thrown away",
        "moved or removed": "moved or removed, update the pack",
        "is busy": "the server is busy, try later",
        "fault of its own": "the server is broken, try later",
        "begin to answer": "no answer in time, try later",
        "which is no address": "an address that no file comes from",
        "without an end": "redirects without an end",
        "another part": "another part of the file than was asked for",
        "cannot go on in the middle": "the line keeps breaking, try later",
        "too full": "how much is free and needed",
        "offline mode": "offline, where to get the file",
        "was stopped": "",
    }.items():
        if remedy in said:
            return text
    return said


@pytest.mark.parametrize("name", SERVER_FAULTS)
def test_server_fault_leaves_a_whole_file_or_none(world, name):
    faults, words, keeps = SERVER_FAULTS[name]
    world.hub.faults.extend(faults)
    said = outcome(world.download)
    assert (words in said) if words else not said
    assert bool(world.kept) == keeps
    assert not said or world.entry.name in said or "The hub" in said
    record(name, world, said)


def test_lying_hub_is_asked_a_few_times_at_most(world):
    """One request for the file's size, and for what a person could wait for no more than three."""
    for name, most in {"redirects in a circle": 3, "a redirect to file:": 1, "404 with a body without an end": 1}.items():
        world.hub.faults[:], before = SERVER_FAULTS[name][0], len(world.hub.requests)
        outcome(world.download)
        assert len(world.hub.requests) - before <= most, name
        assert sum(request.sent for request in world.hub.requests) < 8 * MIB


def test_broken_line_goes_on_where_it_broke(world):
    world.hub.faults.extend([Fault(**HALF)])
    world.download()
    first, second = world.starts()
    assert first == 0
    assert 5 * MIB <= second <= HALF["cut_after"]


def test_wrong_content_names_both_hashes(world):
    world.hub.faults.append(Fault(times=ALWAYS, wrong_content=True))
    with pytest.raises(ChecksumMismatch, match=f"with sha256 [0-9a-f]{{64}}, expected {world.entry.sha256}"):
        world.download()


def test_disk_too_full_is_said_before_a_byte_is_asked_for(world, monkeypatch):
    """The free space is a stub; the disk cannot be filled for a test."""
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=20 * MIB))
    said = outcome(world.download)
    assert "21 MB are free, 80 MB are needed" in said
    assert world.starts() == []
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**40))
    record("the disk is too full for the file", world, said)


def test_disk_that_fills_up_in_the_middle_keeps_what_came(world):
    """The full disk is a stub: the sender raises what a write to one raises."""

    def opener(entry):
        remote = open_hub_file(entry, world.hub.endpoint)

        def send(sink, offset):
            sink.write(world.content[: 5 * MIB])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return replace(remote, send=send)

    said = outcome(lambda: world.download(opener=opener))
    assert "too full" in said
    assert world.kept == 5 * MIB
    record("the disk fills up in the middle", world, said)


def test_stopped_download_keeps_what_came(world):
    world.hub.faults.append(Fault(bytes_per_second=8 * MIB))

    class Stop(DownloadError):
        pass

    def stop(progress):
        if progress.bytes_done > 2 * MIB:
            raise Stop("was stopped")

    from hyper_sd.models.download import download

    opener = lambda entry: open_hub_file(entry, world.hub.endpoint)  # noqa: E731
    said = outcome(lambda: download(world.entry, world.root, progress=stop, opener=opener))
    assert world.kept > 2 * MIB
    record("the person stops it", world, said)


@pytest.fixture
def program(world, tmp_path):
    """Starts the world's download as a program of its own."""
    entry = write_entry(world.entry) | {"id": "test-entry", "licence": "unknown", "file": "test.safetensors"}
    world.hub.add(world.entry.repo, "test.safetensors", world.content)
    catalogue = tmp_path / "catalog.json"
    catalogue.write_text(json.dumps({"entries": [entry]}), encoding="utf-8")
    world.entry = replace(world.entry, id="test-entry", file="test.safetensors")
    started = []

    def start(**environment) -> subprocess.Popen:
        command = [sys.executable, str(PROGRAM), str(catalogue), str(world.root)]
        env = {**os.environ, "HF_ENDPOINT": world.hub.endpoint, **environment}
        started.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_killed_program_leaves_a_partial_file_that_the_next_one_finishes(world, program):
    world.hub.faults.append(Fault(bytes_per_second=6 * MIB))
    process = program()
    for line in process.stdout:
        if json.loads(line)[1] > 2 * MIB:
            break
    process.kill()
    process.wait()
    assert world.kept > 2 * MIB
    assert files.look(world.entry, files.index_folders([world.root])).state is State.PARTIAL
    record("the program is killed in the middle", world, "was stopped")


def test_two_programs_at_once_download_once(world, program):
    world.hub.faults.append(Fault(bytes_per_second=12 * MIB))
    for process in [program(), program()]:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert world.starts() == [0]
    record("two programs at once", world, "")


def test_offline_mode_says_so_and_asks_nobody(world, program):
    _, said = program(HF_HUB_OFFLINE="1").communicate(timeout=60)
    assert "offline mode is on (HF_HUB_OFFLINE)" in said
    assert world.entry.page in said
    assert world.hub.requests == []
    record("offline (HF_HUB_OFFLINE)", world, said.strip())


def test_documented_table_is_what_was_seen():
    if len(rows) < len(SERVER_FAULTS) + 6:
        pytest.skip("the other tests of this file were not all run")
    lines = ["| what goes wrong | the download | kept | the next click |", "|---|---|---|---|"]
    lines += [f"| {name} | {' | '.join(row)} |".replace("stops:  |", "stops |") for name, row in rows.items()]
    table = "\n".join([BEGIN, *lines, END])
    page = ROOT / "docs" / "downloads.md"
    text = page.read_text(encoding="utf-8")
    if os.environ.get("HYPER_SD_WRITE"):
        start, stop = text.index(BEGIN), text.index(END) + len(END)
        page.write_text(text[:start] + table + text[stop:], encoding="utf-8")
        text = page.read_text(encoding="utf-8")
    assert table in text, f"{page} has another table; HYPER_SD_WRITE=1 writes this one:\n{table}"
