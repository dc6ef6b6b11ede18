"""The help pages' pictures of the nodes: each shows the node as ComfyUI's page draws it today."""

import io
import os
from pathlib import Path

import pytest
from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "web" / "docs"
NODES = sorted(path.stem for path in FOLDER.glob("*.md"))
WIDTH, TITLE, MARGIN, BELOW, BADGE = 340, 30, 14, 18, 26  # pixels; the badge with the pack's name lies above the title
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
