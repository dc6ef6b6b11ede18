"""Damage to a checkpoint is noticed, wherever it is."""

import random

import pytest
import torch
from hyper_sd.errors import TrainingError
from hyper_sd.tests.training.runs import equal, run, start, weights
from hyper_sd.training import checkpoint
from hyper_sd.training.checkpoint import load_checkpoint, previous_of, save_checkpoint
from hyper_sd.training.digest import CHUNK, digest_of
from hyper_sd.training.run import CHECKPOINT

FLIPS = 600


def _same(found: tuple, expected: tuple) -> bool:
    (parts, values), (known, told) = found, expected
    return (
        values == told
        and parts.keys() == known.keys()
        and all(
            group.keys() == known[name].keys() and all(torch.equal(tensor, known[name][key]) for key, tensor in group.items())
            for name, group in parts.items()
        )
    )


def test_every_flipped_bit_of_a_runs_checkpoint_is_refused_or_changes_nothing(tmp_path, reliability):
    run(folder=tmp_path)
    path, rng, refused = tmp_path / CHECKPOINT, random.Random(7), 0
    whole, expected = path.read_bytes(), load_checkpoint(tmp_path / CHECKPOINT)
    length = int.from_bytes(whole[:8], "little")
    for number in range(FLIPS):
        place = rng.randrange(8 + length if number % 3 == 0 else len(whole))  # a third of them within the header
        content = bytearray(whole)
        content[place] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:
            found = load_checkpoint(path)
        except TrainingError:
            refused += 1
            continue
        assert _same(found, expected), f"byte {place}"
    reliability("flipped bits in a checkpoint", tried=FLIPS, refused=refused, right=FLIPS - refused, wrong=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("count", [0, 1, 3, 8, 17, 8 * CHUNK + 5])
def test_digest_tells_every_place_of_a_tensor(dtype, count):
    tensor = torch.zeros(count, dtype=dtype)
    before = digest_of({"a": tensor}, "")
    assert digest_of({"a": tensor.clone()}, "") == before
    for place in {0, count // 2, count - 1} & set(range(count)):
        changed = tensor.clone()
        changed[place] = 1
        assert digest_of({"a": changed}, "") != before


@pytest.mark.parametrize("count", [256, 3 * CHUNK + 256])
def test_digest_tells_parts_that_changed_places(count):
    words = torch.randn(2 * count, generator=torch.Generator().manual_seed(3))
    before = digest_of({"a": words}, "")
    for size in (1, 2, 128):  # 128 are a sector of a disk
        swapped = torch.cat([words[size : 2 * size], words[:size], words[2 * size :]])
        assert digest_of({"a": swapped}, "") != before
        assert digest_of({"a": words.roll(size)}, "") != before
    assert digest_of({"a": words.flip(0)}, "") != before


def test_digest_tells_names_shapes_dtypes_and_values():
    one = torch.zeros(2, 3)
    several = [
        digest_of({"a": one}, "x"),
        digest_of({"b": one}, "x"),
        digest_of({"a": one.T}, "x"),
        digest_of({"a": one.int()}, "x"),
        digest_of({"a": one}, "y"),
        digest_of({"a": one, "b": torch.zeros(())}, "x"),
        digest_of({}, "x"),
    ]
    assert len(set(several)) == len(several)
    assert digest_of({"a": one, "b": one}, "") == digest_of({"b": one, "a": one}, "")


def test_checkpoint_of_the_version_before_is_read_without_a_digest(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "VERSION", checkpoint.UNSEALED)
    save_checkpoint(tmp_path / "old.safetensors", {"student": {"a": torch.ones(2)}}, {"step": 3})
    monkeypatch.undo()
    parts, values = load_checkpoint(tmp_path / "old.safetensors")
    assert torch.equal(parts["student"]["a"], torch.ones(2))
    assert values == {"step": 3}


def _damage(path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def test_damaged_checkpoint_gives_way_to_the_one_before_and_the_run_ends_as_without_damage(tmp_path, caplog):
    states, layers = run()
    started, _, _ = start(folder=tmp_path)
    for _ in range(5):
        next(started)
    started.close()
    assert load_checkpoint(tmp_path / CHECKPOINT)[1]["step"] == 5
    assert load_checkpoint(previous_of(tmp_path / CHECKPOINT))[1]["step"] == 4
    _damage(tmp_path / CHECKPOINT)
    rest, resumed = run(folder=tmp_path)
    assert [state.step for state in rest] == [5, 6, 7, 8]
    assert [state.losses for state in rest] == [state.losses for state in states[4:]]
    assert equal(weights(resumed), weights(layers))
    told = [record.message for record in caplog.records if "is used instead" in record.message]
    assert len(told) == 1
    assert "is damaged" in told[0]
    assert "previous_checkpoint.safetensors of step 4" in told[0]


def test_damaged_checkpoint_never_takes_the_place_of_the_whole_one(tmp_path):
    started, _, _ = start(folder=tmp_path)
    for _ in range(5):
        next(started)
    started.close()
    _damage(tmp_path / CHECKPOINT)
    again, _, _ = start(folder=tmp_path)
    next(again)
    again.close()
    assert load_checkpoint(tmp_path / CHECKPOINT)[1]["step"] == 5
    assert load_checkpoint(previous_of(tmp_path / CHECKPOINT))[1]["step"] == 4


def test_both_damaged_are_refused(tmp_path):
    run(folder=tmp_path)
    for path in (tmp_path / CHECKPOINT, previous_of(tmp_path / CHECKPOINT)):
        _damage(path)
    with pytest.raises(TrainingError, match=r"previous_checkpoint.safetensors is damaged"):
        run(folder=tmp_path)


def test_disk_without_second_names_keeps_the_last_checkpoint_and_says_so(tmp_path, monkeypatch, caplog):
    def refuse(*paths):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    run(folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
    assert "is not kept beside the new one" in caplog.text
