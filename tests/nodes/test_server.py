"""The pack in a running ComfyUI, over HTTP, as a page or a script uses it."""

import io
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT, PAGES = ROOT / "demo" / "model" / "hyper_sd_demo.safetensors", ROOT / "web" / "docs"
DOCS = "/extensions/hyper-sd/docs"
KSAMPLER = {"sampler_name": "hyper_sd_tcd", "scheduler": "hyper_sd", "denoise": 1.0}


@pytest.fixture(scope="module")
def server(comfyui_path, tmp_path_factory):
    """A ComfyUI of its own with this pack linked into custom_nodes."""
    pytest.importorskip("aiohttp", reason="ComfyUI's own requirement")
    from hyper_sd.demo.base_directory import prepare
    from hyper_sd.demo.server import ComfyServer

    with ComfyServer(comfyui_path, prepare(tmp_path_factory.mktemp("comfyui")), arguments=("--cpu",)) as running:
        yield running


@pytest.fixture(scope="module")
def checkpoint():
    """Skips where the embedded model's weights are missing."""
    if not CHECKPOINT.is_file():
        pytest.skip("the embedded model's weights are not in demo/model")


_names = iter(f"test_{i}" for i in range(10**6))


def _graph(sampling: dict) -> dict:
    """Returns an API workflow around `sampling`, which holds the node "sample"; every graph saves under a new name."""
    return {
        "model": {"class_type": "HyperSDDemoModel", "inputs": {}},
        "prompt": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": "red apple"}},
        "empty": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": ""}},
        "size": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        **sampling,
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["model", 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": next(_names)}},
    }


def _ksampler(*, seed=1, steps=4, cfg=4.0, **changes) -> dict:
    wires = {"model": ["model", 0], "positive": ["prompt", 0], "negative": ["empty", 0], "latent_image": ["size", 0]}
    inputs = {**wires, **KSAMPLER, "seed": seed, "steps": steps, "cfg": cfg, **changes}
    return _graph({"sample": {"class_type": "KSampler", "inputs": inputs}})


def _custom(*, seed=1, steps=4, cfg=4.0, num_segments=1, eta=0.3) -> dict:
    wires = {"model": ["model", 0], "positive": ["prompt", 0], "negative": ["empty", 0], "latent_image": ["size", 0]}
    grid = {"model": ["model", 0], "steps": steps, "num_segments": num_segments, "denoise": 1.0}
    run = {**wires, "add_noise": True, "noise_seed": seed, "cfg": cfg, "sampler": ["sampler", 0], "sigmas": ["sigmas", 0]}
    return _graph(
        {
            "sigmas": {"class_type": "HyperSDScheduler", "inputs": grid},
            "sampler": {"class_type": "HyperSDSampler", "inputs": {"eta": eta, "num_segments": num_segments}},
            "sample": {"class_type": "SamplerCustom", "inputs": run},
        }
    )


def _renamed(graph: dict, node_id: str, new_id: str) -> dict:
    """Returns the graph with one node under another id, which the host's cache cannot tell from a new node."""

    def rewired(value):
        return [new_id, value[1]] if isinstance(value, list) and value[0] == node_id else value

    return {
        new_id if key == node_id else key: {**node, "inputs": {k: rewired(v) for k, v in node["inputs"].items()}}
        for key, node in graph.items()
    }


def _pixels(server, graph: dict) -> np.ndarray:
    (entry,) = server.run(graph)["save"]["images"]
    picture = np.array(Image.open(io.BytesIO(server.image(entry))))
    assert picture.shape == (128, 128, 3)
    return picture


def _options(spec) -> list:
    """Returns a combo's choices in the host's older and newer form."""
    return spec[0] if isinstance(spec[0], list) else spec[1]["options"]


def test_nodes_are_offered(server):
    info = server.object_info()
    for name in ("HyperSDSampler", "HyperSDScheduler", "HyperSDDemoModel"):
        assert info[name]["category"] == "Hyper-SD"
        assert info[name]["python_module"] == "custom_nodes.hyper-sd"


@pytest.mark.parametrize("node", ["KSampler", "KSamplerAdvanced"])
def test_dropdown_names_are_offered_once(server, node):
    inputs = server.object_info()[node]["input"]["required"]
    assert _options(inputs["sampler_name"]).count("hyper_sd_tcd") == 1
    assert _options(inputs["scheduler"]).count("hyper_sd") == 1


@pytest.mark.parametrize("steps", [1, 4])
def test_pixels_are_identical_in_ksampler_and_sampler_custom(server, checkpoint, steps):
    assert np.array_equal(_pixels(server, _ksampler(steps=steps)), _pixels(server, _custom(steps=steps)))


def test_same_seed_gives_the_same_pixels_after_another_seed(server, checkpoint):
    first = _pixels(server, _custom(seed=7))
    assert not np.array_equal(first, _pixels(server, _custom(seed=8)))
    steps = []
    graph = _renamed(_custom(seed=7), "sample", "sample_again")
    (entry,) = server.run(graph, lambda done, total, node: steps.append((done, total, node)))["save"]["images"]
    assert (4, 4, "sample_again") in steps  # it ran, the host's cache did not answer
    assert np.array_equal(first, np.array(Image.open(io.BytesIO(server.image(entry)))))


def test_progress_counts_the_steps_to_the_last(server, checkpoint):
    """Since 0.9.1 the host leaves out what comes within a tenth of a second of the one before, but for the last."""
    steps = []
    server.run(_ksampler(seed=21, steps=8), lambda done, total, node: steps.append((done, total, node)))
    counted = [done for done, total, node in steps if node == "sample" and total == 8 and done > 0]
    assert counted == sorted(counted)
    assert set(counted) <= set(range(1, 9))
    assert (len(set(counted)) > 1, counted[-1]) == (True, 8)


def test_too_few_steps_fail_that_run_with_the_packs_message(server, checkpoint):
    from hyper_sd.demo.errors import WorkflowError

    with pytest.raises(WorkflowError, match="2 steps cannot visit 4 segments; use at least 4 steps") as failure:
        server.run(_custom(steps=2, num_segments=4))
    assert failure.value.node_type == "HyperSDScheduler"
    assert "ScheduleError" in failure.value.message
    assert _pixels(server, _custom(steps=4, num_segments=4)).std() >= 0


@pytest.mark.parametrize("change", [{"sampler_name": "hyper_sd_nonsense"}, {"scheduler": "hyper_sd_nonsense"}])
def test_unknown_name_is_refused_before_anything_runs(server, change):
    from hyper_sd.demo.errors import WorkflowError

    with pytest.raises(WorkflowError, match="Value not in list") as failure:
        server.queue(_ksampler(**change))
    assert failure.value.__cause__.code == 400
    assert failure.value.node_id == "sample"


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_eta_out_of_range_is_refused_before_anything_runs(server, value):
    from hyper_sd.demo.errors import WorkflowError

    with pytest.raises(WorkflowError, match="eta"):
        server.queue(_custom(eta=value))


def _idle(server) -> bool:
    queue = server.get("/queue")
    return not queue["queue_running"] and not queue["queue_pending"]


def test_interrupt_stops_a_long_run_and_the_next_one_works(server, checkpoint):
    from hyper_sd.demo.errors import WorkflowError

    seen, pressed = [], threading.Event()

    def press_stop(done, total, node):
        if node == "sample" and done > 0:
            seen.append(done)
            if not pressed.is_set():
                pressed.set()
                server.interrupt()

    with pytest.raises(WorkflowError, match="interrupted"):
        server.run(_ksampler(seed=31, steps=200), press_stop)
    assert max(seen) < 150
    deadline = time.monotonic() + 10
    while not _idle(server) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _idle(server)
    assert np.array_equal(_pixels(server, _ksampler(seed=32)), _pixels(server, _custom(seed=32)))


@pytest.mark.parametrize("name", ["HyperSDSampler", "HyperSDScheduler", "HyperSDDemoModel"])
def test_help_page_is_served(server, name):
    with urllib.request.urlopen(f"{server.address}{DOCS}/{name}.md", timeout=30) as answer:
        page = answer.read().decode()
    assert page == (PAGES / f"{name}.md").read_text(encoding="utf-8")


def _tracebacks(log: str) -> list[str]:
    """Returns every traceback of a log, each up to and with the line that names the exception."""
    found = []
    for text in log.split("Traceback (most recent call last):\n")[1:]:
        lines = text.splitlines()
        end = next((i for i, line in enumerate(lines) if line and not line.startswith(" ")), len(lines))
        found.append("\n".join(lines[: end + 1]))
    return found


def test_log_shows_no_traceback_of_the_pack_but_those_the_tests_provoked(server):
    log = server.log.read_text(encoding="utf-8", errors="replace")
    loaded = [line for line in log.splitlines() if "seconds" in line and line.rstrip().endswith("hyper-sd")]
    assert len(loaded) == 1
    assert "FAILED" not in loaded[0]
    ours = [text for text in _tracebacks(log) if "hyper-sd" in text]
    assert [text for text in ours if "2 steps cannot visit 4 segments" not in text] == []
