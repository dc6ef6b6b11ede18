"""The node HyperSDModelDownload in queued graphs of a running ComfyUI, and what decides whether it runs again."""

import io
import threading

import numpy as np
import pytest
from hyper_sd.demo.errors import WorkflowError
from hyper_sd.models.progress import Progress, State
from hyper_sd.tests.nodes.model_world import CANCEL, START, lora, until, weights
from PIL import Image


def _download(model: str, *, accept_licence: bool = False, **more) -> dict:
    """Returns a graph whose node "get" has a file there, and whose node "show" shows its name."""
    inputs = {"model": model, "accept_licence": accept_licence}
    return {
        "get": {"class_type": "HyperSDModelDownload", "inputs": inputs},
        "show": {"class_type": "PreviewAny", "inputs": {"source": ["get", 0]}},
        **more,
    }


def _painting(lora: dict, last: list) -> dict:
    """Returns a graph that paints one step with the model `last`, which the nodes of `lora` make of the demo's."""
    wires = {"model": last, "positive": ["prompt", 0], "negative": ["prompt", 0], "latent_image": ["size", 0]}
    sampling = {"seed": 3, "steps": 1, "cfg": 1.0, "sampler_name": "hyper_sd_tcd", "scheduler": "hyper_sd", "denoise": 1.0}
    return {
        "model": {"class_type": "HyperSDDemoModel", "inputs": {}},
        **lora,
        "prompt": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": "red apple"}},
        "size": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "sample": {"class_type": "KSampler", "inputs": wires | sampling},
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["model", 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "download"}},
    }


def _pixels(world, graph: dict) -> np.ndarray:
    (entry,) = world.server.run(graph)["save"]["images"]
    return np.array(Image.open(io.BytesIO(world.server.image(entry))))


def _gets(world, name: str) -> list:
    return [request for request in world.hub.requests if name in request.path and request.method == "GET"]


def test_downloaded_lora_gives_the_pixels_of_the_packs_own(world):
    world.offer("painting-lora", lora(1))
    load = {"model": ["model", 0], "lora_name": ["get", 0], "strength_model": 1.0}
    get = {"class_type": "HyperSDModelDownload", "inputs": {"model": "painting-lora", "accept_licence": False}}
    fetched = _painting({"get": get, "load": {"class_type": "LoraLoaderModelOnly", "inputs": load}}, ["load", 0])
    own = {"class_type": "HyperSDDemoModel", "inputs": {"hyper_sd_lora": "unified, 1 to 8 steps"}}
    pixels = _pixels(world, fetched)
    assert np.array_equal(pixels, _pixels(world, _painting({"own": own}, ["own", 0])))
    assert not np.array_equal(pixels, _pixels(world, _painting({}, ["model", 0])))


@pytest.mark.parametrize(
    ("kind", "loader", "inputs"),
    [
        ("checkpoint", "CheckpointLoaderSimple", {"ckpt_name": ["get", 0]}),
        ("unet", "UNETLoader", {"unet_name": ["get", 0], "weight_dtype": "default"}),
    ],
)
def test_other_loaders_take_the_name_and_find_the_file(world, kind, loader, inputs):
    name = world.offer(f"for-{kind}", weights(3000, 1020), kind=kind)
    graph = _download(f"for-{kind}", load={"class_type": loader, "inputs": inputs})
    graph["use"] = {"class_type": "PreviewAny", "inputs": {"source": ["load", 0]}}
    with pytest.raises(WorkflowError, match="Could not detect model type") as failure:  # it holds noise
        world.server.run(graph)
    assert failure.value.node_type == loader
    assert name in failure.value.message


def test_progress_is_shown_while_the_file_comes(world):
    name = world.offer("progress-lora", weights(8_000_000, 101))
    world.slow(name, 4_000_000)
    seen = []
    world.server.run(_download("progress-lora"), lambda done, total, node: seen.append((done, total, node)))
    done = [count for count, total, node in seen if node == "get" and total > 8_000_000]
    assert done == sorted(done)
    assert len(set(done)) > 3


def test_interrupt_stops_the_download_and_the_next_run_goes_on(world):
    name = world.offer("interrupted-lora", weights(8_000_000, 102))
    world.slow(name, 2_000_000)
    pressed = threading.Event()

    def press(done, total, node):
        if node == "get" and done > 0 and not pressed.is_set():
            pressed.set()
            world.server.interrupt()

    with pytest.raises(WorkflowError, match="interrupted"):
        world.server.run(_download("interrupted-lora"), press)
    partial = world.row("interrupted-lora")
    assert partial["state"] == "partial"
    assert 0 < partial["bytes_done"] < 8_000_000
    assert world.server.run(_download("interrupted-lora"))["show"]["text"] == [name]
    assert [request.range for request in _gets(world, name)] == [None, f"bytes={partial['bytes_done']}-"]


def test_file_that_is_there_is_used_without_asking_the_hub(world):
    content = weights(3000, 103)
    name = world.offer("present-lora", content)
    folder = world.loras / "own folder"
    folder.mkdir()
    (folder / name).write_bytes(content)
    assert world.server.run(_download("present-lora"))["show"]["text"] == [f"own folder/{name}"]
    assert not [request for request in world.hub.requests if name in request.path]


