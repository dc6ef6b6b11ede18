"""Every example workflow in ComfyUI's page: it opens whole, a demo variant draws, a real one is accepted with its files there.

HYPER_SD_WRITE=1 draws the preview pictures anew.
"""

import json
import shutil
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
from hyper_sd.models.catalog import load_catalog
from hyper_sd.tests.nodes import example_graphs as examples
from hyper_sd.tests.nodes.model_world import until
from hyper_sd.tests.nodes.server_routes import ask, fetch
from hyper_sd.tests.repository import private_text
from PIL import Image

ALL, DEMO, REAL = examples.names(), examples.names(demo=True), examples.names(demo=False)
RUN = [name for name in DEMO if name not in examples.NOT_RUN]
PREVIEWS = [name for name in REAL if name + examples.DEMO not in examples.NOT_RUN]
TEMPLATES = "/api/workflow_templates"
LARGEST = 150_000  # bytes of a preview
FAR = 4.0  # example_graphs.distance; the two previews that are most alike are 8.9 apart
CAPTION = "Drawn with the demo model"  # below a real variant's preview
EMPTY = (2).to_bytes(8, "little") + b"{}"  # a safetensors file of no tensors


def _stand_ins(base: Path) -> None:
    """Puts a file of the right name wherever a workflow wants one; no run reads them."""
    from hyper_sd.models.unet_file import PREFIX
    from hyper_sd.tests.models.synthetic_unets import unet, write

    for name in ALL:
        for node, folder, file in examples.files_of(examples.read(name)):
            path = base / "models" / folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            if node["type"] == "HyperSDOneStepLoader":  # it looks at the head before the run
                write(path, unet("original", prefix=PREFIX), sparse=True)
            else:
                path.write_bytes(EMPTY)


@pytest.fixture(scope="module")
def server(comfyui_path, tmp_path_factory):
    """A ComfyUI with the workflows' models by name, and its own example picture."""
    pytest.importorskip("aiohttp", reason="ComfyUI's own requirement")
    from hyper_sd.demo.base_directory import prepare
    from hyper_sd.demo.server import ComfyServer

    base = prepare(tmp_path_factory.mktemp("examples"))
    shutil.copy(comfyui_path / "input" / "example.png", base / "input")
    (base / "input" / "my_style").mkdir()  # the person's own pictures
    _stand_ins(base)
    with ComfyServer(comfyui_path, base, arguments=("--cpu",)) as running:
        yield running


_prompts, _drawn = {}, {}


def _open(page, name: str) -> dict:
    """Opens an example as the page's only concern, and returns the API workflow that the page makes of it."""
    page.errors.clear()
    page.evaluate(examples.CLOSE)  # what an earlier one has called forth
    page.wait_for_function(f"{examples.TOLD}.length === 0")
    _prompts[name] = page.evaluate(examples.OPEN, examples.read(name))
    return _prompts[name]


def _prompt(page, name: str) -> dict:
    return _prompts.get(name) or _open(page, name)


def _draw(page, server, name: str) -> list[tuple[str, list[Image.Image]]]:
    if name not in _drawn:
        _drawn[name] = examples.press_run(page, server, name, {})
    return _drawn[name]


def test_there_are_examples_and_each_has_its_demo_twin():
    assert len(REAL) >= 10
    assert sorted(name + examples.DEMO for name in REAL) == DEMO
    assert set(examples.NOT_RUN) <= set(DEMO)


@pytest.mark.parametrize("name", ALL)
def test_workflow_opens_without_a_red_node_and_nothing_covers_another(page, name):
    assert _open(page, name)
    assert page.evaluate(examples.LOOK) == examples.NOTHING
    assert page.errors == []


@pytest.fixture
def nodes_2(page):
    """ComfyUI's page with Nodes 2.0, which makes nodes taller, for one test."""
    setting = "app.extensionManager.setting"
    if not page.evaluate(examples.HAS_NODES_2, examples.NODES_2):
        pytest.skip("this page has no Nodes 2.0")
    before = page.evaluate(f"name => {setting}.get(name)", examples.NODES_2)
    page.evaluate(f"name => {setting}.set(name, true)", examples.NODES_2)
    yield page
    page.evaluate(f"([name, before]) => {setting}.set(name, before)", [examples.NODES_2, before])


@pytest.mark.parametrize("name", ALL)
def test_nothing_covers_another_in_nodes_2(nodes_2, name, screenshot):
    assert _open(nodes_2, name)
    nodes_2.evaluate("app.canvas.ds.reset()")
    nodes_2.wait_for_function(examples.DRAWN)
    screenshot(nodes_2, f"nodes 2, {name}")
    assert nodes_2.evaluate(examples.LOOK) == examples.NOTHING


@pytest.fixture(scope="module")
def described(server):
    """The nodes as the server describes them, with the workflows' files in their lists."""
    return server.object_info()


@pytest.mark.parametrize("name", ALL)
def test_every_choice_is_in_its_list(page, described, name):
    assert examples.not_offered(_prompt(page, name), described) == []


@pytest.mark.parametrize("name", RUN)
def test_demo_variant_draws_and_its_nodes_still_cover_nothing(page, server, name):
    page.errors.clear()
    drawn = _draw(page, server, name)
    assert drawn
    for _, images in drawn:
        for image in images:
            assert np.asarray(image).std() > 20
    assert page.evaluate(examples.LOOK) == examples.NOTHING
    assert page.errors == []


