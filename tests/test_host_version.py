"""A ComfyUI that is too old is refused while the pack is loaded, and every page states the same oldest version."""

import importlib.util
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hyper_sd.errors import HyperSDError
from hyper_sd.host_version import MINIMUM, is_too_old, version_in

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "README.zh-CN.md", "docs/comfyui.md")


@pytest.fixture
def load_door(monkeypatch):
    """Loads the pack's __init__.py in a program whose ComfyUI has the given version."""
    name = "door_of_a_host"

    def load(version):
        monkeypatch.setitem(sys.modules, "comfyui_version", SimpleNamespace(__version__=version))
        spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    for loaded in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[loaded]


@pytest.mark.parametrize("version", ["0.3.13", "0.3.48", "0.3.58", "v0.2.9"])
def test_old_host_ends_with_found_and_needed_version_and_what_to_do(load_door, version):
    with pytest.raises(Exception) as refused:  # noqa: PT011 - a HyperSDError, of the copy of the pack that was loaded
        load_door(version)
    expected = f"Hyper-SD needs ComfyUI {MINIMUM} or newer, this is ComfyUI {version}; update ComfyUI, then start it again."
    assert (type(refused.value).__name__, str(refused.value)) == (HyperSDError.__name__, expected)


@pytest.mark.parametrize("version", [MINIMUM, "0.3.60", "0.10.0", "1.0.0", "nightly"])
def test_new_host_and_one_without_numbers_load_the_pack(load_door, version):
    assert callable(load_door(version).comfy_entrypoint)


def test_version_of_the_host_under_test_is_read_and_new_enough(comfyui_path):
    assert re.fullmatch(r"\d+\.\d+\.\d+", version_in(comfyui_path))
    assert not is_too_old(version_in(comfyui_path))


def test_folder_that_states_no_version_has_none(tmp_path):
    assert version_in(tmp_path) == ""
    (tmp_path / "comfyui_version.py").write_text("# nothing\n", encoding="utf-8")
    assert version_in(tmp_path) == ""


def test_oldest_host_is_the_same_in_the_project_file_and_on_every_page():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r'requires-comfyui = "(.*)"', project) == [f">={MINIMUM}"]
    for page in PAGES:
        assert re.findall(r"ComfyUI (\d+\.\d+\.\d+)", (ROOT / page).read_text(encoding="utf-8")) == [MINIMUM], page
