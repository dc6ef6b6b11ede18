"""The example workflows: what they ask for, what a twin may differ in, their preview pictures, and how the page opens them."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from hyper_sd.evaluation.contact_sheet import contact_sheet
from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"
DEMO = " (demo model)"
NOTHING = {"unknown": [], "red": [], "covered": [], "sticksOut": [], "told": []}  # what LOOK returns where all is well
WIDTH, CAPTION = 600, 36  # pixels of a preview, and of the line below it

# Demo variants that take too long to run here, and where they are run instead.
NOT_RUN: dict[str, str] = {"10 Train a style, then use it (demo model)": "trains for minutes: test_finetune_page.py"}

# A picture or model that the graph starts from: where it comes from is the twins' own affair.
SOURCES = frozenset(
    {
        "CheckpointLoaderSimple",
        "LoraLoaderModelOnly",
        "ControlNetLoader",
        "LoadImage",
        "HyperSDDemoModel",
        "HyperSDDemoControlNet",
    }
)
SOURCE_TITLE = "Input picture"
# Inputs that twins may set differently: sizes, prompts, files.
FREE = frozenset({"width", "height", "batch_size", "text", "lora_name"})
# Besides: inputs, or node types that count as sources, in one pair.
DIFFERENCES = {
    "03 SDXL in one step": frozenset({"HyperSDOneStepLoader", "HyperSDLoraLoader"}),
    "04 Negative prompt and CFG": frozenset({"variant", "cfg"}),
    "06 Inpaint": frozenset({"x", "y"}),
    "09 Compare 1, 2, 4 and 8 steps": frozenset({"cfg"}),
    "10 Train a style, then use it": frozenset({"folder", "name", "preset", "steps", "rank", "teacher_cfg"}),
    "11 Draw many, keep the best": frozenset({"value", "scorer"}),
    "12 Learn my taste": frozenset({"prompts", "preset", "steps", "rank", "learning_rate"}),
}

# Where the files of a loader's list lie; None: the value names the folder itself.
FOLDERS = {
    "CheckpointLoaderSimple": "checkpoints",
    "LoraLoaderModelOnly": "loras",
    "HyperSDLoraLoader": "loras",
    "HyperSDLoraSchedule": "loras",
    "HyperSDTrainLora": "loras",
    "ControlNetLoader": "controlnet",
    "HyperSDOneStepLoader": None,
}

# Where the page tells of something unasked: a dialog, a message, and from frontend 1.49 on a box for what is missing.
WINDOWS = "[role=dialog], .p-toast-message, [data-testid=error-overlay]"
TOLD = f"[...document.querySelectorAll('{WINDOWS}')]"
# What covers what is asked of the page itself, since only it knows how tall a node becomes.
LOOK = """() => {
  const nodes = app.graph._nodes, groups = app.graph._groups;
  const drawn = (n) => document.querySelector(`[data-node-id="${n.id}"]`)?.getBoundingClientRect(); // Nodes 2.0 are elements
  const size = (n, rect = drawn(n)) => rect ? [rect.width / app.canvas.ds.scale, rect.height / app.canvas.ds.scale]
    : [n.size[0], n.size[1] + LiteGraph.NODE_TITLE_HEIGHT];
  const box = (n, [x, y] = n.pos, [width, height] = size(n), top = y - LiteGraph.NODE_TITLE_HEIGHT) =>
    [x, top, x + width, top + height];
  const meet = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
  const inside = (a, b) => b[0] <= a[0] && b[1] <= a[1] && a[2] <= b[2] && a[3] <= b[3];
  const frame = (g) => [g.pos[0], g.pos[1], g.pos[0] + g.size[0], g.pos[1] + g.size[1]];
  const pairs = nodes.flatMap((a, i) => nodes.slice(i + 1).map((b) => [a, b]));
  return {
    unknown: nodes.filter((n) => !LiteGraph.registered_node_types[n.type]).map((n) => n.type),
    red: nodes.filter((n) => n.has_errors).map((n) => n.title),
    covered: pairs.filter(([a, b]) => meet(box(a), box(b))).map(([a, b]) => `${a.title} and ${b.title}`),
    sticksOut: nodes.filter((n) => groups.some((g) => meet(box(n), frame(g)) && !inside(box(n), frame(g)))).map((n) => n.title),
    told: TOLD.map((element) => element.innerText),
  };
}""".replace("TOLD", TOLD)
# Whether Nodes 2.0 have drawn all that is there.
DRAWN = "app.graph._nodes.every((n) => document.querySelector(`[data-node-id='${n.id}']`)?.offsetHeight)"
NODES_2 = "Comfy.VueNodes.Enabled"
# Frontend 1.27 has the setting for an attempt that it does not draw with, and does not call it so yet.
HAS_NODES_2 = """(name) => app.extensionManager.setting.get(name) !== undefined
  && (app.ui?.settings?.settingsLookup?.[name]?.name ?? 'Nodes 2.0').includes('Nodes 2.0')"""
CLOSE = """{
  const wordless = [...document.querySelectorAll('[data-testid=error-overlay] button')].filter((button) => !button.innerText);
  const others = document.querySelectorAll('.p-dialog-close-button, .p-toast-close-button');
  [...wordless, ...others].forEach((button) => button.click());
}"""
OPEN = "async (workflow) => { await app.loadGraphData(workflow); return (await app.graphToPrompt()).output }"
# Loads a workflow, sets widgets ({node type: {widget: value}}) and runs it; returns how it ended and what the nodes show.
PRESS_RUN = """async ([workflow, settings]) => {
  await app.loadGraphData(workflow);
  for (const node of app.graph._nodes) {
    for (const widget of node.widgets ?? []) widget.value = settings[node.type]?.[widget.name] ?? widget.value;
  }
  const ended = new Promise((resolve) => {
    const end = (text) => () => resolve(text);
    app.api.addEventListener('execution_success', end('success'), { once: true });
    app.api.addEventListener('execution_error', ({ detail }) => resolve(detail.exception_message), { once: true });
  });
  await app.queuePrompt(0, 1);
  const text = await ended;
  const shown = app.graph._nodes.filter((n) => app.nodeOutputs[n.id]?.images?.length);
  const images = shown.map((n) => ({ title: n.title, images: app.nodeOutputs[n.id].images, at: [...n.pos] }));
  return { text, images };
}"""


def names(demo: bool | None = None) -> list[str]:
    """Returns the workflows' names, of one kind or all."""
    found = sorted(path.stem for path in FOLDER.glob("*.json"))
    return [name for name in found if demo is None or name.endswith(DEMO) == demo]


