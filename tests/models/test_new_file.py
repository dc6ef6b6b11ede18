"""A file that is built: read back before it gets its name, and gone when anything is wrong with it."""

import errno
import json

import pytest
import torch
from hyper_sd.models import new_file as module
from hyper_sd.models.new_file import CHECKING, WRITING, BuildClock, BuildError, Piece, bytes_of, new_file, write_pieces
from hyper_sd.models.tensor_file import open_tensors
from safetensors.torch import load_file


def pieces(count=20, size=1000):
    """Returns float32 pieces of `size` values; each counts up from its number."""

    def piece(number):
        return Piece(f"t{number}", "F32", (size,), lambda: iter([bytes_of(torch.full((size,), float(number)))]), True)

    return [piece(number) for number in range(count)]


@pytest.fixture
def target(tmp_path):
    return tmp_path / "new.safetensors"


def build(target, listed, progress=None, metadata=None):
    with new_file(target, sum(piece.size for piece in listed)) as part:
        write_pieces(part, listed, metadata or {"a": "ä"}, progress)


def test_whole_file_has_what_was_given(target):
    build(target, pieces())
    assert {name: float(tensor[0]) for name, tensor in load_file(target).items()} == {f"t{i}": float(i) for i in range(20)}
    assert [path.name for path in target.parent.iterdir()] == ["new.safetensors"]


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)


def _rename(path):
    path.write_bytes(path.read_bytes().replace(b'"t3"', b'"x3"', 1))


@pytest.mark.parametrize(("change", "what"), [(_flip, "t19"), (_rename, "the head")])
def test_what_reads_back_differently_is_refused(target, monkeypatch, change, what):
    def changed(path):
        change(path)
        return open_tensors(path)

    monkeypatch.setattr(module, "open_tensors", changed)
    with pytest.raises(BuildError, match=rf"new\.safetensors was not built: {what} reads back differently"):
        build(target, pieces())
    assert list(target.parent.iterdir()) == []


def test_values_that_come_out_differently_the_second_time_are_refused(target):
    values = iter(range(100))
    odd = Piece("odd", "F32", (1,), lambda: iter([bytes_of(torch.tensor([float(next(values))]))]), is_computed=True)
    with pytest.raises(BuildError, match="odd reads back differently"):
        build(target, [odd])
    assert list(target.parent.iterdir()) == []


def test_disk_that_fills_up_in_the_middle_is_told_and_left_clean(target):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(BuildError, match=r"new\.safetensors was not built: .* too full"):
        build(target, [*pieces(), Piece("last", "F32", (1,), full)])
    assert list(target.parent.iterdir()) == []


def test_what_a_killed_program_left_is_written_over_and_a_link_is_not_followed(target):
    target.with_name("new.safetensors.part").write_bytes(b"x" * 10**6)
    build(target, pieces())
    (target.parent / "theirs").write_text("theirs")
    target.unlink()
    try:
        target.with_name("new.safetensors.part").symlink_to(target.parent / "theirs")
    except OSError:
        pytest.skip("this system permits no links")
    build(target, pieces())
    assert (target.parent / "theirs").read_text() == "theirs"
    assert not target.is_symlink()


def test_head_is_json_that_any_reader_takes(target):
    build(target, pieces(1), metadata={"quoted": '"\n\u2028'})
    content = target.read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    assert json.loads(content[8 : 8 + length])["__metadata__"] == {"quoted": '"\n\u2028'}


def test_clock_tells_each_part_of_the_work_and_what_is_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    clock = BuildClock()
    assert clock.text(WRITING, 0, 6_940_000_000) == "writing, 0 %, 0 B of 6.94 GB"
    now[0] += 10
    assert clock.text(WRITING, 1_735_000_000, 6_940_000_000) == "writing, 25 %, 1.74 GB of 6.94 GB, 30 s left"
    assert clock.text(CHECKING, 1, 10) == "reading back, 10 %, 1 B of 10 B"
    now[0] += 1
    assert clock.text(CHECKING, 10, 10) == "reading back, 100 %, 10 B of 10 B"
