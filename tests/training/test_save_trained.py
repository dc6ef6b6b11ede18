"""A trained LoRA on the disk without a host: its number, its header, and what stays when it cannot be written."""

import errno
import hashlib
import random
from types import SimpleNamespace

import pytest
import torch
from hyper_sd import disk
from hyper_sd.errors import TrainingError, UnsupportedModelError
from hyper_sd.models.lora import load_lora_file
from hyper_sd.training import export
from hyper_sd.training.export import TrainedLora, numbered, save_trained
from safetensors import safe_open
from safetensors.torch import load_file, save_file

MODULE = "lora_unet_mid_block_attentions_0_proj_in"
TENSORS = {
    f"{MODULE}.lora_down.weight": torch.arange(12.0).view(2, 6),
    f"{MODULE}.lora_up.weight": torch.ones(6, 2),
    f"{MODULE}.alpha": torch.tensor(2.0),
}


FLIPS = 500


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_each_save_takes_the_number_after_the_highest_and_overwrites_nothing(tmp_path):
    (tmp_path / "MY_STYLE_00007_.SAFETENSORS").write_bytes(b"an older one")
    (tmp_path / "my_style_2_00099_.safetensors").write_bytes(b"of another name")
    (tmp_path / "my_style.safetensors").write_bytes(b"without a number")
    paths = [save_trained(tmp_path, "my_style.safetensors", TENSORS) for _ in range(2)]
    assert [path.name for path in paths] == ["my_style_00008_.safetensors", "my_style_00009_.safetensors"]
    assert (tmp_path / "MY_STYLE_00007_.SAFETENSORS").read_bytes() == b"an older one"
    assert sorted(numbered(tmp_path, "my_style")) == [7, 8, 9]
    assert len(names(tmp_path)) == 5
    saved = load_file(paths[1])
    assert saved.keys() == TENSORS.keys()
    assert all(torch.equal(saved[name], TENSORS[name]) for name in saved)


@pytest.mark.parametrize("links", [True, False])
def test_number_that_another_program_took_a_moment_ago_is_left_to_it(tmp_path, monkeypatch, links):
    def link(source, target):
        raise OSError(errno.EPERM, "this disk knows no links")

    (tmp_path / "a_00001_.safetensors").write_bytes(b"of another program")
    monkeypatch.setattr(export, "numbered", lambda folder, stem: {})  # the folder as it was before
    if not links:
        monkeypatch.setattr(export.os, "link", link)
    assert save_trained(tmp_path, "a", TENSORS).name == "a_00002_.safetensors"
    assert (tmp_path / "a_00001_.safetensors").read_bytes() == b"of another program"
    assert names(tmp_path) == ["a_00001_.safetensors", "a_00002_.safetensors"]


def test_name_may_lead_to_a_folder_below(tmp_path):
    path = save_trained(tmp_path / "loras", "people/ada", TENSORS)
    assert path == tmp_path / "loras" / "people" / "ada_00001_.safetensors"


def test_header_has_what_is_known_of_the_training_and_a_hash_of_the_data(tmp_path):
    lora = TrainedLora(TENSORS, {"hyper_sd_objective": "style finetune", "hyper_sd_rank": "9"})
    path = save_trained(tmp_path, "a", lora, licence_note=" my own pictures ")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    content = path.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    assert metadata.pop("modelspec.hash_sha256") == f"0x{hashlib.sha256(data).hexdigest()}"
    assert metadata.pop("modelspec.date").endswith("+00:00")
    assert metadata == {
        "hyper_sd_objective": "style finetune", "hyper_sd_rank": "9", "hyper_sd_modules": "1",
        "modelspec.sai_model_spec": "1.0.0", "modelspec.title": "a", "modelspec.license": "my own pictures",
    }  # fmt: skip


def test_header_of_another_trainers_lora_says_so(tmp_path):
    with safe_open(save_trained(tmp_path, "a", TENSORS), "pt") as file:
        metadata = file.metadata()
    assert (metadata["hyper_sd_origin"], metadata["hyper_sd_rank"]) == ("trained by another node", "2")
    assert "modelspec.license" not in metadata


def full_at_the_start(monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: SimpleNamespace(free=disk.SPARE + 100))


def full_on_the_way(monkeypatch):
    def flush(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "flush", flush)


@pytest.mark.parametrize("fill", [full_at_the_start, full_on_the_way])
def test_full_disk_leaves_nothing_new_and_says_where_the_lora_still_is(tmp_path, monkeypatch, fill):
    older = save_trained(tmp_path, "a", TENSORS)
    content = older.read_bytes()
    fill(monkeypatch)
    with pytest.raises(TrainingError, match=r"The LoRA a was not saved: the disk of .* is too full.*\. Queue again\.$"):
        save_trained(tmp_path, "a", TENSORS, advice="Queue again.")
    assert names(tmp_path) == [older.name]
    assert older.read_bytes() == content


def test_values_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(TrainingError, match=r"lora_up.weight has values that are not finite.*lower learning_rate"):
        save_trained(tmp_path, "a", TENSORS | {f"{MODULE}.lora_up.weight": torch.full((6, 2), float("nan"))})
    assert names(tmp_path) == []


def test_every_flipped_bit_in_the_data_of_a_saved_lora_is_noticed(tmp_path, reliability):
    path, rng, refused = save_trained(tmp_path, "a", TENSORS), random.Random(9), 0
    whole = path.read_bytes()
    first = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(FLIPS):
        content = bytearray(whole)
        content[rng.randrange(first, len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        with pytest.raises(UnsupportedModelError, match=r"values that are not finite|has changed it: its data do not have"):
            load_lora_file(path)
        refused += 1
    reliability("flipped bits in the data of a saved LoRA", tried=FLIPS, refused=refused, right=0, wrong=0)
    path.write_bytes(whole)
    assert load_lora_file(path)[1].keys() == TENSORS.keys()


def test_hash_that_another_program_has_written_is_not_relied_on(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors", {"modelspec.hash_sha256": "0x00", "modelspec.title": "a"})
    assert load_lora_file(tmp_path / "a.safetensors")[1].keys() == TENSORS.keys()
