"""A stub host for every test here, with the extension loaded into it through door 2."""

import functools
import importlib
import importlib.util
import json
import sys
import types
from collections import deque
from collections.abc import Iterator

import pytest
from hyper_sd.models.download import open_hub_file
from hyper_sd.models.entry import write_entry
from hyper_sd.models.jobs import Downloads, user_catalog
from hyper_sd.tests.webui_extension import fake_gradio
from hyper_sd.tests.webui_extension.lora_files import known_by_content
from hyper_sd.tests.webui_extension.sorting_jobs import SHARES
from hyper_sd.tests.webui_extension.stub_gallery import noisy
from hyper_sd.tests.webui_extension.stub_host import StubHost
from hyper_sd.tests.webui_extension.stub_run import load_extension

STRICT = {"title": "Test licence: <no> commercial use", "url": "https://huggingface.co/tests/strict", "acknowledge": True}


@pytest.fixture
def make_host(tmp_path) -> Iterator:
    """Starts hosts; the newest is in sys.modules, and after the test none."""
    hosts = []

    def make(**given) -> StubHost:
        host = StubHost(tmp_path, **given)
        host.start()
        hosts.append(host)
        load_extension(host)
        return host

    yield make
    for host in reversed(hosts):
        host.close()


@pytest.fixture
def host(make_host) -> StubHost:
    """AUTOMATIC1111."""
    return make_host()


@pytest.fixture
def renamed(host) -> str:
    """The tag of the released 8-step LoRA for guidance, in small; its file has another name and folder."""
    settings = {"grid": "trailing", "eta": 0.0, "cfg": 5.0}
    row = {"id": "small-cfg", "kind": "cfg", "steps": 8, "num_segments": 8, "settings": settings}
    return known_by_content(host, "favourite", file="small-8steps-CFG-lora.safetensors", **row)


@pytest.fixture
def flash(host) -> str:
    """The tag of a LoRA of another method, in small; its file has another name and folder."""
    row = {"id": "small-flash", "kind": "other", "steps": 4, "recipe": "flash"}
    return known_by_content(host, "quick", file="x.safetensors", **row)


@pytest.fixture
def k_diffusion(monkeypatch) -> types.ModuleType:
    """k-diffusion's own denoisers, without the packages that the rest of it would import."""
    pytest.importorskip("torchsde")
    pytest.importorskip("torchdiffeq")
    found = importlib.util.find_spec("k_diffusion")
    if found is None:
        pytest.skip("k-diffusion is not installed; pip install --no-deps k-diffusion torchdiffeq")
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(found.submodule_search_locations)
    monkeypatch.setitem(sys.modules, "k_diffusion", package)
    return importlib.import_module("k_diffusion.external")


@pytest.fixture
def pictures():
    """Six, from clean to mostly noise."""
    return noisy(SHARES)


@pytest.fixture
def downloads(world, tmp_path):
    """The downloads of a host with two free files and one whose licence asks for a yes."""
    entries = []
    for name in ("one", "two", "strict"):
        world.hub.add(world.entry.repo, f"{name}.safetensors", world.content)
        entry = {**write_entry(world.entry), "id": name, "title": f"Test <{name}>", "file": f"{name}.safetensors"}
        entries.append({**entry, "licence": "strict" if name == "strict" else "unknown"})
    user_file = user_catalog(tmp_path)
    user_file.parent.mkdir()
    user_file.write_text(json.dumps({"licences": {"strict": STRICT}, "entries": entries}), encoding="utf-8")
    opener = functools.partial(open_hub_file, endpoint=world.hub.endpoint)
    running = Downloads(lambda kind: [tmp_path / kind], user_file, opener=opener)
    yield running
    for row in running.active():
        running.cancel(row.id)
        deque(running.follow(row.id), maxlen=0)


@pytest.fixture(params=fake_gradio.VERSIONS)
def tab(request, monkeypatch, downloads, tmp_path):
    """The tab's module and its components on a gradio of that version."""
    host_models = types.ModuleType("host_models")
    host_models.DOWNLOADS, host_models.model_folders = downloads, lambda kind: [tmp_path / kind]
    host_models.refresh_lists = lambda: None
    package = "hyper_sd.webui_extension"
    for name, module in {**fake_gradio.modules(request.param), f"{package}.host_models": host_models}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys.modules[package], "host_models", host_models, raising=False)
    with_gradio = [f"{package}.{name}" for name in ("downloads_tab", "model_list")]
    for name in with_gradio:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(fake_gradio.Component, "made", [])
    module = importlib.import_module(f"{package}.downloads_tab")
    yield module, fake_gradio.Component.made
    for name in with_gradio:
        sys.modules.pop(name, None)
