"""Small stand-ins on disk: folders shaped like a ComfyUI, safetensors files with real headers."""

import json
import struct
from pathlib import Path

import pytest
from hyper_sd.host_version import MINIMUM


def make_comfyui(folder: Path, version: str = MINIMUM) -> Path:
    """Makes a folder shaped like a ComfyUI; one of before January 2025, with version "", states none."""
    (folder / "comfy").mkdir(parents=True)
    if version:
        (folder / "comfyui_version.py").write_text(f'# made\n__version__ = "{version}"\n', encoding="utf-8")
    for name in ("main.py", "nodes.py", "execution.py"):
        (folder / name).write_text("", encoding="utf-8")
    return folder


def write_safetensors(path: Path, keys: list[str], cut: int = 0) -> Path:
    """Writes a file of 4-byte tensors, its last `cut` bytes missing."""
    header = {key: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i, key in enumerate(keys)}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(4 * len(keys))
    path.write_bytes(content[: len(content) - cut])
    return path


@pytest.fixture
def comfyui_folder():
    return make_comfyui


@pytest.fixture
def safetensors_file():
    return write_safetensors


@pytest.fixture(autouse=True)
def no_comfyui_of_the_user(monkeypatch, request):
    """The tests that look for a ComfyUI must not find the one under test."""
    if "real_comfyui" not in request.fixturenames:
        monkeypatch.delenv("COMFYUI_PATH", raising=False)
