"""Thousands of damaged safetensors headers: every reader refuses each with one kind of error, or the library reads it, too."""

import json
import os
import random
import struct

import pytest
import torch
from hyper_sd.errors import UnsupportedModelError
from hyper_sd.models.content import require_content
from hyper_sd.models.header import MAX_HEADER, glance, read_header
from hyper_sd.models.lora import read_lora
from hyper_sd.models.recognition import recognise
from hyper_sd.models.unet_file import inspect_unet
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FILES = 4_000
ODD = (
    None, True, -1, 0, 1, 3, 2**31, 2**63, 2**64, 10**400, 1.5, 1e400, "", "F32", "F16", "f32", "x" * 500, [],
    [0], [-1], [2, 3], [1] * 9, [1] * 65, [[2], 3], [2.0, 3], ["2"], {}, {"a": 1}, [0, 24], [24, 0], [0, 10**30], [None, 24],
)  # fmt: skip
READERS = (
    read_header,
    lambda path: list(glance(path, bool)),
    inspect_unet,
    read_lora,
    recognise,
    lambda path: require_content(path, ".safetensors"),
)
ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    """A small LoRA's file."""
    path = tmp_path_factory.mktemp("whole") / "whole.safetensors"
    tensors = {
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": torch.ones(2, 3),
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": torch.ones(3, 2),
        "lora_unet_down_blocks_0_attentions_0_proj_in.alpha": torch.tensor(2.0),
    }
    save_file(tensors, path, {"note": "whole"})
    return path.read_bytes()


def _changed(rng: random.Random, content: bytes) -> bytes:
    length = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(list(header))
        entry = header[name]
        kind = rng.randrange(7)
        if kind == 0:
            header[name] = rng.choice(ODD)
        elif kind == 1 and isinstance(entry, dict) and entry:
            entry[rng.choice(list(entry))] = rng.choice(ODD)
        elif kind == 2 and isinstance(entry, dict) and isinstance(entry.get("data_offsets"), list):
            entry["data_offsets"] = [
                max(0, n + rng.choice((-8, -4, -1, 1, 4, 8))) for n in entry["data_offsets"] if type(n) is int
            ]
        elif kind == 3 and isinstance(entry, dict):
            entry[rng.choice(("dtype", "shape", "data_offsets", "more"))] = rng.choice(ODD)
        elif kind == 4:
            header[rng.choice(("__metadata__", "other", ""))] = rng.choice((*ODD, {"n": 3}, {"n": "text"}, entry))
        elif kind == 5:
            del header[name]
        else:
            data = rng.choice((data[:-1], data + b"\0", b"", data * 2, data))
        if not header:
            break
    text = json.dumps(header, allow_nan=True).encode()
    if rng.random() < 0.15:
        text = rng.choice(
            (text[:-3], text + b"}", b"[" * 5000, b'{"a":' * 3000, b"", b"null", b"\xff" * 9, text.replace(b":", b";", 1))
        )
    said = len(text) if rng.random() < 0.9 else rng.choice((0, 1, 2**40, len(text) - 1, len(text) + 1, 2**63))
    return struct.pack("<Q", said) + text + data


def _library_reads(path) -> bool:
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                file.get_tensor(name)
    except (SafetensorError, OverflowError, ValueError, RuntimeError, TypeError):
        return False
    return True


def test_every_damaged_header_is_refused_in_one_way_or_read_by_the_library_too(tmp_path, whole, reliability):
    rng, path, counts = random.Random(3), tmp_path / "file.safetensors", {"refused": 0, "read": 0}
    for number in range(FILES):
        path.write_bytes(_changed(rng, whole))
        for reader in READERS:
            try:
                reader(path)
            except UnsupportedModelError:
                continue
            except Exception as error:  # any other kind is the fault that is looked for
                pytest.fail(f"file {number}: {reader} raised {error!r}")
        try:
            read_header(path)
        except UnsupportedModelError:
            counts["refused"] += 1
            continue
        counts["read"] += 1
        assert _library_reads(path), number
    reliability("damaged headers of model files", tried=FILES, refused=counts["refused"], right=counts["read"], wrong=0)


def test_whole_file_is_read_by_all_that_read_headers(tmp_path, whole):
    path = tmp_path / "file.safetensors"
    path.write_bytes(whole)
    assert read_header(path)["__metadata__"] == {"note": "whole"}
    assert read_lora(path).modules == 1


def test_glance_sees_the_tensors_of_the_header_in_its_order(tmp_path):
    path, note = tmp_path / "file.safetensors", json.dumps({"lora_up": {"dtype": "F32", "shape": [9], "n": '"{}'}})
    save_file({f"b{n}.lora_up.weight": torch.ones(n + 1, 2) for n in range(5)} | {"a.alpha": torch.ones(3)}, path, {"n": note})
    header = read_header(path)
    start = 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]
    seen = list(glance(path, lambda name: name != "a.alpha"))
    assert [(name, entry) for name, entry, _ in seen] == [item for item in header.items() if item[0].startswith("b")]
    assert {begin for *_, begin in seen} == {start}


def test_huge_header_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "file.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 99_000_000))
        file.truncate(100_000_000)
    with pytest.raises(UnsupportedModelError, match="no safetensors file"):
        read_header(path)
    assert MAX_HEADER < 10_000_000


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_pipe_and_folder_are_no_files_and_nobody_waits(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(UnsupportedModelError, match="is not a file"):
            read_header(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"a": ENTRY}).encode("utf-16"),
        b"\xef\xbb\xbf" + json.dumps({"a": ENTRY}).encode(),
        json.dumps({"\ud800": ENTRY}).encode(),
        json.dumps({"__metadata__": {"note": "\ud800"}, "a": ENTRY}).encode(),
    ],
)
def test_header_in_another_encoding_or_with_half_a_sign_is_refused_as_by_the_library(tmp_path, text):
    path = tmp_path / "file.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    assert not _library_reads(path)
    with pytest.raises(UnsupportedModelError, match="no readable safetensors file"):
        read_header(path)
