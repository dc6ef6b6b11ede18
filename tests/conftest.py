"""Binds the repository root as the package `hyper_sd`, as both hosts do, and starts what several folders need."""

import asyncio
import importlib
import os
import shutil
import sys
import types
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # Forge's page waits long for a script it asks another host for
]  # fmt: skip

if "hyper_sd" not in sys.modules:
    package = types.ModuleType("hyper_sd")
    package.__path__ = [str(ROOT)]
    sys.modules["hyper_sd"] = package


def host_folder(variable: str, file: str, remedy: str) -> Path:
    """Returns the folder of a host that an environment variable names; without the variable the test is skipped.

    Args:
        variable: the environment variable.
        file: a file that every such folder has.
        remedy: what a person does so that these tests run.
    """
    path = os.environ.get(variable)
    if not path:
        pytest.skip(remedy)
    assert Path(path, file).is_file(), f"{variable}={path} holds no {file}; {remedy}"
    return Path(path).resolve()


@pytest.fixture(scope="session")
def comfyui_path() -> Path:
    """The ComfyUI under test."""
    return host_folder("COMFYUI_PATH", "main.py", "set COMFYUI_PATH to a ComfyUI folder, or run python install.py test")


@pytest.fixture(scope="session")
def host(comfyui_path):
    """A real ComfyUI in this process: tests/nodes/host.py has its nodes, small models, and the pack as ComfyUI loads it."""
    import torch

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


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window; every test is skipped where there is none.

    It lives for one module: while playwright runs, no other test of the process can run an event loop of its own.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="the page's tests drive a browser through playwright")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser found ({', '.join(BROWSERS)})")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=path, args=BROWSER_ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def reliability(request):
    """Holds a row of docs/reliability.md to what the test counted: tests/figures.py."""
    from hyper_sd.tests.figures import hold_row

    return partial(hold_row, test=request.path.relative_to(ROOT).as_posix())


@pytest.fixture
def transfer(monkeypatch) -> types.ModuleType:
    """models/transfer.py and the hub's client with waits too short to notice."""
    from huggingface_hub import constants
    from hyper_sd.models import transfer

    monkeypatch.setattr(transfer, "LONGEST_WAIT", 0.02)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    return transfer


@pytest.fixture
def world(tmp_path, transfer):
    """A loopback hub with one small LoRA, and a folder to download it into: tests/models/world.py."""
    from hyper_sd.models.catalog import load_catalog
    from hyper_sd.tests.models.loopback_hub import LoopbackHub
    from hyper_sd.tests.models.world import World, lora_bytes

    content = lora_bytes()
    with LoopbackHub() as hub:
        entry = load_catalog().get("hyper-sdxl-8steps-lora")
        sha256 = hub.add(entry.repo, entry.file, content)
        size = len(content)
        entry = replace(entry, sha256=sha256, size=size, approximate_size=size)
        yield World(hub, entry, content, tmp_path / "models" / "loras")