@pytest.fixture
def busy(page, server):
    """The server, at work on something long: what is queued behind it is checked and never begins."""
    long = json.loads(json.dumps(_prompt(page, "02 KSampler only" + examples.DEMO)))
    next(node for node in long.values() if node["class_type"] == "KSampler")["inputs"]["steps"] = 900
    server.queue(long)
    until(lambda: _running(server))
    yield server
    ask(server, "/queue", {"clear": True})
    until(lambda: not (_running(server) and [ask(server, "/interrupt", {})]))  # one that comes too early is forgotten


@pytest.mark.parametrize("name", REAL)
def test_real_variant_is_accepted_with_its_files_there_and_without_them_the_loaders_say_so(page, busy, name):
    prompt = _prompt(page, name)
    loaders = {key for key, node in prompt.items() if _files(node)}
    assert ask(busy, "/prompt", {"prompt": prompt})["node_errors"] == {}
    renamed = {
        key: {**node, "inputs": node["inputs"] | {n: f"no {v}" for n, v in _files(node).items()}}
        for key, node in prompt.items()
    }
    refused = ask(busy, "/prompt", {"prompt": renamed})["node_errors"]
    assert refused.keys() <= loaders
    assert refused
    assert _running(busy) == 1


def _running(server) -> int:
    return len(server.get("/queue")["queue_running"])


def _files(node: dict) -> dict[str, str]:
    return {name: value for name, value in node["inputs"].items() if str(value).endswith(".safetensors")}


@pytest.mark.parametrize("name", REAL)
def test_twins_are_one_graph_but_for_the_listed_differences(page, name):
    different = examples.DIFFERENCES.get(name, frozenset())
    real, demo = (examples.outputs(_prompt(page, twin), different) for twin in (name, name + examples.DEMO))
    assert real == demo
    assert real


@pytest.mark.parametrize("name", PREVIEWS)
def test_previews_show_what_is_drawn(page, server, name):
    twin = name + examples.DEMO
    drawn = _draw(page, server, twin)
    for kept, caption in ((twin, ""), (name, CAPTION)):
        picture = examples.preview(drawn, caption)
        assert examples.distance(examples.kept_preview(kept, picture), picture) < FAR


@pytest.mark.parametrize("name", ALL)
def test_preview_is_there_and_small(name):
    path = examples.FOLDER / f"{name}.jpg"
    assert path.stat().st_size < LARGEST
    with Image.open(path) as image:
        assert 550 <= image.width <= 650
        assert np.asarray(image.convert("L")).std() > 20


def test_names_sort_in_the_order_of_their_numbers():
    assert [int(name.split()[0]) for name in REAL] == list(range(1, len(REAL) + 1))  # the template browser sorts by name


def test_template_browser_lists_every_workflow_and_gets_its_files(server):
    listed = server.get(TEMPLATES)
    assert sorted(listed["hyper-sd"]) == ALL
    for name in ALL:
        address = f"{TEMPLATES}/hyper-sd/{urllib.parse.quote(name)}"
        assert json.loads(fetch(server, f"{address}.json")) == examples.read(name)
        assert fetch(server, f"{address}.jpg").startswith(b"\xff\xd8")


@pytest.mark.parametrize("name", ALL)
def test_workflow_tells_nothing_private_and_its_name_fits_every_disk(name):
    text = (examples.FOLDER / f"{name}.json").read_text(encoding="utf-8")
    workflow = json.loads(text)
    assert private_text(text) == []
    assert set(workflow["extra"]) <= {"ds"}
    assert json.dumps(workflow, indent=2, ensure_ascii=False) + "\n" == text
    assert not set(name) & set('<>:"/\\|?*%#&+')


@pytest.mark.parametrize("name", ALL)
def test_note_says_what_it_shows_in_a_few_lines(name):
    (note,) = [node for node in examples.read(name)["nodes"] if node["type"] == "MarkdownNote"]
    (text,) = note["widgets_values"]
    assert 2 <= len(text.split("\n\n")) <= 5
    assert 100 < len(text) < 700


@pytest.mark.parametrize("name", REAL)
def test_files_carry_their_address_for_the_pages_missing_model_dialog(name):
    catalogued = {entry.name: entry.workflow_metadata() for entry in load_catalog()}
    for node, folder, file in examples.files_of(examples.read(name)):
        if node["type"] == "HyperSDOneStepLoader":  # its list names the folder, too, which that dialog cannot look up
            continue
        (model,) = node["properties"]["models"]
        value = next(value for value in node["widgets_values"] if str(value).endswith(file))
        assert model["name"] == value
        assert model["directory"] == folder
        assert model["url"].startswith("https://huggingface.co/")
        if file in catalogued:
            assert model == catalogued[file] | {"name": value}


@pytest.mark.parametrize("name", DEMO)
def test_demo_variant_names_no_file_of_anyones(name):
    workflow = examples.read(name)
    assert examples.files_of(workflow) == []
    kinds = {node["type"] for node in workflow["nodes"]}
    assert "HyperSDDemoModel" in kinds
    assert not kinds & {"LoadImage", "CheckpointLoaderSimple"}