def read(name: str) -> dict[str, Any]:
    """Returns a workflow as the page loads it."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def files_of(workflow: dict[str, Any]) -> list[tuple[dict[str, Any], str, str]]:
    """Returns (node, folder, file name) of every model file a workflow names."""
    found = []
    for node in workflow["nodes"]:
        for value in node.get("widgets_values") or []:
            if isinstance(value, str) and value.endswith(".safetensors"):
                folder = FOLDERS[node["type"]]
                parts = (folder, value) if folder else value.split("/", 1)
                found.append((node, *parts))
    return found


def outputs(prompt: dict[str, Any], different: frozenset[str]) -> list[str]:
    """Returns each output node of an API workflow with everything above it, sorted; a mere look at a source is left out.

    Args:
        prompt: the API workflow.
        different: inputs that twins may set differently, and node types a graph may start from, besides the usual ones.
    """
    fed = {value[0] for node in prompt.values() for value in node["inputs"].values() if isinstance(value, list)}
    ends = [_text(prompt, key, different) for key in prompt if key not in fed]
    return sorted(end for end in ends if not end.endswith("(images=source)"))


def _text(prompt: dict[str, Any], key: str, different: frozenset[str]) -> str:
    node = prompt[key]
    kind, parts = node["class_type"], []
    if kind in SOURCES | different or node["_meta"]["title"] == SOURCE_TITLE:
        return "source"
    for name, value in sorted(node["inputs"].items()):
        if isinstance(value, list):
            above = _text(prompt, value[0], different)
            parts.append(f"{name}={above}" + f".{value[1]}" * (above != "source"))
        elif name not in FREE | different:
            parts.append(f"{name}={value}")
    return f"{kind}({', '.join(parts)})"


def not_offered(prompt: dict[str, Any], described: dict[str, Any]) -> list[str]:
    """Returns each choice of an API workflow that its node's list lacks; hosts up to 0.3.75 check only older nodes' lists.

    Args:
        prompt: the API workflow.
        described: the host's /object_info.
    """
    found = []
    for node in prompt.values():
        inputs = described[node["class_type"]]["input"]
        for name, (kind, *options) in ({**inputs.get("required", {}), **inputs.get("optional", {})}).items():
            offered = kind if isinstance(kind, list) else options[0].get("options", []) if kind == "COMBO" else None
            value = node["inputs"].get(name)
            if offered is not None and not isinstance(value, list) and name in node["inputs"] and value not in offered:
                found.append(f"{node['class_type']}.{name}: {value}")
    return found


def preview(drawn: list[tuple[str, list[Image.Image]]], caption: str) -> Image.Image:
    """Returns a preview: a batch as a grid, or the pictures of several nodes with their titles; below it the caption, if any.

    Args:
        drawn: (title, pictures) of each node that shows some.
        caption: a line below the pictures; "" for none.
    """
    if len(drawn) == 1:
        sheet = _grid(drawn[0][1])
    else:
        labelled = [(title.removesuffix(", seen"), image) for title, images in drawn for image in images]
        sheet = contact_sheet([image for _, image in labelled], [title for title, _ in labelled], min(len(labelled), 3))
    sheet = sheet.resize((WIDTH, round(sheet.height * WIDTH / sheet.width)), Image.Resampling.LANCZOS)
    page = Image.new("RGB", (WIDTH, sheet.height + CAPTION * bool(caption)), "white")
    page.paste(sheet)
    middle = (WIDTH // 2, sheet.height + CAPTION // 2)
    ImageDraw.Draw(page).text(middle, caption, fill="black", font=ImageFont.load_default(size=CAPTION // 2), anchor="mm")
    return page


def _grid(images: list[Image.Image]) -> Image.Image:
    across, (width, height) = round(len(images) ** 0.5), images[0].size
    sheet = Image.new("RGB", (across * width, -(-len(images) // across) * height), "white")
    for at, image in enumerate(images):
        sheet.paste(image.convert("RGB"), (at % across * width, at // across * height))
    return sheet


def kept_preview(name: str, drawn: Image.Image) -> Image.Image:
    """Returns the preview that lies beside a workflow; HYPER_SD_WRITE=1 puts the drawn one there first."""
    path = FOLDER / f"{name}.jpg"
    if os.environ.get("HYPER_SD_WRITE"):
        drawn.save(path, quality=88, optimize=True)
    with Image.open(path) as kept:
        return kept.convert("RGB")


def distance(first: Image.Image, second: Image.Image) -> float:
    """Returns how far two pictures are apart at a tenth of their size: mean absolute difference of 0..255."""
    small = [np.asarray(image.resize((WIDTH // 10,) * 2, Image.Resampling.BOX), dtype=float) for image in (first, second)]
    return float(np.abs(small[0] - small[1]).mean())


def press_run(page, server, name: str, settings: dict) -> list[tuple[str, list[Image.Image]]]:
    """Opens an example in ComfyUI's page, presses Run, and returns (title, pictures) of each node that shows some.

    Args:
        page: ComfyUI's page.
        server: the running ComfyServer, which has the pictures.
        name: the example.
        settings: what to change before the run, {node type: {widget: value}}.
    """
    answer = page.evaluate(PRESS_RUN, [read(name), settings])
    assert answer["text"] == "success"
    shown = sorted(answer["images"], key=lambda entry: (entry["at"][1] // 100, entry["at"][0]))
    return [(entry["title"], [_picture(server, image) for image in entry["images"]]) for entry in shown]


def _picture(server, entry: dict) -> Image.Image:
    return Image.open(io.BytesIO(server.image(entry))).convert("RGB")
