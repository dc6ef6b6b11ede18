"""A graph that trains, run by ComfyUI's own executor: the output for one step, made and not made, and what hangs on it."""

import numpy as np
import pytest
from hyper_sd.models.recognition import recognise
from hyper_sd.tests.nodes.model_world import until
from PIL import Image
from safetensors.torch import load_file, safe_open

SIZE = 64  # pixels of what it learns from
TRAIN = {
    "objective": "TSCD distillation", "preset": "Small", "steps": 2, "rank": 2, "learning_rate": 1e-4, "stages": "1",
    "batch_size": 1, "teacher_cfg": 1.0, "start_from": "none", "preview_every": 100, "gradient_checkpointing": "auto",
    "adversarial": "auto", "seed": 0,
}  # fmt: skip
SAMPLE = {"add_noise": True, "noise_seed": 1, "cfg": ["few", 3], "sampler": ["few", 1], "sigmas": ["few", 2]}


def _node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def _training(name: str, one_step: str) -> dict:
    """Returns a graph that trains the embedded model on one plain picture and saves both LoRAs."""
    wires = {"model": ["model", 0], "latents": ["latent", 0], "positive": ["text", 0], "negative": ["text", 0]}
    return {
        "model": _node("HyperSDDemoModel"),
        "picture": _node("EmptyImage", width=SIZE, height=SIZE, batch_size=1, color=0xFF0000),
        "latent": _node("VAEEncode", pixels=["picture", 0], vae=["model", 2]),
        "text": _node("CLIPTextEncode", clip=["model", 1], text="red apple"),
        "train": _node("HyperSDTrainLora", **wires, **TRAIN, name=name, one_step=one_step),
        "few": _node("HyperSDSaveLora", lora=["train", 1], name=name),
        "one": _node("HyperSDSaveLora", lora=["train", 5], name=f"{name}_once"),
        "steps": _node("PreviewAny", source=["train", 3]),
        "told": _node("PreviewAny", source=["one", 0]),
    }


def _drawing(lora_name: str) -> dict:
    """Returns a graph that draws with a LoRA at one step, by what the node Hyper-SD chooses for its file."""
    settings = {"steps": 1, "variant": "auto", "strength": 0.0, "lora_name": lora_name, "start_timestep": 0}
    wires = {"model": ["few", 0], "positive": ["text", 0], "negative": ["text", 0], "latent_image": ["size", 0]}
    return {
        "model": _node("HyperSDDemoModel"),
        "few": _node("HyperSDLoraLoader", model=["model", 0], **settings),
        "chosen": _node("PreviewAny", source=["few", 4]),
        "text": _node("CLIPTextEncode", clip=["model", 1], text="red apple"),
        "size": _node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "sample": _node("SamplerCustom", **wires, **SAMPLE),
        "decode": _node("VAEDecode", samples=["sample", 0], vae=["model", 2]),
        "save": _node("SaveImage", images=["decode", 0], filename_prefix="one_step"),
    }


def _record(world, graph: dict) -> dict:
    """Queues a graph and returns the run's record once it has ended."""
    prompt_id = world.server.queue(graph)
    return until(lambda: world.server.get(f"/history/{prompt_id}").get(prompt_id))


@pytest.fixture(scope="module")
def made(world, demo):
    """(outputs, the training's own folder) of a run that makes a LoRA for one step."""
    outputs = _record(world, _training("graph", "on"))["outputs"]
    (folder,) = (world.base / "output" / "hyper_sd_training").glob("graph-*")
    return outputs, folder


def test_graph_with_one_step_runs_to_its_end_and_writes_both_loras(world, made):
    outputs, folder = made
    assert outputs["steps"] == {"text": ["2"]}
    few, once = world.loras / "graph_00001_.safetensors", world.loras / "graph_once_00001_.safetensors"
    assert outputs["told"] == {"text": [once.name]}
    tensors, kept = load_file(once), load_file(folder / "one-step.safetensors")
    assert tensors.keys() == kept.keys() == load_file(few).keys()
    assert all((tensors[name] == kept[name]).all() for name in kept)
    assert any((tensors[name] != tensor).any() for name, tensor in load_file(few).items())
    for path in (once, folder / "one-step.safetensors"):
        with safe_open(path, framework="pt") as file:
            assert file.metadata()["hyper_sd_start_timestep"] == "800"
    found = recognise(once)
    assert (found.variant, found.steps, found.start_timestep) == ("n-step", 1, 800)


def test_lora_for_one_step_of_a_graph_loads_whole_and_starts_where_it_was_trained(world, made):
    outputs = _record(world, _drawing("graph_once_00001_.safetensors"))["outputs"]
    (text,) = outputs["chosen"]["text"]
    assert "800" in text
    assert "graph_once_00001_" in text
    (entry,) = outputs["save"]["images"]
    assert np.asarray(Image.open(world.base / "output" / entry["filename"])).std() > 5


def test_only_what_hangs_on_the_output_stops_where_no_lora_for_one_step_was_made(world, demo):
    record = _record(world, _training("plain", "off"))
    assert record["status"]["status_str"] == "success"
    assert record["outputs"].keys() >= {"train", "few", "steps"}
    assert not record["outputs"].keys() & {"one", "told"}
    assert (world.loras / "plain_00001_.safetensors").is_file()
    assert not list(world.loras.glob("plain_once*"))
    (folder,) = (world.base / "output" / "hyper_sd_training").glob("plain-*")
    assert sorted(path.name for path in folder.glob("*.safetensors")) == ["1-segment.safetensors"]
    assert world.server.get("/queue") == {"queue_running": [], "queue_pending": []}
