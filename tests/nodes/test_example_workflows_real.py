"""Every example workflow with its own models, run in ComfyUI's page: for whoever has them, or files of their names and shapes.

HYPER_SD_MODELS names a ComfyUI models folder with all that the workflows name; without it these tests are skipped. Training is
cut to two steps, and without an accelerator the pictures are drawn small: minutes instead of hours.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hyper_sd.tests.nodes import example_graphs as examples
from PIL import Image

MODELS = os.environ.get("HYPER_SD_MODELS")
BRIEF = {"HyperSDTrainLora": {"steps": 2, "rank": 4, "batch_size": 1}}
SMALL = {
    "EmptyLatentImage": {"width": 256, "height": 256},
    "ImageScaleToTotalPixels": {"megapixels": 0.07},
    "HyperSDTrainingData": {"resolution": 256},
}
PICTURES, SIZE = 2, 256  # of the person's own folder

pytestmark = pytest.mark.skipif(not MODELS, reason="HYPER_SD_MODELS names no folder with the workflows' models")


@pytest.fixture(scope="module")
def server(comfyui_path, tmp_path_factory):
    """A ComfyUI with the person's models, two pictures to learn from, and its own example picture."""
    from hyper_sd.demo.base_directory import prepare
    from hyper_sd.demo.server import ComfyServer, device_arguments

    base = prepare(tmp_path_factory.mktemp("real"))
    shutil.copy(comfyui_path / "input" / "example.png", base / "input")
    folder = base / "input" / "my_style"
    folder.mkdir()
    with Image.open(base / "input" / "example.png") as image:
        for number in range(PICTURES):
            image.crop((64 * number, 0, 64 * number + SIZE, SIZE)).convert("RGB").save(folder / f"{number}.png")
            (folder / f"{number}.txt").write_text("a girl on a green hill", encoding="utf-8")
    folders = {name: name for name in ("checkpoints", "loras", "controlnet", "hyper_sd_rewards")}
    paths = base / "paths.yaml"  # JSON is YAML
    paths.write_text(json.dumps({"real": {"base_path": str(Path(MODELS).resolve()), **folders}}), encoding="utf-8")
    device = device_arguments()
    half = ("--bf16-unet",) if device else ()  # an SDXL with a LoRA takes 25 GB in float32
    arguments = ("--extra-model-paths-config", str(paths), *device, *half)
    with ComfyServer(comfyui_path, base, arguments=arguments) as running:
        yield running


@pytest.mark.parametrize("name", examples.names(demo=False))
def test_real_variant_draws(page, server, name):
    page.errors.clear()
    drawn = examples.press_run(page, server, name, BRIEF | (SMALL if "--cpu" in server.command else {}))
    assert drawn
    for title, images in drawn:
        for image in images:
            assert np.asarray(image).std() > 5, title
    assert page.evaluate(examples.LOOK)["unknown"] == examples.NOTHING["unknown"]
    assert page.errors == []
