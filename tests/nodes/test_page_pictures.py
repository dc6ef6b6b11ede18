"""The help pages' pictures of the nodes, and the README's of a workflow: each shows what ComfyUI's page draws today."""

import io
import os
from pathlib import Path

import pytest
from hyper_sd.tests.nodes import example_graphs as examples
from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "web" / "docs"
NODES = sorted(path.stem for path in FOLDER.glob("*.md"))
WIDTH, TITLE, MARGIN, BELOW, BADGE = 340, 30, 14, 18, 26  # pixels; the badge with the pack's name lies above the title
FAR = 4.0  # example_graphs.distance, as of previews
SLACK = 6  # pixels that hosts may differ by in a node's height, a fourth of a widget's
# Draws a node alone and returns its height, once the page has drawn it.
ALONE = """async ([type, width, left, top]) => {
  app.graph.clear();
  const node = LiteGraph.createNode(type);
  node.pos = [left, top];
  app.graph.add(node);
  node.setSize([width, node.computeSize()[1]]);
  app.canvas.deselectAll?.();
  Object.assign(app.canvas.ds, { scale: 1, offset: [0, 0] });
  app.canvas.setDirty(true, true);
  for (let frame = 0; frame < 5; frame++) await new Promise(requestAnimationFrame);
  return node.size[1];
}"""
LEFT, TOP = 400, 200  # of the node on the canvas, away from the page's own bars


@pytest.mark.parametrize("name", NODES)
def test_picture_has_a_line_for_every_input_and_output_of_the_node(page, name):
    height = page.evaluate(ALONE, [name, WIDTH, LEFT, TOP])
    canvas = page.locator("#graph-canvas").bounding_box()
    left, top = canvas["x"] + LEFT - MARGIN, canvas["y"] + TOP - TITLE - BADGE
    clip = {"x": left, "y": top, "width": WIDTH + 2 * MARGIN, "height": height + TITLE + BADGE + BELOW}
    drawn = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
    path = FOLDER / "images" / f"{name}.jpg"
    if os.environ.get("HYPER_SD_WRITE"):  # puts the drawn one there first
        drawn.save(path, quality=88, optimize=True)
    with Image.open(path) as kept:
        assert kept.width == drawn.width
        assert abs(kept.height - drawn.height) <= SLACK


# Moves the page's view so that the graph's upper left corner is at a point, and returns how wide and high the graph is there.
SHOW_ALL = """async ([left, top, scale]) => {
  const title = LiteGraph.NODE_TITLE_HEIGHT, boxes = app.graph._nodes.map(({ pos: [x, y], size: [width, height] }) =>
    [x, y - title, x + width, y + height]);
  const [x, y] = [0, 1].map((at) => Math.min(...boxes.map((box) => box[at])));
  const [right, bottom] = [2, 3].map((at) => Math.max(...boxes.map((box) => box[at])));
  app.canvas.deselectAll?.();
  Object.assign(app.canvas.ds, { scale, offset: [left / scale - x, top / scale - y] });
  app.canvas.setDirty(true, true);
  for (let frame = 0; frame < 5; frame++) await new Promise(requestAnimationFrame);
  return [(right - x) * scale, (bottom - y) * scale];
}"""


def test_readmes_picture_of_the_first_image_is_what_the_page_shows(page, server):
    examples.press_run(page, server, f"01 Text to image, 1 to 8 steps{examples.DEMO}", {})
    canvas, corner = page.locator("#graph-canvas").bounding_box(), (80, 200)  # below and beside the page's own bars
    width, height = page.evaluate(SHOW_ALL, [*corner, 0.7])
    clip = {"x": canvas["x"] + corner[0] - MARGIN, "y": canvas["y"] + corner[1] - BADGE}
    clip |= {"width": width + 2 * MARGIN, "height": height + BADGE + MARGIN}
    drawn = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
    path = FOLDER / "images" / "first_image.jpg"
    if os.environ.get("HYPER_SD_WRITE"):
        drawn.save(path, quality=88, optimize=True)
    with Image.open(path) as kept:
        assert abs(kept.width - drawn.width) <= SLACK
        assert abs(kept.height - drawn.height) <= SLACK
        assert examples.distance(kept.convert("RGB"), drawn) < FAR
