"""The blueprint "Hyper-SD LoRA finetune" in ComfyUI's page: found, wired, run, stopped, gone on with, and its LoRA used."""

import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hyper_sd.tests.nodes.server_routes import ask
from PIL import Image

BLUEPRINT = "Hyper-SD LoRA finetune"
FILE = Path(__file__).resolve().parents[3] / "subgraphs" / f"{BLUEPRINT}.json"
PROMOTED = ["folder", "objective", "steps", "rank", "name"]
INSIDE = ["HyperSDLossPlot", "HyperSDSaveLora", "HyperSDTrainLora", "HyperSDTrainingData"]
STEPS, STOP_AT = 30, 8
# The node search of frontends up to 1.37, and the one of 1.49: its field, and the option that Enter takes.
SEARCH = re.compile("^(Search Nodes|Add a node)")
FIRST = ".p-autocomplete-option.p-focus, [data-testid=result-item][aria-selected=true]"
QUICK = 15_000  # milliseconds for one try of the node search


@pytest.fixture(scope="module")
def server(comfyui_path, tmp_path_factory):
    """A ComfyUI of its own with this pack."""
    pytest.importorskip("aiohttp", reason="ComfyUI's own requirement")
    from hyper_sd.demo.base_directory import prepare
    from hyper_sd.demo.server import ComfyServer

    base = prepare(tmp_path_factory.mktemp("finetune"))
    with ComfyServer(comfyui_path, base, arguments=("--cpu",)) as running:
        running.base = base
        yield running


def test_blueprint_is_one_node_with_the_promoted_widgets_and_the_packs_own_nodes():
    graph = json.loads(FILE.read_text(encoding="utf-8"))
    (node,), (subgraph,) = graph["nodes"], graph["definitions"]["subgraphs"]
    assert node["type"] == subgraph["id"]
    assert [given["name"] for given in node["inputs"] if "widget" in given] == PROMOTED
    assert [name for _, name in node["properties"]["proxyWidgets"]] == PROMOTED
    assert sorted(inner["type"] for inner in subgraph["nodes"]) == INSIDE


def test_blueprint_says_what_it_does_and_is_found_under_the_packs_own_category():
    graph = json.loads(FILE.read_text(encoding="utf-8"))
    (subgraph,) = graph["definitions"]["subgraphs"]
    assert subgraph["category"] == "Hyper-SD"
    assert {"train", "finetune", "训练"} <= set(graph["extra"]["BlueprintSearchAliases"])
    english, chinese = graph["extra"]["BlueprintDescription"].split(". ", 1)  # the page has one text for all languages
    assert "style" in english
    assert "风格" in chinese


def test_host_serves_the_blueprint_under_its_name(server):
    served = [entry["name"] for entry in ask(server, "/api/global_subgraphs").values()]
    assert served.count(BLUEPRINT) == 1


def _add_by_search(page) -> bool:
    """Types the blueprint's name into the node search and presses Enter; False where the list did not offer it in time."""
    timeout = pytest.importorskip("playwright.sync_api").TimeoutError
    page.keyboard.press("Escape")
    page.mouse.dblclick(700, 500)
    try:
        search = page.get_by_placeholder(SEARCH)
        search.wait_for(timeout=QUICK)
        search.press_sequentially(BLUEPRINT)
        page.locator(FIRST, has_text=BLUEPRINT).wait_for(timeout=QUICK)
        page.keyboard.press("Enter")
        page.wait_for_function("app.graph._nodes.length > 0", timeout=QUICK)
    except timeout:
        return False
    return True


def test_node_search_finds_the_blueprint_and_adds_it_whole(page):
    page.evaluate("app.graph.clear()")
    # The page fetches the blueprints after it has loaded; a search that was opened before does not show them.
    assert any(_add_by_search(page) for _ in range(6))
    found = page.evaluate("(() => { const [n] = app.graph._nodes; return [n.title, n.widgets.map((w) => w.name)] })()")
    assert found == [BLUEPRINT, PROMOTED]
    assert not page.errors


