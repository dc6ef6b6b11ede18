"""Files that another program rewrites while they are read: each is refused, or is wholly the old or the new one."""

import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hyper_sd.errors import UnsupportedModelError
from hyper_sd.models import tensor_file
from hyper_sd.models.header import open_safetensors
from hyper_sd.models.lora import load_lora_file
from hyper_sd.models.sdxl_unet import UnetShape
from hyper_sd.models.unet_file import inspect_unet, stream_tensors
from hyper_sd.tests.models.synthetic_unets import unet, write
from safetensors.torch import save

LORAS, UNETS = 2_000, 100
TINY = UnetShape(channels=32, multipliers=(1, 2), depths=(0, 1), context=64, vector=96)
LAYER = "lora_unet_down_blocks_0_attentions_0_proj_in"
Tensors = dict[str, torch.Tensor]


class _Watched:
    """An open file that calls a function before everything that is asked of it."""

    def __init__(self, file, before: Callable[[], None]):
        self._file, self._before = file, before

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def __getattr__(self, name):
        self._before()
        return getattr(self._file, name)


def _lora(rank: int, width: int, value: float, layers: int) -> Tensors:
    made = {}
    for number in range(layers):
        made[f"{LAYER}_{number}.lora_down.weight"] = torch.full((rank, width), value)
        made[f"{LAYER}_{number}.lora_up.weight"] = torch.full((width, rank), value + number)
        made[f"{LAYER}_{number}.alpha"] = torch.tensor(float(rank))
    return made


def _rewrite(rng: random.Random, path: Path, others: list[bytes]) -> None:
    """Does one of the things that programs do to a file: in place, cut off, longer, or another under its name."""
    kind, content = rng.randrange(5), rng.choice(others)
    if kind == 0:
        path.write_bytes(content)
    elif kind == 1:
        with path.open("r+b") as file:
            file.truncate(rng.randrange(path.stat().st_size))
    elif kind == 2:
        with path.open("ab") as file:
            file.write(b"\0" * rng.randrange(1, 100))
    elif kind == 3:
        with path.open("r+b") as file:
            file.seek(rng.randrange(path.stat().st_size))
            file.write(rng.randbytes(rng.randrange(1, 64)))
    else:
        other = path.with_suffix(".new")
        other.write_bytes(content)
        try:
            other.replace(path)
        except PermissionError:  # Windows gives no name away that is open
            path.write_bytes(content)


def _rewritten(monkeypatch, path: Path, rng: random.Random, others: list[bytes], point: int, load: Callable) -> tuple:
    """Loads a file that is rewritten before the call of this number, and returns what came of it and how many calls it took."""
    calls = 0

    def before() -> None:
        nonlocal calls
        if calls == point:
            _rewrite(rng, path, others)
        calls += 1

    def watched(opened: Path):
        before()
        return _Watched(open_safetensors(opened), before)

    os.utime(path, (10**9, 10**9))  # written long ago, so that no clock is too coarse to tell
    with monkeypatch.context() as patched:
        patched.setattr(tensor_file, "open_safetensors", watched)
        try:
            return load(path), calls
        except UnsupportedModelError:
            return None, calls


def _same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def _outcome(path: Path, found: Tensors | None, whole: list[Tensors], load: Callable) -> str:
    if found is None:
        return "refused"
    if any(_same(found, tensors) for tensors in whole):
        return "right"
    return "right" if _same(found, load(path)) else "wrong"  # written over before it was opened, and as good as another


def _counted(monkeypatch, path: Path, rng: random.Random, contents: list[bytes], load: Callable, files: int) -> Counter:
    whole = []
    for content in contents:
        path.write_bytes(content)
        whole.append(load(path))
    _, points = _rewritten(monkeypatch, path, rng, contents, -1, load)
    counts = Counter()
    for _ in range(files):
        path.write_bytes(contents[0])
        found, _ = _rewritten(monkeypatch, path, rng, contents[1:], rng.randrange(points + 1), load)
        counts[_outcome(path, found, whole, load)] += 1
    return counts


def test_every_lora_that_is_rewritten_while_it_is_read_is_refused_or_whole(tmp_path, monkeypatch, reliability):
    sizes = [(4, 8, 1.0, 6), (4, 8, 2.0, 6), (2, 8, 3.0, 6), (4, 16, 4.0, 3), (8, 8, 5.0, 12)]
    contents = [save(_lora(*size), {"note": "whole"}) for size in sizes]
    load = lambda path: load_lora_file(path)[1]  # noqa: E731 - the tensors alone
    counts = _counted(monkeypatch, tmp_path / "lora.safetensors", random.Random(11), contents, load, LORAS)
    counted = {kind: counts[kind] for kind in ("refused", "right", "wrong")}
    reliability("LoRAs rewritten while they are read", tried=LORAS, **counted)


def test_every_unet_that_is_rewritten_while_it_is_read_is_refused_or_whole(tmp_path, monkeypatch, reliability):
    path = tmp_path / "unet.safetensors"
    contents = [write(path, unet("diffusers", TINY), dtype).read_bytes() for dtype in (torch.float16, torch.bfloat16)]
    load = lambda path: dict(stream_tensors(inspect_unet(path, TINY), torch.float32))  # noqa: E731 - in two looks
    counts = _counted(monkeypatch, path, random.Random(12), contents, load, UNETS)
    counted = {kind: counts[kind] for kind in ("refused", "right", "wrong")}
    reliability("UNets rewritten while they are read", tried=UNETS, **counted)


def test_values_that_are_not_finite_are_never_loaded_from_a_file_that_becomes_another(tmp_path, monkeypatch):
    path, rng = tmp_path / "lora.safetensors", random.Random(13)
    good, bad = save(_lora(4, 8, 1.0, 6)), save(_lora(4, 8, float("nan"), 6))
    for point in range(80):
        path.write_bytes(good)
        found, _ = _rewritten(monkeypatch, path, rng, [bad], point, lambda path: load_lora_file(path)[1])
        assert found is None or all(bool(tensor.isfinite().all()) for tensor in found.values())


def test_lora_that_changes_is_told_in_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "lora.safetensors"
    path.write_bytes(save(_lora(4, 8, 1.0, 2)))
    os.utime(path, (10**9, 10**9))
    read = tensor_file.TensorFile.read

    def cut(self, start, size):
        os.truncate(path, 100)
        return read(self, start, size)

    monkeypatch.setattr(tensor_file.TensorFile, "read", cut)
    with pytest.raises(UnsupportedModelError, match=r"changed while it was read; wait until it is written, and try again\.$"):
        load_lora_file(path)
