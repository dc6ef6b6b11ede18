"""The one-step loader in a running ComfyUI: a file that will not do stops its own part of a graph, and nothing else."""

import pytest
import torch
from hyper_sd.models.unet_file import PREFIX
from hyper_sd.tests.models import synthetic_loras
from hyper_sd.tests.models.synthetic_checkpoints import sd15, write_checkpoint
from hyper_sd.tests.models.synthetic_unets import unet, write
from hyper_sd.tests.nodes.model_world import until


def _truncated(path):
    write(path, unet("diffusers"), sparse=True)
    with path.open("r+b") as file:
        file.truncate(10**9)


BAD = {
    "empty": (lambda path: path.touch(), "no safetensors file"),
    "text": (lambda path: path.write_text("a text file that was renamed\n" * 20), "no safetensors file"),
    "pickle": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(300)), "pickled checkpoint"),
    "sd15": (lambda path: write_checkpoint(path, sd15()), "an SD1.5 UNet, not an SDXL UNet"),
    "lora": (lambda path: synthetic_loras.write_lora(path, "sdxl"), "a LoRA, not an SDXL UNet; add it to a model"),
    "truncated": (_truncated, "cut off"),
}


@pytest.fixture
def checkpoints(world):
    folder = world.base / "models" / "checkpoints"
    yield folder
    for path in folder.glob("given*"):
        path.unlink()


def _loader(name: str, dtype: str = "auto") -> dict:
    inputs = {"file": f"checkpoints/{name}", "dtype": dtype, "start_timestep": 800}
    return {"class_type": "HyperSDOneStepLoader", "inputs": inputs}


def _shown(node: str, slot: int) -> dict:
    return {"class_type": "PreviewAny", "inputs": {"source": [node, slot]}}


def _run(world, graph: dict) -> tuple[dict, dict]:
    """Queues a graph; returns the answer to it, and the run's record once it has ended."""
    status, answer = world.ask("/prompt", {"prompt": graph})
    assert status == 200, answer
    return answer, until(lambda: world.ask(f"/history/{answer['prompt_id']}")[1].get(answer["prompt_id"]))


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_will_not_do_is_named_and_the_rest_of_the_graph_runs(world, checkpoints, kind):
    make, message = BAD[kind]
    make(checkpoints / "given.safetensors")
    size = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1 + list(BAD).index(kind)}}
    graph = {"loader": _loader("given.safetensors"), "cfg": _shown("loader", 5), "size": size, "other": _shown("size", 0)}

    answer, record = _run(world, graph)

    errors = answer["node_errors"]["loader"]["errors"]
    assert message in errors[0]["details"]
    assert "given.safetensors" in errors[0]["details"]
    assert set(record["outputs"]) == {"other"}


def test_a_file_that_is_gone_names_the_way_to_get_it(world):
    status, answer = world.ask("/prompt", {"prompt": {"loader": _loader("gone.safetensors"), "cfg": _shown("loader", 5)}})
    assert status == 400
    assert "install.py download hyper-sdxl-1step-unet" in str(answer["node_errors"]["loader"])


def test_nodes_on_an_absent_clip_stop_alone(world, checkpoints):
    write(checkpoints / "given.safetensors", unet("original", prefix=PREFIX), torch.float8_e4m3fn, sparse=True)
    text = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["loader", 1], "text": "a cat"}}
    graph = {"loader": _loader("given.safetensors", "fp8_e4m3fn"), "cfg": _shown("loader", 5), "text": text}

    answer, record = _run(world, graph | {"states": _shown("text", 0)})

    assert answer["node_errors"] == {}
    assert record["outputs"] == {"cfg": {"text": ["1.0"]}}
    world.ask("/free", {"unload_models": True, "free_memory": True})