def test_deleted_file_is_fetched_again_by_the_same_graph(world):
    name = world.offer("deleted-lora", weights(3000, 104))
    graph = _download("deleted-lora")
    for times in (1, 2):
        world.server.run(graph)
        assert (world.loras / name).is_file()
        assert len(_gets(world, name)) == times
        (world.loras / name).unlink()


def test_download_of_the_page_is_joined(world):
    name = world.offer("joined-lora", weights(4_000_000, 105))
    world.slow(name, 2_000_000)
    world.ask(START, {"id": "joined-lora"})
    until(lambda: _gets(world, name))
    assert world.server.run(_download("joined-lora"))["show"]["text"] == [name]
    assert len(_gets(world, name)) == 1


def test_interrupted_run_leaves_the_pages_download_alone(world):
    name = world.offer("kept-lora", weights(6_000_000, 106))
    world.slow(name, 2_000_000)
    world.ask(START, {"id": "kept-lora"})
    until(lambda: world.row("kept-lora")["bytes_done"] > 0)
    with pytest.raises(WorkflowError, match="interrupted"):
        world.server.run(_download("kept-lora"), lambda done, total, node: world.server.interrupt())
    assert world.when("kept-lora", "ready")["file"] == name
    assert len(_gets(world, name)) == 1


def test_download_stopped_by_the_page_fails_the_run_with_a_sentence(world):
    name = world.offer("stopped-lora", weights(8_000_000, 107))
    world.slow(name, 1_000_000)
    with pytest.raises(WorkflowError, match=r"was stopped; run again") as failure:
        world.server.run(_download("stopped-lora"), lambda *_: world.ask(CANCEL, {"id": "stopped-lora"}))
    assert failure.value.node_type == "HyperSDModelDownload"


def test_licence_is_asked_for_only_where_something_is_downloaded(world):
    name = world.offer("strict-node-lora", weights(3000, 108), family="flux", licence="strict")
    with pytest.raises(WorkflowError, match=r"https://huggingface.co/tests/strict and accept it"):
        world.server.run(_download("strict-node-lora"))
    assert not (world.loras / name).exists()
    assert world.server.run(_download("strict-node-lora", accept_licence=True))["show"]["text"] == [name]
    assert world.server.run(_download("strict-node-lora"))["show"]["text"] == [name]


def test_file_the_hub_does_not_have_fails_the_run_with_the_remedy(world):
    world.offer("hub-has-it", weights(3000, 109))
    world.offer("gone-lora", weights(3000, 1010), on_hub=False, sha256="0" * 64)
    with pytest.raises(WorkflowError, match=r"status 404.*moved or removed"):
        world.server.run(_download("gone-lora"))


def test_unknown_id_fails_the_run_and_names_near_ones(world):
    with pytest.raises(WorkflowError, match="did you mean hyper-sdxl-4steps-lora"):
        world.server.run(_download("hyper-sdxl-4step-lora"))


@pytest.fixture
def node(pack, tmp_path, monkeypatch):
    """(the node over one small entry, the path of that entry's file)"""
    import json

    from hyper_sd.models.jobs import Downloads
    from hyper_sd.nodes import model_downloads

    entry = {"id": "small", "family": "sd15", "kind": "unified", "steps": 1, "repo": "a/b", "file": "small.safetensors"}
    (tmp_path / "catalog.json").write_text(json.dumps({"entries": [entry]}), encoding="utf-8")
    (tmp_path / "loras").mkdir()
    downloads = Downloads(lambda kind: [tmp_path / kind], tmp_path / "catalog.json")
    monkeypatch.setattr(model_downloads, "DOWNLOADS", downloads)
    return pack["HyperSDModelDownload"], tmp_path / "loras" / "small.safetensors"


def test_fingerprint_changes_only_when_the_file_is_missing_or_moved(node):
    download, path = node
    missing = download.fingerprint_inputs("small", False)
    path.write_bytes(weights(100))
    there = [download.fingerprint_inputs("small", accepted) for accepted in (False, True)]
    assert there == [missing, missing]  # what ran when it was missing is not run again for its having come
    moved = path.parent / "sub" / path.name
    moved.parent.mkdir()
    path.rename(moved)
    elsewhere = download.fingerprint_inputs("small", False)
    moved.unlink()
    deleted = download.fingerprint_inputs("small", False)
    path.write_bytes(weights(100))
    assert len({missing, elsewhere, deleted}) == 3
    assert download.fingerprint_inputs("small", False) == deleted


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"rate": 1.1e7, "eta_seconds": 14.2}, "downloading, 120 MB of 269 MB, 11 MB/s, 14 s left"),
        ({"eta_seconds": 200.0}, "downloading, 120 MB of 269 MB, 3 min 20 s left"),
        ({"note": "waiting for its turn"}, "downloading, 120 MB of 269 MB; waiting for its turn"),
    ],
)
def test_progress_text_says_what_is_known(pack, changes, text):
    from hyper_sd.nodes.model_downloads import progress_text

    assert progress_text(Progress(State.DOWNLOADING, 120_000_000, 269_000_000, **changes)) == text


def test_newer_folder_of_diffusion_models_comes_first(pack):
    from hyper_sd.nodes.model_downloads import model_folders

    assert [folder.name for folder in model_folders("diffusion_models")] == ["diffusion_models", "unet"]
