"""A full checkpoint from a lone UNet and a base: what stands in it, and what it refuses."""

import itertools
import json
import weakref
from collections import namedtuple

import filelock
import pytest
import torch
from hyper_sd import disk
from hyper_sd.errors import UnsupportedModelError
from hyper_sd.models import casting, new_file
from hyper_sd.models.header import read_header
from hyper_sd.models.inside import few_step_note, few_steps_inside
from hyper_sd.models.merge import PARTS, merge
from hyper_sd.models.new_file import CHECKING, WRITING, BuildError
from hyper_sd.models.recognition import Recognition
from hyper_sd.models.sdxl_unet import UnetShape
from hyper_sd.models.unet_file import CLIP, PREFIX, VAE, inspect_unet
from hyper_sd.tests.models.synthetic_unets import unet, write
from safetensors import safe_open
from safetensors.torch import load_file, save_file

TINY = UnetShape(channels=32, multipliers=(1, 2), depths=(0, 1), context=64, vector=96)
IDS = f"{CLIP}0.transformer.text_model.embeddings.position_ids"
REST = [
    (f"{CLIP}0.transformer.text_model.final_layer_norm.weight", (64,)),
    (IDS, (1, 77)),
    (f"{CLIP}1.model.ln_final.weight", (64,)),
    (f"{CLIP}1.model.logit_scale", ()),
    (f"{VAE}decoder.conv_in.weight", (8, 4, 3, 3)),
]
Usage = namedtuple("Usage", "total used free")


def write_base(path, without=()):
    """A base with half the bytes of the UNet's dtype, and a key that tells its UNet apart."""
    rest = [(name, shape) for name, shape in REST if not name.startswith(tuple(without))]
    return write(path, [*unet("original", TINY, PREFIX), *rest, ("v_pred", ())], torch.bfloat16)


@pytest.fixture
def base(tmp_path):
    return write_base(tmp_path / "base.safetensors")


@pytest.fixture
def lone(tmp_path):
    return write(tmp_path / "one-step.safetensors", unet("diffusers", TINY))


@pytest.fixture
def target(tmp_path):
    return tmp_path / "out" / "new.safetensors"


def build(base, lone, target, **options):
    return merge(base, lone, target, **{"expected": TINY, **options})


def test_merge_has_the_new_unet_and_the_bases_text_encoders_and_vae(base, lone, target):
    assert build(base, lone, target) == target
    built, source, donor = load_file(target), load_file(lone), load_file(base)
    expected = {PREFIX + tensor.original: source[tensor.diffusers].half() for tensor in TINY.tensors()}
    expected |= {name: donor[name] if name == IDS else donor[name].half() for name, _ in REST}
    assert built.keys() == expected.keys()
    assert all(torch.equal(built[name], tensor) and built[name].dtype == tensor.dtype for name, tensor in expected.items())
    assert [path.name for path in target.parent.iterdir()] == ["new.safetensors"]


