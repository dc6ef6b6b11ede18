"""Which file is the one-step checkpoint, which is only a UNet, and building a full one from the tab's choices."""

import asyncio
import os
import sys
import threading
import types
from pathlib import Path

import pytest
import torch
from hyper_sd.errors import UnsupportedModelError
from hyper_sd.models import merge as merging
from hyper_sd.models.new_file import BuildError
from hyper_sd.models.one_step import STARTS_AT
from hyper_sd.models.sdxl_unet import UnetShape
from hyper_sd.models.unet_file import CLIP, PREFIX, VAE
from hyper_sd.tests.models.synthetic_unets import unet, write
from hyper_sd.webui_extension import checkpoint_builder, one_step
from hyper_sd.webui_extension.checkpoint_builder import SUGGESTED, CheckpointBuilder, file_name
from hyper_sd.webui_extension.one_step import (
    is_one_step_checkpoint,
    is_unet_only,
    kind_of,
    problem_of,
    start_timestep,
)
from safetensors.torch import save_file

TINY = UnetShape(channels=32, multipliers=(1, 2), depths=(0, 1), context=64, vector=96)
REST = [(f"{CLIP}0.a", (4,)), (f"{CLIP}1.a", (4,)), (f"{VAE}a", (4,))]
UNET, FULL = "Hyper-SDXL-1step-Unet.safetensors", "Hyper-SDXL-1step-Unet-Comfyui.fp16.safetensors"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Has SDXL be a small network of the same kind, and looks at builds often."""
    inspect = one_step.inspect_unet
    monkeypatch.setattr(one_step, "inspect_unet", lambda path: inspect(path, TINY))
    monkeypatch.setattr(checkpoint_builder, "merge", lambda *files, **options: merging.merge(*files, expected=TINY, **options))
    monkeypatch.setattr(checkpoint_builder, "POLL", 0.01)
    one_step._read.cache_clear()


def lone(path):
    path.parent.mkdir(exist_ok=True)
    return write(path, unet("diffusers", TINY), torch.float16)


def whole(path):
    path.parent.mkdir(exist_ok=True)
    return write(path, [*unet("original", TINY, PREFIX), *REST], torch.float16)


def test_lone_unet_is_told_from_a_full_checkpoint(tmp_path):
    assert is_unet_only(lone(tmp_path / UNET))
    assert not is_unet_only(whole(tmp_path / "sdxl.safetensors"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_pipe_and_folder_with_a_checkpoints_name_are_of_no_kind_and_not_on_offer(tmp_path):
    os.mkfifo(tmp_path / UNET)
    (tmp_path / FULL).mkdir()
    assert kind_of(tmp_path / UNET) == kind_of(tmp_path / FULL) == one_step.Kind()
    builder = CheckpointBuilder(lambda kind: [tmp_path])
    assert builder.unets() == builder.bases() == []


def test_released_files_are_one_step_under_their_names_and_a_browsers(tmp_path):
    for name in (FULL, FULL.lower(), "Hyper-SDXL-1step-Unet-Comfyui.fp16 (1).safetensors"):
        assert is_one_step_checkpoint(whole(tmp_path / name))
    assert start_timestep(lone(tmp_path / UNET)) == 800
    for name in ("sd_xl_base_1.0.safetensors", "sdxl_lightning_1step_unet_x0.safetensors", "my-hyper-sdxl-merge.safetensors"):
        assert not is_one_step_checkpoint(whole(tmp_path / name))


def test_name_alone_does_not_make_a_one_step_checkpoint(tmp_path):
    path = tmp_path / FULL
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, path)
    assert not is_one_step_checkpoint(path)
    path.write_bytes(b"broken")
    assert kind_of(path) == one_step.Kind()


@pytest.mark.parametrize("note", ["", "0", "1000", "-1", "800.0", "x" * 400])
def test_wrong_note_in_the_metadata_is_not_believed(tmp_path, note):
    path = tmp_path / "x.safetensors"
    save_file({PREFIX + t.original: torch.zeros(t.shape) for t in TINY.tensors()}, path, {STARTS_AT: note})
    assert kind_of(path) == one_step.Kind(is_sdxl=True)


def test_missing_file_and_folder_are_of_no_kind(tmp_path):
    assert not is_unet_only(tmp_path / "none.safetensors")
    assert not is_one_step_checkpoint(tmp_path)
    assert start_timestep(None) is None


def test_head_is_read_once_until_the_file_changes(tmp_path, monkeypatch):
    path, reads, inspect = whole(tmp_path / "x.safetensors"), [], one_step.inspect_unet
    monkeypatch.setattr(one_step, "inspect_unet", lambda path: reads.append(path) or inspect(path))
    assert [is_unet_only(path) for _ in range(3)] == [False] * 3
    assert len(reads) == 1
    lone(path)
    assert is_unet_only(path)
    assert len(reads) == 2


def test_problem_names_the_file_and_the_button(tmp_path):
    path = lone(tmp_path / UNET)
    assert problem_of(path).startswith(f"{UNET} is only a UNet")
    assert "Build checkpoint" in problem_of(path)
    assert problem_of(path, own_text_encoders=True) == ""
    assert problem_of(whole(tmp_path / "x.safetensors")) == problem_of(None) == ""


def test_run_with_a_lone_unet_is_stopped_and_others_go_on(tmp_path, monkeypatch):
    stopped, opts = [], types.SimpleNamespace()
    host = types.ModuleType("host")
    host.stop = lambda p, text: stopped.append(text)
    host.checkpoint_file = lambda model: model
    host.has_own_text_encoders = lambda: hasattr(opts, "forge_additional_modules")
    package = "hyper_sd.webui_extension"
    monkeypatch.setitem(sys.modules, f"{package}.host", host)
    monkeypatch.setattr(sys.modules[package], "host", host, raising=False)
    p = types.SimpleNamespace(sd_model=whole(tmp_path / FULL))
    one_step.refuse_unet_only(p)
    assert stopped == []
    p.sd_model = lone(tmp_path / UNET)
    one_step.refuse_unet_only(p)
    assert "is only a UNet" in stopped[0]
    opts.forge_additional_modules = ["clip_l.safetensors"]  # on Forge a lone UNet can be whole with these
    one_step.refuse_unet_only(p)
    assert len(stopped) == 1


@pytest.fixture
def builder(tmp_path):
    """A builder over a host's folders, which count how often they were listed anew."""
    lone(tmp_path / "diffusion_models" / UNET)
    lone(tmp_path / "diffusion_models" / "a-unet.safetensors")
    whole(tmp_path / "checkpoints" / "juggler.safetensors")
    whole(tmp_path / "checkpoints" / "sd_xl_base_1.0.safetensors")
    whole(tmp_path / "checkpoints" / FULL)
    (tmp_path / "checkpoints" / "x.ckpt").write_bytes(b"pickle")
    refreshed = []
    builder = CheckpointBuilder(lambda kind: [tmp_path / kind], lambda: refreshed.append(True))
    builder.refreshed = refreshed
    return builder


