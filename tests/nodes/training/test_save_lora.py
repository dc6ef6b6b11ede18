"""Hyper-SD Save LoRA on the real host: what lies on the disk, what the loaders make of it, and what is refused."""

import errno
import hashlib
import importlib
import json
import os
import shutil
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hyper_sd.disk import format_bytes
from hyper_sd.errors import TrainingError
from hyper_sd.training.export import TrainedLora, write_new
from safetensors import safe_open
from safetensors.torch import load_file

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def unet(host):
    """A small model of two levels, so that its LoRA has the layers between them too."""
    return host.small_unet()


@pytest.fixture
def loras(host, tmp_path):
    """An empty loras folder of the host."""
    import folder_paths

    before = folder_paths.folder_names_and_paths["loras"]
    folder_paths.folder_names_and_paths["loras"] = ([str(tmp_path / "loras"), str(tmp_path / "other")], before[1])
    folder_paths.filename_list_cache.pop("loras", None)
    yield tmp_path / "loras"
    folder_paths.folder_names_and_paths["loras"] = before
    folder_paths.filename_list_cache.pop("loras", None)


@pytest.fixture
def tensors():
    """A LoRA of one module."""
    module, generator = "lora_unet_mid_block_attentions_0_proj_in", torch.Generator().manual_seed(0)
    parts = {"lora_down.weight": (2, 6), "lora_up.weight": (6, 2), "alpha": ()}
    return {f"{module}.{part}": torch.randn(shape, generator=generator) for part, shape in parts.items()}


@pytest.fixture
def whole(host, unet):
    """A LoRA over the small UNet."""
    return importlib.import_module("hyper_sd.tests.nodes.lora_world").small_lora(unet)


@pytest.fixture
def save(pack, loras):
    """Runs the node and returns the file's path."""

    def run(lora, name="my_style", licence_note=""):
        (saved,) = pack["HyperSDSaveLora"].execute(lora, name, licence_note).args
        return loras / saved

    return run


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def metadata(path: Path) -> dict:
    with safe_open(path, "pt") as file:
        return file.metadata()


def data_hash(path: Path) -> str:
    content = path.read_bytes()
    return f"0x{hashlib.sha256(content[8 + int.from_bytes(content[:8], 'little') :]).hexdigest()}"


def test_saved_file_is_listed_and_loads_through_the_hosts_loader(host, pack, save, loras, unet, whole):
    path = save(whole, "people/my_style")
    import folder_paths

    listed = str(path.relative_to(loras))
    assert listed in folder_paths.get_filename_list("loras")
    patched, _ = host.nodes.LoraLoader().load_lora(unet, None, listed, 1.0, 0.0)
    assert len(patched.patches) == len(whole) // 3
    assert len(host.nodes.LoraLoaderModelOnly().load_lora_model_only(unet, listed, 1.0)[0].patches) == len(whole) // 3


