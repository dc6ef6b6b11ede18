"""`python install.py download`, as a program, against a loopback hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hyper_sd.demo.errors import DemoError
from hyper_sd.demo.fetch_models import models_folder, progress_line
from hyper_sd.models.catalog import load_catalog
from hyper_sd.models.files import Progress, State
from hyper_sd.tests.models.loopback_hub import LoopbackHub
from hyper_sd.tests.models.world import MIB, lora_bytes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def hub(tmp_path):
    """A hub with one file and the catalogue entry for it."""
    with LoopbackHub() as hub:
        hub.add("me/models", "mine.safetensors", lora_bytes(MIB))
        entry = {"id": "mine", "family": "sdxl", "kind": "n-step", "steps": 4, "repo": "me/models", "file": "mine.safetensors"}
        (tmp_path / "catalog.json").write_text(json.dumps({"entries": [entry]}), encoding="utf-8")
        yield hub


def run(*arguments, **environment):
    command = [sys.executable, str(ROOT / "install.py"), "download", *map(str, arguments)]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60, check=False, env=env)


def test_download_puts_the_file_where_it_is_told(hub, tmp_path):
    result = run("mine", "--catalog", tmp_path / "catalog.json", "--into", tmp_path / "loras", HF_ENDPOINT=hub.endpoint)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "loras" / "mine.safetensors").read_bytes() == lora_bytes(MIB)
    assert "mine.safetensors: whole and verified" in result.stdout


def test_list_shows_every_entry_with_its_state(hub, tmp_path):
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "mine.safetensors").write_bytes(lora_bytes(MIB))
    lines = run("--list", "--catalog", tmp_path / "catalog.json", "--into", tmp_path / "loras").stdout.splitlines()
    states = {line.split()[0]: line.split()[3] for line in lines if line.startswith("  ")}
    assert len(states) == 20
    assert {name for name, state in states.items() if state == "ready"} == {"mine"}
    assert set(states.values()) == {"ready", "missing"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--list shows them"),
        (("hyper-sdxl-8step-lora",), "did you mean hyper-sdxl-8steps-lora"),
        (("hyper-flux1-dev-8steps-lora",), "--accept-licence"),
        (("../x",), "has no '../x'"),
    ],
)
def test_wrong_request_says_what_to_do_and_asks_nobody(hub, tmp_path, arguments, said):
    result = run(*arguments, "--into", tmp_path / "loras", HF_ENDPOINT=hub.endpoint)
    assert result.returncode == 1
    assert said in result.stderr
    assert hub.requests == []
    assert not (tmp_path / "loras").exists()


def test_list_needs_no_installed_package(tmp_path):
    command = [sys.executable, "-S", str(ROOT / "install.py"), "download", "--list", "--into", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "hyper-sd15-1step-lora" in result.stdout, result.stderr


def test_host_is_found_by_the_folder_around_the_pack(tmp_path):
    comfyui = tmp_path / "ComfyUI"
    for part in ("comfy", "comfy_api/latest", "custom_nodes/hyper-sd"):
        (comfyui / part).mkdir(parents=True)
    for part in ("main.py", "nodes.py", "execution.py"):
        (comfyui / part).write_text("")
    found = models_folder("diffusion_models", root=comfyui / "custom_nodes" / "hyper-sd", home=tmp_path)
    assert found == comfyui / "models" / "diffusion_models"

    webui = tmp_path / "webui"
    (webui / "modules").mkdir(parents=True)
    root = webui / "extensions" / "hyper-sd"
    assert models_folder("loras", root=root, home=tmp_path / "nobody") == webui / "models" / "Lora"
    assert models_folder("checkpoints", root=root, home=tmp_path / "nobody") == webui / "models" / "Stable-diffusion"


def test_no_host_asks_for_a_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    with pytest.raises(DemoError, match="--into"):
        models_folder("loras", root=tmp_path / "a" / "b", home=tmp_path)


def test_progress_line_shows_share_rate_and_time_left():
    entry = load_catalog().get("hyper-sdxl-8steps-lora")
    line = progress_line(entry, Progress(State.DOWNLOADING, 393_500_000, 787_000_000, 12_000_000.0, 33.0))
    assert line == f"{entry.name} [############............] 50 % of 787 MB  12 MB/s  0:33 left"
    line = progress_line(entry, Progress(State.VERIFYING, 787_000_000, 787_000_000))
    assert line.endswith("100 % of 787 MB  verifying")
