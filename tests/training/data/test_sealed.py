"""Damage to the files that caches keep is noticed, wherever it is, and what was damaged is made anew."""

import logging
import random
from collections import Counter

import pytest
import torch
from hyper_sd.errors import TrainingError
from hyper_sd.training.checkpoint import save_atomically
from hyper_sd.training.data.buckets import Item
from hyper_sd.training.data.cache import Encoders, encode, load_rows, missing_files, prompt_path
from hyper_sd.training.data.sealed import CacheError, load_sealed, save_sealed

FLIPS = 900
TEXTS = ("a cat", "a dog", "two mice")


@pytest.fixture
def items() -> list[Item]:
    """Texts alone, which need no pictures."""
    return [Item(text, text, (64, 64), text) for text in TEXTS]


def _encoders() -> Encoders:
    def prompts(texts):
        rows = [torch.full((4, 6), float(len(text))).half() for text in texts]
        return {"context": torch.stack(rows), "tokens": torch.tensor([[len(text)] for text in texts])}

    return Encoders(lambda images: images, prompts, "tiny")


def test_every_flipped_bit_of_a_cache_is_noticed_and_its_file_made_anew(tmp_path, items, reliability, caplog):
    caplog.set_level(logging.WARNING, "hyper_sd")
    list(encode(items, _encoders(), tmp_path))
    paths = sorted(tmp_path.rglob("*.safetensors"))
    whole, rng, counts = {path: path.read_bytes() for path in paths}, random.Random(7), Counter()
    expected = {path: load_sealed(path) for path in paths}
    for number in range(FLIPS):
        path = rng.choice(paths)
        content = bytearray(whole[path])
        length = 8 + int.from_bytes(content[:8], "little")
        content[rng.randrange(length if number % 3 == 0 else len(content))] ^= 1 << rng.randrange(8)  # a third in the header
        path.write_bytes(content)
        try:
            found = load_sealed(path)
        except CacheError:
            caplog.clear()
            list(encode(items, _encoders(), tmp_path))
            is_told = [r.message.count("are damaged or of a version without digests") for r in caplog.records] == [1]
            counts["refused" if is_told and path.read_bytes() == whole[path] else "wrong"] += 1
            continue
        is_same = found.keys() == expected[path].keys() and all(found[n].equal(t) for n, t in expected[path].items())
        counts["right" if is_same else "wrong"] += 1
        path.write_bytes(whole[path])
    reliability(
        "flipped bits in a cache's files",
        tried=FLIPS, refused=counts["refused"], right=counts["right"], wrong=counts["wrong"],
    )  # fmt: skip


def test_file_of_a_version_without_digests_is_made_anew_and_told(tmp_path, items, caplog):
    path = prompt_path(tmp_path, "tiny", TEXTS[0])
    save_atomically(
        path, {"context": torch.ones(1, 4, 6).half(), "tokens": torch.ones(1, 1).long()}, {"format": "hyper_sd cache 1"}
    )
    list(encode(items, _encoders(), tmp_path))
    assert load_sealed(path)["context"][0, 0, 0] == len(TEXTS[0])
    assert [r.message for r in caplog.records if "1 of 4 files of the cache are damaged or of a version" in r.message]


def test_damage_after_the_start_stops_the_training_that_reads_it(tmp_path):
    path = tmp_path / "a.safetensors"
    save_sealed(path, {"latents": torch.ones(1, 4)})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=r"does not hold what was written into it.*start again, and it is made anew"):
        load_rows([path])


def test_files_that_are_not_there_are_no_damage(tmp_path, caplog):
    assert missing_files({tmp_path / "a.safetensors": "a"}, (0, 1)) == (1, {tmp_path / "a.safetensors": "a"})
    assert not caplog.records