def said(builder):
    async def run():
        return [text async for text in builder.follow()]

    return asyncio.run(run())


def test_lists_offer_what_fits_with_the_likely_first(builder):
    assert builder.unets() == [UNET, "a-unet.safetensors"]
    assert builder.bases() == ["sd_xl_base_1.0.safetensors", "juggler.safetensors"]


def test_lists_offer_capital_endings_and_linked_folders_and_pass_over_dead_links(builder, tmp_path):
    folder = tmp_path / "diffusion_models"
    (tmp_path / "drive").mkdir()
    (folder / "a-unet.safetensors").rename(tmp_path / "drive" / "FAR.SAFETENSORS")
    try:
        (folder / "linked").symlink_to(tmp_path / "drive", target_is_directory=True)
        (folder / "dead.safetensors").symlink_to(tmp_path / "absent")
    except OSError:
        pytest.skip("this system permits no links")
    assert builder.unets() == [UNET, str(Path("linked", "FAR.SAFETENSORS"))]


def test_build_makes_a_full_one_step_checkpoint_and_lists_it(builder, tmp_path):
    builder.start(UNET, "juggler.safetensors", "mine")
    assert "mine.safetensors is built" in said(builder)[-1]
    target = tmp_path / "checkpoints" / "mine.safetensors"
    assert kind_of(target) == one_step.Kind(True, True, True, 800)
    assert builder.refreshed == [True]
    assert not builder.is_busy()


def test_other_unets_are_not_noted_as_one_step(builder, tmp_path):
    builder.start("a-unet.safetensors", "juggler.safetensors", "plain")
    said(builder)
    assert not is_one_step_checkpoint(tmp_path / "checkpoints" / "plain.safetensors")


@pytest.mark.parametrize("choice", ["", "None", "../x.safetensors", "x.ckpt", "/etc/passwd"])
def test_only_listed_files_are_taken(builder, choice):
    with pytest.raises(UnsupportedModelError, match="Choose the UNet from the list"):
        builder.start(choice, "juggler.safetensors", "mine")
    with pytest.raises(UnsupportedModelError, match="Choose the base checkpoint from the list"):
        builder.start(UNET, choice, "mine")


@pytest.mark.parametrize("name", ["", "  ", ".hidden", "../up", "a/b", "a\\b", "c:x", "a\x00b", "x" * 200, "_"])
def test_name_with_a_folder_or_what_no_system_keeps_is_refused(builder, name):
    with pytest.raises(BuildError, match="name may have letters"):
        builder.start(UNET, "juggler.safetensors", name)


def test_name_gets_its_ending_once():
    assert file_name(SUGGESTED) == f"{SUGGESTED}.safetensors"
    assert file_name(" мой чекпойнт (2).SAFETENSORS ") == "мой чекпойнт (2).safetensors"


def test_unknown_precision_is_refused(builder):
    with pytest.raises(BuildError, match="fp16, bf16, fp32"):
        builder.start(UNET, "juggler.safetensors", "mine", "int4")


def test_taken_name_is_told_and_kept(builder, tmp_path):
    before = (tmp_path / "checkpoints" / "juggler.safetensors").read_bytes()
    builder.start(UNET, "sd_xl_base_1.0.safetensors", "juggler")
    assert "is there already" in said(builder)[-1]
    assert (tmp_path / "checkpoints" / "juggler.safetensors").read_bytes() == before


def test_second_build_waits_its_turn_and_cancel_leaves_nothing(builder, tmp_path, monkeypatch):
    entered, go_on = threading.Event(), threading.Event()
    build = checkpoint_builder.merge

    def held(*files, progress, **options):
        entered.set()
        go_on.wait(10)
        return build(*files, progress=progress, **options)

    monkeypatch.setattr(checkpoint_builder, "merge", held)
    builder.start(UNET, "juggler.safetensors", "mine")
    entered.wait(10)
    with pytest.raises(BuildError, match="Another checkpoint is being built"):
        builder.start(UNET, "juggler.safetensors", "other")
    builder.cancel()
    go_on.set()
    assert said(builder)[-1] == "Stopped; nothing was kept."
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith("mine")]
    assert builder.refreshed == []


def test_surprise_leaves_the_host_usable(builder, monkeypatch):
    def surprise(*files, **options):
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr(checkpoint_builder, "merge", surprise)
    builder.start(UNET, "juggler.safetensors", "mine")
    assert "surprise" in said(builder)[-1]
    assert not builder.is_busy()
