"""A real ComfyUI, in this process (small seeded models) or as a server with its page: no stand-ins."""

import os
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hyper_sd.tests.nodes.server_routes import ask

LOADED = "window.app?.graph?._nodes?.length > 0"  # in ComfyUI's page: its first workflow is there
TAB = ".hyper-sd-models-tab-button"  # and the pack's own scripts are loaded
PATIENCE = 60_000  # milliseconds until a test gives up waiting for the page


@pytest.fixture(scope="session")
def world(comfyui_path, tmp_path_factory):
    """A running ComfyUI with a hub and a catalogue of its own, see model_world.py."""
    pytest.importorskip("aiohttp", reason="ComfyUI's own requirement")
    from hyper_sd.tests.nodes.model_world import ModelWorld

    with ModelWorld(comfyui_path, tmp_path_factory.mktemp("models")) as running:
        yield running


@pytest.fixture(scope="module")
def server(world):
    """The running ComfyUI; a module that needs another one overrides this."""
    return world.server


@pytest.fixture(scope="module")
def loaded(browser, server):
    """ComfyUI's page, loaded once for a module because that takes seconds; see `page`."""
    ask(server, "/api/settings/Comfy.TutorialCompleted", True)
    opened = browser.new_page(viewport={"width": 1600, "height": 900})
    opened.errors, opened.console_errors = [], []
    opened.set_default_timeout(PATIENCE)
    opened.on("pageerror", lambda error: opened.errors.append(f"{error}\n{error.stack}"))
    opened.on("console", lambda message: opened.console_errors.append(message.text) if message.type == "error" else None)
    opened.goto(server.address)
    opened.wait_for_function(LOADED)
    opened.locator(TAB).wait_for()
    return opened


@pytest.fixture
def page(loaded):
    """ComfyUI's page. Its `errors` are what its scripts threw; one of the pack's scripts in them fails the test."""
    yield loaded
    assert not [error for error in loaded.errors + loaded.console_errors if "/extensions/hyper-sd/" in error]


@pytest.fixture(scope="session")
def screenshot(tmp_path_factory):
    """Keeps a picture of the page: in pytest's folder, and in the one HYPER_SD_ARTIFACTS names."""
    folders = [tmp_path_factory.mktemp("page"), *filter(None, [os.environ.get("HYPER_SD_ARTIFACTS")])]

    def keep(page, name: str) -> None:
        for folder in map(Path, folders):
            folder.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=folder / f"{name}.png")

    return keep


@pytest.fixture(autouse=True)
def inference_mode():
    """The host runs nodes under torch.inference_mode()."""
    with torch.inference_mode():
        yield


@pytest.fixture
def unet(host):
    """A small SD1.5-type model, epsilon prediction."""
    return host.small_unet()


@pytest.fixture
def positive(host):
    """The conditioning that stands for the prompt."""
    return host.conditioning(seed=1)


@pytest.fixture
def negative(host):
    """The conditioning that stands for the negative prompt."""
    return host.conditioning(seed=2)


@pytest.fixture(scope="session")
def demo(host, pack):
    """(MODEL, CLIP, VAE) of the embedded model."""
    if not host.demo_checkpoint().is_file():
        pytest.skip("the embedded model's weights are not in demo/model")
    with torch.inference_mode():
        return pack["HyperSDDemoModel"].execute().args


@pytest.fixture
def draws(monkeypatch):
    """The step noise, in the order it is drawn."""
    from hyper_sd.samplers import tcd

    drawn, original = [], tcd.noise_ahead

    @contextmanager
    def recording(*arguments):
        with original(*arguments) as noise_sampler:

            def record(*levels):
                drawn.append(noise_sampler(*levels))
                return drawn[-1]

            yield record

    monkeypatch.setattr(tcd, "noise_ahead", recording)
    return drawn


@pytest.fixture
def worlds(host):
    """lora_world.py of this folder, which imports the host."""
    import importlib

    return importlib.import_module("hyper_sd.tests.nodes.lora_world")


@pytest.fixture
def loras(comfyui_path, host, tmp_path):
    """A loras folder of the host that is empty but for what a test puts there."""
    import folder_paths

    before = folder_paths.folder_names_and_paths["loras"]
    folder_paths.folder_names_and_paths["loras"] = ([str(tmp_path)], before[1])
    folder_paths.filename_list_cache.pop("loras", None)
    yield tmp_path
    folder_paths.folder_names_and_paths["loras"] = before
    folder_paths.filename_list_cache.pop("loras", None)


@pytest.fixture
def own(worlds, loras, unet):
    """(file name, tensors) of a LoRA for the small UNet."""
    tensors = worlds.small_lora(unet)
    return worlds.write(loras / "own.safetensors", tensors), tensors
