"""One prompt, seed, checkpoint and LoRA in ComfyUI and in this host: the same latents, to 1e-3."""

import os
from pathlib import Path

import pytest
from hyper_sd.tests.webui import tiny_checkpoint as tiny
from hyper_sd.tests.webui.webui_host import GUIDED_FROM_THE_START
from safetensors.torch import load_file

SCALE = 0.18215  # between ComfyUI's latents outside the sampler and the sampler's own
CHECKPOINT, LORA = "agreement.safetensors", "agreement_lora"


@pytest.fixture(scope="module")
def comfyui(tmp_path_factory):
    """A running ComfyUI with the checkpoint and the LoRA."""
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        pytest.skip("set COMFYUI_PATH to a ComfyUI folder, or run python install.py test --webui PATH")
    from hyper_sd.demo.base_directory import prepare
    from hyper_sd.demo.server import ComfyServer

    base = prepare(tmp_path_factory.mktemp("comfyui"))
    tiny.write_checkpoint(base / "models" / "checkpoints" / CHECKPOINT, tiny.WIDE)
    tiny.write_lora(base / "models" / "loras" / f"{LORA}.safetensors", tiny.WIDE, seed=31)
    with ComfyServer(Path(path), base, arguments=("--cpu", "--force-fp32", "--fp32-text-enc")) as running:
        yield running
    (base / "models" / "checkpoints" / CHECKPOINT).unlink()


@pytest.fixture(scope="module")
def both(comfyui, webui):
    """(ComfyUI, the WebUI) with the same files."""
    models, theirs = webui.data / "models", comfyui.base_directory / "models"
    ours = models / "Stable-diffusion" / CHECKPOINT
    os.link(theirs / "checkpoints" / CHECKPOINT, ours)
    os.link(theirs / "loras" / f"{LORA}.safetensors", models / "Lora" / f"{LORA}.safetensors")
    if webui.reads_yaml:
        vocabulary = comfyui.comfyui / "comfy" / "sd1_tokenizer"
        tiny.write_yaml(ours, tiny.WIDE, tiny.write_tokenizer(webui.data / "clip", tiny.WIDE, vocabulary))
    webui.ask("/sdapi/v1/refresh-checkpoints", {})
    webui.ask("/sdapi/v1/refresh-loras", {})
    yield comfyui, webui
    ours.unlink()


def _comfy_latents(server, *, steps, eta, cfg, strength, name):
    wires = {"model": ["lora", 0], "positive": ["text", 0], "negative": ["empty", 0], "latent_image": ["size", 0]}
    run = {**wires, "add_noise": True, "noise_seed": 7, "cfg": cfg, "sampler": ["sampler", 0], "sigmas": ["sigmas", 0]}
    grid = {"model": ["lora", 0], "steps": steps, "num_segments": 1, "denoise": 1.0}
    lora = {"model": ["model", 0], "lora_name": f"{LORA}.safetensors", "strength_model": strength}
    graph = {
        "model": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": CHECKPOINT}},
        "lora": {"class_type": "LoraLoaderModelOnly", "inputs": lora},
        "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": "red apple"}},
        "empty": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": ""}},
        "size": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "sigmas": {"class_type": "HyperSDScheduler", "inputs": grid},
        "sampler": {"class_type": "HyperSDSampler", "inputs": {"eta": eta, "num_segments": 1}},
        "sample": {"class_type": "SamplerCustom", "inputs": run},
        "save": {"class_type": "SaveLatent", "inputs": {"samples": ["sample", 0], "filename_prefix": name}},
    }
    server.run(graph)
    (file,) = (server.base_directory / "output").rglob(f"{name}*.latent")
    return load_file(file)["latent_tensor"] * SCALE


@pytest.mark.parametrize("strength", [0.0, 0.7])
@pytest.mark.parametrize(("steps", "cfg", "eta"), [(1, 1.0, 0.3), (4, 1.0, 0.0), (4, 1.0, 1.0), (4, 4.0, 0.3)])
def test_latents_equal_comfyuis(both, strength, steps, cfg, eta):
    comfyui, webui = both
    name = f"s{steps}_e{eta:g}_c{cfg:g}_l{strength:g}".replace(".", "-")
    expected = _comfy_latents(comfyui, steps=steps, eta=eta, cfg=cfg, strength=strength, name=name)
    settings = {"hyper_sd_default_eta": eta, "hyper_sd_noise": "as ComfyUI", **GUIDED_FROM_THE_START}
    settings["sd_model_checkpoint"] = CHECKPOINT
    tag = f" <lora:{LORA}:{strength}>" if strength else ""
    batch = webui.draw(prompt="red apple" + tag, seed=7, steps=steps, cfg_scale=cfg, override_settings=settings)
    worst = (batch.latents - expected).abs().max().item()
    assert worst <= 1e-3