def test_saved_file_is_read_by_the_packs_own_loader(save, unet, whole):
    from hyper_sd.nodes.lora_files import add_lora, read_file

    path = save(whole)
    info, read = read_file(path, unet)
    _, found = add_lora(unet, path, read, 1.0)
    assert (info.rank, info.modules) == (2, len(whole) // 3)
    assert found.matched == found.modules == len(whole) // 3
    assert all(read[name].equal(tensor) for name, tensor in whole.items())


def test_metadata_holds_what_the_training_told_and_what_was_written(save, tensors):
    known = {"base": "sd15", "steps": "200", "settings": json.dumps({"rank": 2}), "hyper_sd_rank": "2 of 4"}
    path = save(TrainedLora(tensors, known), "people/my_style", "  my own drawings, CC BY 4.0\n")
    told = metadata(path)
    assert {key: told[key] for key in known} == known
    assert "hyper_sd_origin" not in told
    assert (told["hyper_sd_modules"], told["modelspec.title"]) == (str(len(tensors) // 3), "my_style")
    assert told["modelspec.license"] == "my own drawings, CC BY 4.0"
    assert told["modelspec.date"].startswith("20")
    assert told["modelspec.hash_sha256"] == data_hash(path)


def test_plain_dict_of_another_node_says_what_its_tensors_tell(save, tensors):
    told = metadata(save(dict(tensors)))
    assert (told["hyper_sd_origin"], told["hyper_sd_rank"], told["hyper_sd_modules"]) == (
        "trained by another node",
        "2",
        str(len(tensors) // 3),
    )
    assert "modelspec.license" not in told


def test_hash_depends_on_the_weights_alone(save, tensors):
    one, two = save(tensors), save(TrainedLora(tensors, {"base": "other"}), "b", "a note")
    assert metadata(one)["modelspec.hash_sha256"] == metadata(two)["modelspec.hash_sha256"]


def test_parameters_views_and_shared_memory_are_saved_by_value(save):
    with torch.inference_mode(False):
        weight = torch.nn.Parameter(torch.arange(12.0).view(3, 4))
        lora = {"diffusion_model.a.lora_up.weight": weight.t(), "diffusion_model.a.lora_down.weight": weight}
        lora["diffusion_model.b.diff"] = weight.detach().bfloat16()
    saved = load_file(save(lora))
    assert saved.keys() == lora.keys()
    assert all(saved[name].equal(tensor) and saved[name].dtype == tensor.dtype for name, tensor in lora.items())


def test_second_save_takes_the_next_number_and_leaves_the_first(save, loras, tensors):
    first = save(tensors)
    before = first.read_bytes()
    second = save(tensors)
    (loras / "my_style_00007_.safetensors").write_bytes(b"of somebody else")
    third = save(tensors, "my_style.safetensors")
    assert [path.name for path in (first, second, third)] == [f"my_style_{n:05}_.safetensors" for n in (1, 2, 8)]
    assert first.read_bytes() == before
    assert (loras / "my_style_00007_.safetensors").read_bytes() == b"of somebody else"


@pytest.mark.parametrize("links", [True, False])
def test_savers_at_once_get_a_file_each(monkeypatch, tmp_path, links):
    if not links:  # as on FAT

        def refuse(*paths):
            raise OSError(errno.EPERM, "not supported")

        monkeypatch.setattr(os, "link", refuse)
    contents = [bytes([number]) * 1000 for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda content: write_new(tmp_path, "a", content), contents))
    assert len(set(paths)) == len(contents)
    assert [path.read_bytes() for path in paths] == contents
    assert files(tmp_path) == sorted(path.name for path in paths)


def test_older_file_stays_and_nothing_is_left_when_the_disk_is_full_at_the_start(save, loras, tensors, monkeypatch):
    older = save(tensors).read_bytes()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10, 9, 1))
    with pytest.raises(TrainingError, match=r"too full.*make room.*queue again"):
        save(tensors)
    assert files(loras) == ["my_style_00001_.safetensors"]
    assert (loras / "my_style_00001_.safetensors").read_bytes() == older


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_older_file_stays_and_nothing_is_left_when_writing_fails(save, loras, tensors, monkeypatch, number):
    older = save(tensors).read_bytes()

    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(TrainingError, match="too full" if number == errno.ENOSPC else "cannot be written"):
        save(tensors)
    assert files(loras) == ["my_style_00001_.safetensors"]
    assert (loras / "my_style_00001_.safetensors").read_bytes() == older


def test_nothing_is_left_when_the_name_cannot_be_given(monkeypatch, tmp_path):
    def refuse(*paths):
        raise OSError(errno.EACCES, "denied")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(TrainingError, match="cannot be written"):
        write_new(tmp_path, "a", b"content")
    assert files(tmp_path) == []


def test_file_in_the_way_of_the_folder_is_named(save, loras, tensors):
    loras.mkdir()
    (loras / "people").write_text("a note", encoding="utf-8")
    with pytest.raises(TrainingError, match="people cannot be written"):
        save(tensors, "people/my_style")
    assert files(loras) == ["people"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_training_is_refused_by_the_tensors_name(save, loras, tensors, bad):
    name = next(iter(tensors))
    with pytest.raises(TrainingError, match=f"{name} has values that are not finite.*learning_rate"):
        save({**tensors, name: torch.full_like(tensors[name], bad)})
    assert not loras.exists()


def test_empty_lora_is_refused(save, loras):
    with pytest.raises(TrainingError, match="no tensors"):
        save({})
    assert not loras.exists()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "  ",
        "/",
        "/etc/passwd",
        "../up",
        "people/../../up",
        "a/..",
        "..",
        "a//b",
        "./a",
        "C:/Windows",
        "c:x",
        "\\\\server\\x",
        "a/",
    ],
)
def test_name_that_leaves_the_folder_is_refused_before_the_run(pack, save, tensors, tmp_path, name):
    assert "use one such as my_style" in pack["HyperSDSaveLora"].validate_inputs(name=name)
    with pytest.raises(TrainingError, match="below the loras folder"):
        save(tensors, name)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ('what? "this" <is>|it*', "what_ _this_ _is__it_"),
        ("people\\ada", "people/ada"),
        ("  spaced / out  ", "spaced/out"),
        ("dots...", "dots"),
        ("con/aux.txt/lpt1", "_con/_aux.txt/_lpt1"),
        (".hidden", "_.hidden"),
        ("new\nline\x00", "new_line_"),
        ("v1.5", "v1.5"),
        ("水彩 風格", "水彩 風格"),
        ("\ud800lone", "_lone"),
        ("画" * 200, "画" * 60),
        ("%s_{0}_$HOME", "%s_{0}_$HOME"),
        (" . . .", "_"),
    ],
)
def test_name_is_cleaned_of_what_windows_forbids(pack, save, loras, tensors, name, stem):
    assert pack["HyperSDSaveLora"].validate_inputs(name=name) is True
    assert save(tensors, name) == loras / f"{stem}_00001_.safetensors"
    assert files(loras) == [f"{stem}_00001_.safetensors"]


def test_name_from_another_node_is_checked_in_the_run(pack, save, loras, tensors):
    assert pack["HyperSDSaveLora"].validate_inputs(name=None) is True
    with pytest.raises(TrainingError, match="name must be"):
        save(tensors, "../up")
    assert files(loras) == []


def test_licence_note_of_any_text_stays_readable(save, tensors):
    note = 'quotes " and \\ and\nlines, 许可, \ud800, {"__metadata__": 1}'
    assert metadata(save(tensors, licence_note=note))["modelspec.license"] == note.replace("\ud800", "?")


def test_node_says_where_and_how_large(pack, loras, tensors):
    result = pack["HyperSDSaveLora"].execute(tensors, "my_style")
    path = loras / result.args[0]
    (text,) = result.ui.as_dict()["text"]
    assert text == f"Saved {path}, {format_bytes(path.stat().st_size)}"
