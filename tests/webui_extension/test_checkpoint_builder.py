"""A LoRA baked into a checkpoint from the tab's choices."""

import asyncio
import threading

import pytest
from hyper_sd.errors import UnsupportedModelError
from hyper_sd.models.header import read_header
from hyper_sd.models.new_file import BuildError
from hyper_sd.tests.models import bake_world as world
from hyper_sd.webui_extension import checkpoint_builder
from hyper_sd.webui_extension.checkpoint_builder import BAKE_DTYPES, CheckpointBuilder
from safetensors.torch import load_file

BASE, LORA = "base.safetensors", "style.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A host's folders with an SD1.5 checkpoint, a LoRA for it and one for SDXL."""
    folder = tmp_path_factory.mktemp("host")
    world.write_base(folder / "checkpoints" / BASE, "sd15")
    world.write_lora(folder / "loras" / LORA, world.layers("sd15"))
    world.write_lora(folder / "loras" / "xl" / "other.safetensors", world.layers("sdxl"))
    return folder


@pytest.fixture
def builder(folder, monkeypatch):
    monkeypatch.setattr(checkpoint_builder, "POLL", 0.01)
    refreshed = []
    builder = CheckpointBuilder(lambda kind: [folder / kind], lambda: refreshed.append(True))
    builder.refreshed = refreshed
    yield builder
    for path in (folder / "checkpoints").iterdir():
        if path.name != BASE:
            path.unlink()


def said(builder):
    async def run():
        return [text async for text in builder.follow()]

    return asyncio.run(run())


def test_lists_offer_every_checkpoint_and_lora(builder):
    assert builder.checkpoints() == [BASE]
    assert [name.replace("\\", "/") for name in builder.loras()] == [LORA, "xl/other.safetensors"]


def test_bake_makes_a_checkpoint_lists_it_and_says_how_much_of_the_lora_is_in_it(builder, folder):
    builder.bake(BASE, LORA, "0.75", "0.5", "")
    texts = said(builder)
    count = len(world.layers("sd15"))
    assert texts[-1].startswith("base-style.safetensors is built. Refresh the list")
    assert texts[-1].endswith(f"{count} of {count} modules matched.")
    path = folder / "checkpoints" / "base-style.safetensors"
    metadata = read_header(path)["__metadata__"]
    assert (metadata["hyper_sd.strength"], metadata["hyper_sd.text_strength"]) == ("0.75", "0.5")
    assert builder.refreshed == [True]


def test_precision_is_the_checkpoints_unless_another_is_chosen(builder, folder):
    for name, dtype in BAKE_DTYPES.items():
        builder.bake(BASE, LORA, "1", "1", f"new {name}", name)
        assert "is built" in said(builder)[-1]
        held = load_file(folder / "checkpoints" / f"new {name}.safetensors")
        assert next(t.dtype for key, t in held.items() if key.startswith(world.UNET)) == (dtype or BAKE_DTYPES["fp16"])


def test_what_the_page_may_not_send_is_refused(builder):
    for choices, what in (((LORA, LORA), "checkpoint"), ((BASE, BASE), "LoRA"), ((BASE, "../" + LORA), "LoRA")):
        with pytest.raises(UnsupportedModelError, match=f"Choose the {what} from the list"):
            builder.bake(*choices, "1", "1", "new")
    with pytest.raises(BuildError, match="A strength must be a number, got 'much'"):
        builder.bake(BASE, LORA, "much", "1", "new")
    with pytest.raises(BuildError, match="The precision must be one of as in the checkpoint, fp16"):
        builder.bake(BASE, LORA, "1", "1", "new", "int4")
    with pytest.raises(BuildError, match="name may have letters"):
        builder.bake(BASE, LORA, "1", "1", "../new")


def test_refusals_of_the_bake_are_told_in_the_tab(builder, folder):
    other = next(name for name in builder.loras() if name != LORA)
    builder.bake(BASE, other, "1", "1", "new")
    assert said(builder)[-1].startswith("other.safetensors is a LoRA for SDXL, the model is SD1.5")
    builder.bake(BASE, LORA, "nan", "1", "new")
    assert "must be a finite number" in said(builder)[-1]
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [BASE]


def test_one_build_at_a_time_and_cancel_leaves_nothing(builder, folder, monkeypatch):
    entered, go_on, bake = threading.Event(), threading.Event(), checkpoint_builder.bake

    def held(*files, progress, **options):
        entered.set()
        go_on.wait(10)
        return bake(*files, progress=progress, **options)

    monkeypatch.setattr(checkpoint_builder, "bake", held)
    builder.bake(BASE, LORA, "1", "1", "new")
    entered.wait(10)
    with pytest.raises(BuildError, match="Another checkpoint is being built"):
        builder.bake(BASE, LORA, "1", "1", "second")
    builder.cancel()
    go_on.set()
    assert said(builder)[-1] == "Stopped; nothing was kept."
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [BASE]
