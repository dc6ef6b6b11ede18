"""A real ComfyUI inside the test process: its own classes, small seeded models, no stand-ins."""

import asyncio
import importlib
import os
import sys
from pathlib import Path

import pytest
import torch

HELP = "set COMFYUI_PATH to a ComfyUI folder, or run python install.py test"


@pytest.fixture(scope="session")
def comfyui_path() -> Path:
    """The ComfyUI under test."""
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        pytest.skip(HELP)
    assert (Path(path) / "main.py").is_file(), f"COMFYUI_PATH={path} holds no main.py; {HELP}"
    return Path(path).resolve()


@pytest.fixture(scope="session")
def host(comfyui_path):
    """host.py of this folder: the host's nodes, small models, and the pack loaded as the host loads it."""
    sys.path.insert(0, str(comfyui_path))
    import comfy.options  # noqa: F401 - the host's arguments stay at their defaults instead of reading pytest's
    import utils.extra_config  # noqa: F401 - first, as in main.py: nodes.py puts comfy/utils.py before this package
    from comfy.cli_args import args

    args.cpu = True
    module = importlib.import_module("hyper_sd.tests.nodes.host")
    with torch.inference_mode():
        module.load_pack()
    yield module
    sys.path.remove(str(comfyui_path))


@pytest.fixture(scope="session")
def pack(host):
    """The pack's node classes by id."""
    from hyper_sd.nodes.extension import HyperSDExtension

    return {node.define_schema().node_id: node for node in asyncio.run(HyperSDExtension().get_node_list())}


@pytest.fixture(scope="session")
def world(comfyui_path, tmp_path_factory):
    """A running ComfyUI with a hub and a catalogue of its own, see model_world.py."""
    pytest.importorskip("aiohttp", reason="ComfyUI's own requirement")
    from hyper_sd.tests.nodes.model_world import ModelWorld

    with ModelWorld(comfyui_path, tmp_path_factory.mktemp("models")) as running:
        yield running


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

    drawn, original = [], tcd.seeded_noise

    def recording(*arguments):
        draw = original(*arguments)

        def record(*levels):
            drawn.append(draw(*levels))
            return drawn[-1]

        return record

    monkeypatch.setattr(tcd, "seeded_noise", recording)
    return drawn
