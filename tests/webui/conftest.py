"""A real WebUI of the A1111 family with this pack in it; without one every test here is skipped by name."""

import os
from pathlib import Path

import pytest
from hyper_sd.tests.conftest import host_folder


@pytest.fixture(scope="session")
def webui_path() -> Path:
    """The checkout under test."""
    remedy = "set A1111_PATH to the folder of a WebUI that starts, or run python install.py test --webui PATH"
    return host_folder("A1111_PATH", "launch.py", remedy)


@pytest.fixture(scope="session")
def webui(webui_path, tmp_path_factory):
    """A running host with small random models."""
    pytest.importorskip("diffusers", reason="the tests' checkpoints are made by diffusers")
    from hyper_sd.tests.webui.webui_host import WebUI, default_python, prepare

    data = tmp_path_factory.mktemp("webui")
    host = WebUI(webui_path, data, os.environ.get("A1111_PYTHON") or default_python(webui_path))
    prepare(data, webui_path)
    with host:
        yield host
    (data / "models" / "Stable-diffusion" / "tiny.safetensors").unlink()  # pytest keeps its folders; this one may be 600 MB


@pytest.fixture
def page(browser, webui):
    """The page, freshly loaded."""
    from hyper_sd.tests.webui.browser_page import open_page

    opened = browser.new_page(viewport={"width": 1400, "height": 1000})
    opened.set_default_timeout(60_000)
    open_page(opened, webui)
    yield opened
    opened.close()


@pytest.fixture
def with_yaml(webui):
    """The host, where it reads a checkpoint's shape and prediction from a yaml; the Forge family does not."""
    if not webui.reads_yaml:
        pytest.skip("this host reads no yaml, so there is no small v-prediction checkpoint for it")
    return webui


@pytest.fixture
def with_schedule_types(webui):
    """The host, where an image has a schedule type."""
    if not webui.has_schedule_types:
        pytest.skip("this host has no schedule types")
    return webui


@pytest.fixture(scope="session")
def hires(webui) -> dict:
    """A request's part for a hires pass, in the words of the host."""
    hires = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "hr_second_pass_steps": 2, "denoising_strength": 0.5}
    return hires | ({"hr_additional_modules": ["Use same choices"]} if webui.takes("hr_additional_modules") else {})


@pytest.fixture(scope="module")
def pasting(webui):
    """The host, where its API takes an infotext; Forge's own answers any with "isinstance() argument 2 ..."."""
    from hyper_sd.tests.webui.webui_host import WebUIError

    try:
        webui.ask("/sdapi/v1/txt2img", {"infotext": "red apple\nSteps: 1, Sampler: Euler, CFG scale: 1, Seed: 1, Size: 64x64"})
    except WebUIError as error:
        if "isinstance()" not in str(error):
            raise
        pytest.skip("this host's API fails on every infotext; test_page.py pastes one into its page")
    return webui
