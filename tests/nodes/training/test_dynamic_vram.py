"""Training a MODEL whose weights the host keeps off the card, as it does by default on NVIDIA's: on a copy loaded whole."""

import weakref

import pytest
import torch
from hyper_sd.errors import UnsupportedModelError
from hyper_sd.tests.nodes.training import dynamic_vram, small_sd15
from hyper_sd.tests.nodes.training.lora_runs import is_as_before, weights_of

OPTION = "--disable-dynamic-vram"


@pytest.fixture
def load(host, sd15_checkpoint, monkeypatch):
    """Loads a checkpoint with the host's loader; load(dynamic=False) gives the MODEL without dynamic VRAM."""
    import comfy.model_patcher
    import comfy.sd
    from hyper_sd.nodes.training import network

    if not hasattr(comfy.model_patcher, "ModelPatcherDynamic"):
        pytest.skip("this ComfyUI has no dynamic VRAM")
    dynamic_vram.install(monkeypatch)
    monkeypatch.setattr(network, "_precision", lambda device, computed: "fp32")

    def run(dynamic=True):
        options = {"load_device": dynamic_vram.CARD, "dtype": torch.float32}
        given = {"output_vae": False, "output_clip": False, "model_options": options, "disable_dynamic": not dynamic}
        model = comfy.sd.load_checkpoint_guess_config(str(sd15_checkpoint), **given)[0]
        assert model.is_dynamic() is dynamic
        return model

    return run


@pytest.fixture
def lora():
    """A LoRA for one layer of the checkpoint, under the host's names."""
    name, weights = "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q", torch.randn(2, 4, 320)
    named = {f"{name}.lora_down.weight": weights[0], f"{name}.lora_up.weight": weights[1].T.contiguous()}
    return {**named, f"{name}.alpha": torch.tensor(4.0)}


@pytest.fixture
def copies(monkeypatch):
    """The clones that trainings were given."""
    from hyper_sd.nodes.training import network

    seen, original = [], network.whole_clone

    def recorded(model):
        seen.append(original(model))
        return seen[-1]

    monkeypatch.setattr(network, "whole_clone", recorded)
    return seen


def with_patches(host, model, lora):
    """Returns a MODEL behind the host's nodes for LoRAs and for velocity prediction."""
    import comfy.sd

    return host.with_sampling(comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0], "v_prediction", True)


def test_lora_is_the_one_that_is_trained_without_dynamic_vram(host, load, lora, train_sd15):
    plain, dynamic = load(dynamic=False), load()
    expected = train_sd15(with_patches(host, plain, lora), "plain").lora
    trained = train_sd15(with_patches(host, dynamic, lora), "dynamic")
    found, bare = trained.lora, train_sd15(dynamic, "bare").lora
    assert found.keys() == expected.keys() == bare.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not all(torch.equal(bare[name], tensor) for name, tensor in expected.items())
    assert trained.model.is_dynamic()
    assert trained.model.model is dynamic.model


def test_model_is_as_before_and_its_copy_is_gone_after_training(host, load, lora, train_sd15, copies):
    import comfy.model_management

    model = with_patches(host, load(), lora)

    def image():
        texts = small_sd15.conditioning(1), small_sd15.conditioning(2)
        return host.ksampler(model, *texts, steps=2, image=host.latent(seed=3, size=8))

    drawn, before = image(), weights_of(model)
    patches, parts, revision = dict(model.patches), dict(model.object_patches), model.patches_uuid
    train_sd15(model, "a")
    copy = weakref.ref(copies.pop().model)
    assert copy() is None
    assert all(loaded.model is not None for loaded in comfy.model_management.current_loaded_models)
    assert is_as_before(model, before)
    assert (model.patches, model.object_patches, model.patches_uuid) == (patches, parts, revision)
    assert torch.equal(image(), drawn)


def test_copy_leaves_the_device_after_an_error(load, train_sd15, copies, monkeypatch):
    from hyper_sd.nodes.training import train_lora

    def fail(host, *arguments):
        host.load()
        assert host.patcher.loaded_size() > 0
        raise RuntimeError("out of memory")

    monkeypatch.setattr(train_lora, "train_lora", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        train_sd15(load(), "a")
    assert copies[0].loaded_size() == 0


def test_model_that_its_loader_cannot_load_again_is_refused_with_the_way_out(load, train_sd15):
    import comfy.cli_args

    model = load()
    model.cached_patcher_init = None  # as from a loader of another node pack
    with pytest.raises(UnsupportedModelError, match=f"use Load Checkpoint or .* or start ComfyUI with {OPTION}"):
        train_sd15(model, "a")
    assert OPTION in comfy.cli_args.parser.format_help()


def test_model_whose_file_is_gone_is_refused(load, train_sd15, tmp_path):
    model = load()
    function, (_, *rest), place = model.cached_patcher_init
    model.cached_patcher_init = (function, (str(tmp_path / "moved.safetensors"), *rest), place)
    with pytest.raises(UnsupportedModelError, match=r"it is gone \(.*moved\.safetensors"):
        train_sd15(model, "a")


def test_lora_that_is_built_into_the_layers_is_refused(load, lora, train_sd15):
    import comfy.sd

    model = comfy.sd.load_bypass_lora_for_models(load(), None, lora, 1.0, 0.0)[0]
    with pytest.raises(UnsupportedModelError, match=r"has built bypass_lora into the layers .* use Load LoRA"):
        train_sd15(model, "a")
