"""Folders, pipes, sockets, devices and links under a model's name: no file for that entry alone, and nobody waits for them."""

import os
import socket
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hyper_sd.errors import HyperSDError
from hyper_sd.models.catalog import load_catalog
from hyper_sd.models.content import require_content
from hyper_sd.models.files import index_folders, look, sha256_of
from hyper_sd.models.header import read_header
from hyper_sd.models.jobs import Downloads
from hyper_sd.models.lora import load_lora_file, read_lora
from hyper_sd.models.progress import State
from hyper_sd.models.recognition import recognise
from hyper_sd.models.unet_file import inspect_unet
from hyper_sd.rewards.personal import FILE, find_taste, read_about, require_about
from hyper_sd.rewards.weights import read_tensors
from hyper_sd.tests.models.world import lora_bytes

PATIENCE = 30  # seconds after which something waits for ever
NO_FILE = "it is not a file"

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the whole path may be longer than a socket's name may be
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


KINDS: dict[str, Callable[[Path], None]] = {
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "socket": _socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link to a pipe": lambda path: (os.mkfifo(path.with_suffix(".fifo")), path.symlink_to(path.with_suffix(".fifo"))),
    "link to itself": lambda path: path.symlink_to(path),
    "link to nowhere": lambda path: path.symlink_to(path.with_name("nowhere")),
}


def _ended(call: Callable[[], Any]) -> Any:
    """Returns what a call returns or raises; a call that waits for ever fails the test and not the whole run."""
    outcome = []

    def run() -> None:
        try:
            outcome.append(call())
        except Exception as error:  # judged by the test
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return outcome[0] if outcome else TimeoutError("it waits for ever")


READERS: dict[str, Callable[[Path], Any]] = {
    "header": read_header,
    "LoRA": read_lora,
    "LoRA's tensors": load_lora_file,
    "UNet": inspect_unet,
    "content": lambda path: require_content(path, path.suffix),
    "hash": sha256_of,
    "catalogue": load_catalog,
    "taste": require_about,
    "scorer": lambda path: read_tensors(path, next(e.id for e in load_catalog() if e.is_reward and e.ending == path.suffix)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", [".safetensors", ".json", ".pt", ".bin"])
def test_reader_refuses_what_is_no_file_and_waits_for_nothing(tmp_path, kind, ending):
    path = tmp_path / f"a{ending}"
    KINDS[kind](path)
    for name, read in READERS.items():
        if name == "scorer" and not any(entry.is_reward and entry.ending == ending for entry in load_catalog()):
            continue
        outcome = _ended(lambda read=read: read(path))
        if name == "catalogue" and kind.startswith("link to ") and kind != "link to a pipe":
            assert not isinstance(outcome, Exception)  # a file of a person's own that is not there
            continue
        assert isinstance(outcome, HyperSDError | OSError), f"{name}: {outcome!r}"
    assert recognise(path).evidence == "nothing"
    assert read_about(path) is None


def test_only_the_entry_under_whose_name_it_lies_is_no_file(tmp_path, reliability):
    counts = Counter()
    entries = {(entry.folder, entry.ending): entry for entry in load_catalog()}.values()  # one for each kind of file
    for kind, make in KINDS.items():
        for entry in entries:
            root = tmp_path / kind / entry.id
            root.mkdir(parents=True)
            make(root / entry.name)
            rows = _ended(Downloads(lambda folder, root=root: [root]).rows)
            others = {row.state for row in rows if row.entry.name.lower() != entry.name.lower()}
            own = next(row for row in rows if row.id == entry.id)
            if others - {State.MISSING}:
                counts["wrong"] += 1
            elif (own.state, own.problem) == (State.CORRUPT, NO_FILE):
                counts["refused"] += 1
            else:
                is_absent = kind in ("link to itself", "link to nowhere") and own.state is State.MISSING
                counts["right" if is_absent else "wrong"] += 1
    reliability(
        "folders, pipes, sockets, devices and links under a model's name",
        tried=len(KINDS) * len(entries), refused=counts["refused"], right=counts["right"], wrong=counts["wrong"],
    )  # fmt: skip


def test_whole_file_in_another_folder_is_found_beside_what_is_no_file(tmp_path, world):
    for kind, make in KINDS.items():
        odd, whole = tmp_path / kind / "odd", tmp_path / kind / "whole"
        for folder in (odd, whole):
            folder.mkdir(parents=True)
        make(odd / world.entry.name)
        (whole / world.entry.name).write_bytes(world.content)
        assert look(world.entry, index_folders([odd, whole])).state is State.READY


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "device"])
def test_download_sets_aside_what_is_no_file(world, kind):
    world.root.mkdir(parents=True)
    KINDS[kind](world.target)
    assert world.download(set_aside=True) == world.target
    assert world.target.read_bytes() == world.content


def test_taste_is_found_beside_what_is_no_file(tmp_path):
    odd, whole = tmp_path / "odd", tmp_path / "whole"
    for folder in (odd, whole):
        folder.mkdir()
    os.mkfifo(odd / FILE)
    (whole / FILE).write_bytes(lora_bytes())
    assert _ended(lambda: find_taste([odd, whole])) == whole / FILE