@pytest.mark.parametrize("layout", ["diffusers", "original"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_both_layouts_give_a_full_checkpoint_of_the_asked_dtype(base, target, tmp_path, layout, dtype):
    lone = write(tmp_path / "lone.safetensors", unet(layout, TINY, PREFIX if layout == "original" else ""))
    info = inspect_unet(build(base, lone, target, dtype=dtype), TINY)
    assert (info.format, info.has_clip, info.has_vae, info.dtype) == ("original", True, True, dtype)


def test_metadata_names_both_sources_and_where_one_step_starts(base, lone, target):
    lone = lone.rename(lone.with_name("Hyper-SDXL-1step-Unet.safetensors"))
    build(base, lone, target)
    with safe_open(target, "pt") as file:
        metadata = file.metadata()
    assert metadata == {
        "format": "pt",
        "hyper_sd.unet": "Hyper-SDXL-1step-Unet.safetensors",
        "hyper_sd.base": "base.safetensors",
        "hyper_sd.start_timestep": "800",
    }


def test_what_the_unet_has_inside_is_still_known(base, lone, target, tmp_path):
    lone = lone.rename(lone.with_name("nitrosd-realism_unet.safetensors"))
    build(base, lone, target)
    inside = few_steps_inside(target, "sdxl")
    assert inside.known.recipe.name == "nitrosd-realism"
    assert str(inside) == (
        "new.safetensors has NitroSD-Realism inside by the name of its UNet, nitrosd-realism_unet.safetensors, alone"
    )
    noted = tmp_path / "baked_unet.safetensors"
    save_file(load_file(lone), noted, few_step_note(Recognition("mine.safetensors", "metadata", "n-step", 4), 1.0))
    build(base, noted, target.with_name("second.safetensors"))
    assert few_steps_inside(target.with_name("second.safetensors"), "sdxl").known.steps == 4


def test_every_tensor_is_aligned_for_mapping(base, lone, target):
    header = read_header(build(base, lone, target))
    first = target.stat().st_size - max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    widths = {"I64": 8, "F16": 2}
    header.pop("__metadata__")
    assert all((first + entry["data_offsets"][0]) % widths[entry["dtype"]] == 0 for entry in header.values())


def test_progress_reaches_the_end_of_writing_and_of_checking(base, lone, target):
    seen = []
    build(base, lone, target, progress=lambda *step: seen.append(step))
    for stage in (WRITING, CHECKING):
        steps = [step[1:] for step in seen if step[0] == stage]
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1]
        assert len(steps) > 10
    assert [stage for stage, _ in itertools.groupby(seen, lambda step: step[0])] == [WRITING, CHECKING]


def test_cancel_leaves_nothing_and_passes_on_what_was_raised(base, lone, target):
    def stop(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(base, lone, target, progress=stop)
    assert list(target.parent.iterdir()) == []
    assert build(base, lone, target) == target


def test_file_of_that_name_is_never_overwritten(base, lone, target):
    target.parent.mkdir()
    target.write_bytes(b"mine")
    with pytest.raises(BuildError, match="choose another name"):
        build(base, lone, target)
    assert target.read_bytes() == b"mine"


def test_file_that_appears_meanwhile_is_not_overwritten(base, lone, target):
    with pytest.raises(BuildError, match="there already"):
        build(base, lone, target, progress=lambda *_: target.write_bytes(b"mine"))
    assert {path.name: path.read_bytes() for path in target.parent.iterdir()} == {"new.safetensors": b"mine"}


def test_name_that_no_host_would_list_is_refused(base, lone, target):
    with pytest.raises(BuildError, match=r"must end in \.safetensors"):
        build(base, lone, target.with_suffix(".ckpt"))


def test_second_build_of_the_same_file_is_told_to_wait(base, lone, target):
    target.parent.mkdir()
    with filelock.FileLock(f"{target}.lock"), pytest.raises(BuildError, match="being built already"):
        build(base, lone, target)


def test_full_disk_is_seen_before_a_byte_is_written(base, lone, target, monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 1000))
    with pytest.raises(BuildError, match=r"new\.safetensors was not built: .* too full: 1 kB are free, .* are needed"):
        build(base, lone, target)
    assert list(target.parent.iterdir()) == []


def test_full_checkpoint_as_unet_is_told_to_be_used_as_it_is(base, target):
    with pytest.raises(UnsupportedModelError, match="full checkpoint already"):
        build(base, base, target)


def test_lone_unet_as_base_is_refused_with_what_it_lacks(lone, target):
    with pytest.raises(UnsupportedModelError, match="no CLIP-L text encoder and no OpenCLIP-bigG text encoder and no VAE"):
        build(lone, lone, target)


@pytest.mark.parametrize(("prefix", "part"), list(PARTS.items()))
def test_base_without_a_part_is_refused_by_its_name(lone, target, tmp_path, prefix, part):
    with pytest.raises(UnsupportedModelError, match=f"has no {part}; as the base choose"):
        build(write_base(tmp_path / "poor.safetensors", [prefix]), lone, target)
    assert not target.parent.exists()


def test_other_kinds_of_files_are_named(base, target, tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, path)
    with pytest.raises(UnsupportedModelError, match="is a LoRA"):
        build(base, path, target)
    with pytest.raises(UnsupportedModelError, match="is a LoRA"):
        build(path, path, target)


def test_values_that_the_dtype_cannot_hold_stop_the_merge_and_leave_nothing(base, target, tmp_path):
    tensors = {tensor.diffusers: torch.zeros(tensor.shape) for tensor in TINY.tensors()}
    tensors["conv_out.bias"][0] = 1e5
    save_file(tensors, tmp_path / "large.safetensors")
    with pytest.raises(UnsupportedModelError, match="choose fp32 or bf16"):
        build(base, tmp_path / "large.safetensors", target)
    assert list(target.parent.iterdir()) == []
    build(base, tmp_path / "large.safetensors", target, dtype=torch.float32)


def test_base_that_shrinks_while_it_is_read_gives_no_file(base, lone, target):
    def truncate(stage, done, total):
        with base.open("r+b") as file:
            file.truncate(100)

    with pytest.raises(UnsupportedModelError, match="changed while it was read"):
        build(base, lone, target, progress=truncate)
    assert list(target.parent.iterdir()) == []


def test_damaged_head_of_the_base_is_told(base, lone, target):
    content = base.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header[f"{CLIP}1.model.ln_final.weight"]["shape"] = [65]
    text = json.dumps(header).encode()
    base.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(UnsupportedModelError, match="not as long as its shape and dtype say"):
        build(base, lone, target)


def test_only_one_tensor_is_held_at_a_time(base, lone, target, monkeypatch):
    held, most = weakref.WeakSet(), 0

    def counted(*arguments):
        nonlocal most
        tensor = read(*arguments)
        held.add(tensor)
        most = max(most, len(held))
        return tensor

    read = casting.read_as
    monkeypatch.setattr(new_file, "read_as", counted)
    build(base, lone, target)
    assert most == 1


def test_folder_that_cannot_be_written_is_told(base, lone, target, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(13, "refused")

    monkeypatch.setattr(new_file.filelock, "FileLock", refuse)
    with pytest.raises(BuildError, match="check the folder and its permissions"):
        build(base, lone, target)


def test_every_stop_on_the_way_leaves_no_file(base, lone, target):
    for stop_at in (1, 7, 40):
        calls = itertools.count(1)

        def stop(stage, done, total, calls=calls, stop_at=stop_at):
            if next(calls) == stop_at:
                raise InterruptedError("stopped")

        with pytest.raises(InterruptedError):
            build(base, lone, target, progress=stop)
        assert list(target.parent.iterdir()) == []
