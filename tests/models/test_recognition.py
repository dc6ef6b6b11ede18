"""What a LoRA file is: by content whatever its name and folder, by its training's metadata, by its name, or not at all."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hyper_sd.models import embedded, recognition
from hyper_sd.models.catalog import Catalog, load_catalog
from hyper_sd.models.files import may_have
from hyper_sd.models.recognition import Recognition, recognise
from hyper_sd.tests.models.synthetic_loras import BYTES
from safetensors.torch import save, save_file

LORAS = [entry for entry in load_catalog() if entry.folder == "loras"]
CFG = next(entry for entry in LORAS if entry.id == "hyper-sd15-8steps-cfg-lora")


def content(number: int) -> bytes:
    """A small whole file; all numbers give the same size."""
    return save({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.full((2, 2), float(number))})


def small_catalog(is_exact: bool = True) -> Catalog:
    """The pack's LoRAs with small contents, all of one size, which is known exactly or nearly."""
    size = len(content(0))
    sizes = {"size": size} if is_exact else {"size": None, "approximate_size": size + 1}
    hashes = (hashlib.sha256(content(number)).hexdigest() for number in range(len(LORAS)))
    return Catalog(tuple(replace(entry, sha256=digest, **sizes) for entry, digest in zip(LORAS, hashes, strict=True)))


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def trained(path: Path, **metadata: str) -> Path:
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(2, 2)}, path, metadata)
    return path


@pytest.mark.parametrize("is_exact", [True, False])
def test_every_released_content_is_itself_under_every_released_name(tmp_path, is_exact):
    catalog = small_catalog(is_exact)
    for number, wanted in enumerate(catalog):
        for place, other in enumerate(LORAS):
            name = other.name.upper() if place % 2 else f"below/{other.name}"
            known = recognise(put(tmp_path / str(number) / name, content(number)), catalog)
            assert (known.entry, known.evidence) == (wanted, "content"), f"{wanted.name} as {name}"
            assert (known.variant, known.recipe) == (wanted.kind, wanted.recipe)
            assert known.steps == (wanted.steps if wanted.recipe is None or wanted.recipe.segments == 0 else 0)


@pytest.mark.parametrize("name", [CFG.name, CFG.name.swapcase(), "Hyper-SD15-8steps-CFG-lora_fp16 (1).safetensors"])
def test_a_released_name_with_another_content_is_a_guess(tmp_path, name):
    known = recognise(put(tmp_path / name, content(99)), small_catalog())
    assert (known.evidence, known.variant, known.steps) == ("name", "cfg", 8)
    assert not known.is_certain


def test_a_file_that_says_nothing_is_unknown(tmp_path):
    for path in (put(tmp_path / "style.safetensors", content(99)), put(tmp_path / "x.safetensors", b"PK"), tmp_path / "gone"):
        assert recognise(path, small_catalog()) == Recognition(path.name)


def test_every_lora_of_the_catalogue_is_looked_for_among_files_of_its_released_size():
    for entry in (entry for entry in LORAS if entry.recipe is None):
        assert [may_have(entry, size) for size in BYTES.values()] == [family == entry.family for family in BYTES]


def test_files_of_other_sizes_are_not_hashed(tmp_path, monkeypatch):
    monkeypatch.setattr(recognition, "sha256_of", lambda path: pytest.fail(f"{path} was hashed"))
    for name in ("style.safetensors", CFG.name):
        assert not recognise(put(tmp_path / name, content(3))).is_certain  # the pack's catalogue: the sizes are far away


def test_a_file_is_hashed_once_until_it_changes(tmp_path):
    catalog, path = small_catalog(), put(tmp_path / "mine.safetensors", content(4))
    assert recognise(path, catalog).entry == catalog.entries[4]
    stamp = path.stat().st_mtime_ns
    path.write_bytes(content(5))
    os.utime(path, ns=(stamp, stamp))
    assert recognise(path, catalog).entry == catalog.entries[4]  # nothing was read again
    os.utime(path, ns=(stamp, stamp + 1_000_000_000))
    assert recognise(path, catalog).entry == catalog.entries[5]


def test_an_own_entry_without_hash_is_known_by_name_and_size(tmp_path):
    mine = replace(CFG, id="mine", file="a/mine.safetensors", sha256=None, size=None, approximate_size=0)
    sized = replace(CFG, id="sized", file="sized.safetensors", sha256=None, size=len(content(0)))
    catalog = Catalog((*small_catalog(), mine, sized))
    assert recognise(put(tmp_path / "Mine.safetensors", content(99)), catalog).evidence == "catalogue"
    assert recognise(put(tmp_path / "sized.safetensors", content(99)), catalog).entry == sized
    assert recognise(put(tmp_path / "sized.safetensors", content(99) + b"longer"), catalog).evidence == "name"
    assert recognise(put(tmp_path / "other.safetensors", content(99)), catalog).evidence == "nothing"


