"""What ComfyUI's page saves with a workflow of the models in it, in a real browser."""

import json

from hyper_sd.tests.nodes import example_graphs

SAVE = """name => {
  app.graph.clear();
  const loader = LiteGraph.createNode('LoraLoaderModelOnly');
  app.graph.add(loader);
  loader.properties.models = [{ name: 'other.safetensors', url: 'https://example.com/other', directory: 'loras' }];
  loader.widgets[0].value = name;
  return JSON.stringify(app.graph.serialize());
}"""


def test_saved_workflow_makes_the_hosts_own_dialog_offer_a_missing_file(world, page, screenshot):
    missing = "my folder/Hyper-SDXL-4steps-lora.safetensors"
    saved = page.evaluate(SAVE, missing)
    other, ours = json.loads(saved)["nodes"][0]["properties"]["models"]
    assert other["name"] == "other.safetensors"
    assert ours == world.row("hyper-sdxl-4steps-lora")["models"] | {"name": missing}
    page.evaluate("saved => app.loadGraphData(JSON.parse(saved))", saved)
    told = page.locator(example_graphs.WINDOWS)
    told.filter(has_text=missing).wait_for()
    assert "other.safetensors" not in told.inner_text()
    screenshot(page, "missing-model")
    page.evaluate(example_graphs.CLOSE)
    told.wait_for(state="hidden")


def test_saved_one_step_loader_names_no_file_under_its_folder(page):
    value = "checkpoints/Hyper-SDXL-1step-Unet-Comfyui.fp16.safetensors"
    loader = "const n = LiteGraph.createNode('HyperSDOneStepLoader'); app.graph.add(n); n.widgets[0].value = value;"
    saved = page.evaluate(f"value => {{ app.graph.clear(); {loader} return app.graph.serialize().nodes[0] }}", value)
    assert saved["widgets_values"][0] == value
    assert "models" not in saved["properties"]
