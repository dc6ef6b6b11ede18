"""A stub host for every test here, with the extension loaded into it through door 2."""

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator

import pytest
from hyper_sd.tests.webui_extension.sorting_jobs import SHARES
from hyper_sd.tests.webui_extension.stub_gallery import noisy
from hyper_sd.tests.webui_extension.stub_host import StubHost
from hyper_sd.tests.webui_extension.stub_run import load_extension


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