def test_an_own_entry_of_unknown_size_has_its_hash_compared(tmp_path):
    mine = replace(CFG, id="mine", file="mine.safetensors", size=None, approximate_size=0)
    mine = replace(mine, sha256=hashlib.sha256(content(50)).hexdigest())
    assert recognise(put(tmp_path / "mine.safetensors", content(50)), Catalog((mine,))).evidence == "content"
    assert recognise(put(tmp_path / "mine.safetensors", content(51)), Catalog((mine,))).evidence == "name"


@pytest.mark.parametrize(
    ("metadata", "wanted"),
    [
        ({"hyper_sd_objective": "style, then distil", "hyper_sd_stages": "8-4-2-1"}, ("metadata", "unified", 1)),
        ({"hyper_sd_objective": "TSCD distillation", "hyper_sd_stages": "8-4"}, ("metadata", "n-step", 4)),
        ({"hyper_sd_objective": "style finetune", "hyper_sd_stages": "none"}, ("metadata", None, 0)),
        ({"num_segments": "1", "trained_steps": "9"}, ("metadata", "unified", 1)),
        ({"num_segments": "8"}, ("metadata", "n-step", 8)),
        ({"num_segments": "0"}, ("nothing", None, 0)),
        ({"num_segments": "1e3"}, ("nothing", None, 0)),
        ({"num_segments": "1", "hyper_sd_start_timestep": "800"}, ("metadata", "n-step", 1)),
        ({"hyper_sd_origin": "trained by another node"}, ("nothing", None, 0)),
        ({"ss_network_dim": "8"}, ("nothing", None, 0)),
    ],
)
def test_metadata_of_the_packs_training_tells(tmp_path, metadata, wanted):
    known = recognise(trained(tmp_path / "mine.safetensors", **metadata))
    assert (known.evidence, known.variant, known.steps) == wanted
    assert known.is_style == (wanted == ("metadata", None, 0))


@pytest.mark.parametrize(
    ("last", "start", "wanted"),
    [
        ({"hyper_sd_stages": "8-4-2-1"}, "800", ("n-step", 1, 800)),
        ({"num_segments": "1"}, "999", ("n-step", 1, 999)),
        ({"num_segments": "1"}, "1", ("n-step", 1, 1)),
        ({"num_segments": "1"}, "1000", ("unified", 1, None)),
        ({"num_segments": "1"}, "0", ("unified", 1, None)),
        ({"num_segments": "1"}, "-5", ("unified", 1, None)),
        ({"num_segments": "1"}, "8e2", ("unified", 1, None)),
        ({"num_segments": "1"}, "", ("unified", 1, None)),
        ({"num_segments": "4"}, "800", ("n-step", 4, None)),
        ({"hyper_sd_stages": "none", "hyper_sd_objective": "style finetune"}, "800", (None, 0, None)),
    ],
)
def test_the_start_of_a_one_step_lora_is_in_its_metadata(tmp_path, last, start, wanted):
    known = recognise(trained(tmp_path / "mine.safetensors", **last, hyper_sd_start_timestep=start))
    assert (known.variant, known.steps, known.start_timestep) == wanted
    assert known.evidence == "metadata"


def test_the_embedded_one_step_lora_says_its_start():
    assert recognise(embedded.LORAS[embedded.ONE_STEP]).start_timestep == 800
    assert {recognise(path).start_timestep for key, path in embedded.LORAS.items() if key != embedded.ONE_STEP} == {None}


def test_metadata_counts_before_a_released_name(tmp_path):
    known = recognise(trained(tmp_path / CFG.name, num_segments="2"))
    assert (known.evidence, known.variant, known.steps, known.entry) == ("metadata", "n-step", 2, None)


@pytest.mark.parametrize("key", embedded.LORAS)
def test_the_embedded_models_loras_are_known_where_they_lie_and_as_copies(tmp_path, key):
    path = embedded.LORAS[key]
    known = recognise(path)
    assert (known.evidence, known.variant, known.steps) == ("embedded", *key)
    copy = recognise(put(tmp_path / "renamed.safetensors", path.read_bytes()))
    assert (copy.evidence, copy.variant, copy.steps) == ("metadata", *key)