WIRE = """(steps) => {
  const [tune] = app.graph._nodes;
  const make = (type) => { const node = LiteGraph.createNode(type); app.graph.add(node); return node; };
  const slot = (node, name) => node.inputs.findIndex((input) => input.name === name);
  const join = (from, out, to, name) => { if (!from.connect(out, to, slot(to, name))) throw new Error(name); };
  const set = (node, values) => node.widgets.forEach((w) => { if (w.name in values) w.value = values[w.name]; });
  const [model, text, zero, size, draw, decode, save] = ['HyperSDDemoModel', 'CLIPTextEncode', 'ConditioningZeroOut',
    'EmptyLatentImage', 'KSampler', 'VAEDecode', 'SaveImage'].map(make);
  const [sheet, chart] = ['PreviewImage', 'PreviewImage'].map(make);
  ['model', 'clip', 'vae'].forEach((name, out) => join(model, out, tune, name));
  set(tune, { folder: 'demo/style', steps, rank: 4, name: 'from_the_page' });
  set(text, { text: 'penguin' });
  set(size, { width: 128, height: 128 });
  set(draw, { seed: 3, steps: 4, cfg: 1, sampler_name: 'hyper_sd_tcd', scheduler: 'hyper_sd' });
  draw.widgets.find((w) => w.name === 'control_after_generate').value = 'fixed';
  join(model, 1, text, 'clip'); join(text, 0, zero, 'conditioning');
  join(tune, 0, draw, 'model'); join(text, 0, draw, 'positive'); join(zero, 0, draw, 'negative');
  join(size, 0, draw, 'latent_image'); join(draw, 0, decode, 'samples'); join(model, 2, decode, 'vae');
  join(decode, 0, save, 'images'); join(tune, 1, sheet, 'images'); join(tune, 2, chart, 'images');
  app.graph.arrange(60);
  Object.assign(window, { tune, save, sheet, chart, made: { model, draw } });
}"""
RUN = """([total, stopAt]) => new Promise((resolve) => {
  const seen = { steps: [], texts: [] }, listening = [];
  const on = (name, hear) => { app.api.addEventListener(name, hear); listening.push([name, hear]); };
  const end = (how) => { listening.forEach((pair) => app.api.removeEventListener(...pair)); resolve({ how, ...seen }); };
  on('progress_state', ({ detail }) => Object.values(detail.nodes).forEach((node) => {
    if (node.state !== 'running' || node.max !== total) return;
    seen.steps.push(node.value);
    if (stopAt && node.value >= stopAt) { stopAt = 0; app.api.interrupt(); }
  }));
  on('hyper_sd.text', ({ detail }) => seen.texts.push(detail.text));
  on('execution_success', () => end('success'));
  on('execution_interrupted', () => end('interrupted'));
  on('execution_error', ({ detail }) => end(detail.exception_message));
  app.queuePrompt(0, 1);
})"""
SWAP = """(file) => {
  const load = LiteGraph.createNode('LoraLoaderModelOnly');
  app.graph.add(load);
  const { model, draw } = window.made;
  model.connect(0, load, 0);
  load.widgets[0].value = file;
  load.connect(0, draw, 0);
  [window.tune, window.sheet, window.chart].forEach((node) => app.graph.remove(node));
  window.load = load;
}"""


def _drawn(server, page) -> np.ndarray:
    (entry,) = page.evaluate("app.nodeOutputs[window.save.id].images")
    return np.asarray(Image.open(io.BytesIO(server.image(entry))).convert("RGB")).astype(int)


def _keep(page, name: str) -> None:
    if os.environ.get("HYPER_SD_ARTIFACTS"):
        page.evaluate("app.canvas.ds.reset()")
        page.screenshot(path=Path(os.environ["HYPER_SD_ARTIFACTS"]) / f"{name}.png")


def test_blueprint_trains_stops_goes_on_and_its_lora_draws_the_same(server, page):
    page.evaluate(WIRE, STEPS)
    stopped = page.evaluate(RUN, [STEPS, STOP_AT])
    assert stopped["how"] == "interrupted"
    assert STOP_AT <= max(stopped["steps"]) <= STOP_AT + 1  # within one step
    (run,) = (server.base / "output" / "hyper_sd_training").iterdir()
    assert list(run.rglob("checkpoint.safetensors"))
    assert not list((server.base / "models" / "loras").glob("from_the_page*"))
    resumed = page.evaluate(RUN, [STEPS, 0])
    assert resumed["how"] == "success"
    assert min(step for step in resumed["steps"] if step) >= STOP_AT
    assert max(resumed["steps"]) == STEPS
    assert any("loss" in text and "left" in text for text in resumed["texts"])
    assert [path.name for path in (server.base / "output" / "hyper_sd_training").iterdir()] == [run.name]
    said = "[...window.tune.subgraph.nodes].flatMap((n) => n.widgets ?? []).filter((w) => w.name === 'hyper_sd_text')"
    texts = page.evaluate(f"{said}.map((w) => w.value)")
    assert sorted(text.split()[0] for text in texts) == ["20", f"{STEPS}", "Saved"]  # what each inner node says at the end
    for shown in ("sheet", "chart"):
        assert page.evaluate(f"app.nodeOutputs[window.{shown}.id].images.length") == 1
    trained = _drawn(server, page)
    _keep(page, "finetune")
    (file,) = (server.base / "models" / "loras").glob("from_the_page*")
    pictures = {}
    for strength in (1, 0):
        page.evaluate(SWAP if strength else "() => { window.load.widgets[1].value = 0 }", file.name)
        assert page.evaluate(RUN, [STEPS, 0])["how"] == "success"
        pictures[strength] = _drawn(server, page)
    assert np.abs(pictures[1] - trained).max() <= 1
    assert np.abs(pictures[0] - trained).mean() > 5
    assert not page.errors
