"""`python install.py download`, as a program, against a loopback hub."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hyper_sd.demo.fetch_models import model_folders, progress_line
from hyper_sd.models.catalog import HEADINGS, load_catalog
from hyper_sd.models.files import UNVERIFIED
from hyper_sd.models.progress import Progress, State
from hyper_sd.models.search import MORE, SIZE_UNKNOWN
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


def with_hash(tmp_path, **changes):
    """Writes the file's hash and other changes into its entry, and returns the catalogue's path."""
    path = tmp_path / "catalog.json"
    catalog = json.loads(path.read_text(encoding="utf-8"))
    catalog["entries"][0] |= {"sha256": hashlib.sha256(lora_bytes(MIB)).hexdigest(), **changes}
    path.write_text(json.dumps(catalog), encoding="utf-8")
    return path


def run(*arguments, **environment):
    command = [sys.executable, str(ROOT / "install.py"), "download", *map(str, arguments)]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60, check=False, env=env)


def test_download_puts_the_file_where_it_is_told(hub, tmp_path):
    result = run("mine", "--catalog", tmp_path / "catalog.json", "--into", tmp_path / "loras", HF_ENDPOINT=hub.endpoint)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "loras" / "mine.safetensors").read_bytes() == lora_bytes(MIB)
    assert f"mine.safetensors: whole, {tmp_path / 'loras' / 'mine.safetensors'}\n{UNVERIFIED}" in result.stdout
    assert "came from a mirror" in result.stderr


def test_download_with_a_hash_is_called_verified(hub, tmp_path):
    catalog = with_hash(tmp_path)
    result = run("mine", "--catalog", catalog, "--into", tmp_path / "loras", HF_ENDPOINT=hub.endpoint)
    assert "mine.safetensors: whole and verified" in result.stdout
    assert UNVERIFIED not in result.stdout + result.stderr


def test_list_shows_every_entry_with_its_state(hub, tmp_path):
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "mine.safetensors").write_bytes(lora_bytes(MIB))
    lines = run("--list", "--catalog", tmp_path / "catalog.json", "--into", tmp_path / "loras").stdout.splitlines()
    states = columns_of(lines)
    assert len(states) == len(load_catalog()) + 1
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


@pytest.fixture
def comfyui(tmp_path, comfyui_folder):
    """A folder that looks like a ComfyUI."""
    return comfyui_folder(tmp_path / "ComfyUI")


@pytest.fixture
def webui(tmp_path):
    """A folder that looks like an A1111."""
    (tmp_path / "webui" / "modules").mkdir(parents=True)
    return tmp_path / "webui"


def test_host_is_found_by_the_folder_around_the_pack(tmp_path, comfyui, webui):
    def names(kind, root):
        return [folder.relative_to(tmp_path).as_posix() for folder in model_folders(kind, root=root, home=tmp_path / "nobody")]

    assert names("loras", comfyui / "custom_nodes" / "hyper-sd") == ["ComfyUI/models/loras"]
    older = ["ComfyUI/models/diffusion_models", "ComfyUI/models/unet"]
    assert names("diffusion_models", comfyui / "custom_nodes" / "hyper-sd") == older
    root = webui / "extensions" / "hyper-sd"
    assert names("loras", root) == ["webui/models/Lora"]
    assert names("checkpoints", root) == ["webui/models/Stable-diffusion"]
    assert names("diffusion_models", root) == ["webui/models/diffusion_models"]
    (webui / "modules_forge").mkdir()
    assert names("diffusion_models", root) == ["webui/models/diffusion_models", "webui/models/Stable-diffusion"]


def test_data_folder_of_a_webui_is_its_host(tmp_path):
    (tmp_path / "data" / "models" / "Stable-diffusion").mkdir(parents=True)
    root = tmp_path / "data" / "extensions" / "hyper-sd"
    assert model_folders("loras", root=root, home=tmp_path / "nobody") == [tmp_path / "data" / "models" / "Lora"]


def test_no_host_has_no_folders(tmp_path):
    assert model_folders("loras", root=tmp_path / "a" / "b", home=tmp_path) == []


def copied(folder):
    """Copies what install.py download needs of the pack into a host's folder, and returns its install.py."""
    left_out = shutil.ignore_patterns("__pycache__", "model", "recipe", "style")
    for name in ("demo", "models", "samplers", "evaluation"):
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    for name in ("install.py", "errors.py", "disk.py", "host_version.py", "requirements.txt"):
        shutil.copy(ROOT / name, folder / name)
    return folder / "install.py"


def run_in(folder, *arguments, **environment):
    """Runs install.py download of a copy of the pack, for a person with no ComfyUI at home."""
    command = [sys.executable, str(copied(folder)), "download", *map(str, arguments)]
    home = {"HOME": str(folder), "USERPROFILE": str(folder)}
    env = {**{k: v for k, v in os.environ.items() if k != "COMFYUI_PATH"}, **home, **environment}
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60, check=False, env=env)


def states_in(result):
    """Returns the state column of a list by id."""
    assert result.returncode == 0, result.stderr
    return columns_of(result.stdout.splitlines())


def columns_of(lines):
    """Returns the state column by id."""
    return {line[2:38].strip(): line[49:57].strip() for line in lines if line.startswith("  ")}


def headings_of(result):
    """Returns what stands over the groups of a list."""
    return [line for line in result.stdout.splitlines() if line and not line.startswith(" ")]


def test_list_shows_other_methods_below_the_own_files_and_no_size_of_nothing(tmp_path):
    result = run("--list", "--into", tmp_path)
    assert headings_of(result)[:4] == ["SD1.5", f"SD1.5, {MORE}", "SDXL", f"SDXL, {MORE}"]
    assert " 0 B" not in result.stdout
    (tcd,) = [line for line in result.stdout.splitlines() if "tcd-sd15-lora" in line]
    assert tcd.endswith(SIZE_UNKNOWN)


def test_list_is_searched_by_the_words_after_it(tmp_path):
    assert list(states_in(run("--list", "lightning", "4", "--into", tmp_path))) == ["sdxl-lightning-4step-lora"]
    result = run("--list", "zebra", "--into", tmp_path)
    assert result.returncode == 1
    assert "Nothing found for 'zebra'" in result.stderr


def test_list_outside_a_host_shows_everything_without_a_state(tmp_path):
    result = run_in(tmp_path / "pack", "--list")
    assert states_in(result) == dict.fromkeys((entry.id for entry in load_catalog()), "-")
    assert [heading for heading in headings_of(result) if MORE not in heading] == [*HEADINGS.values()]


def test_download_outside_a_host_asks_for_a_folder(tmp_path):
    result = run_in(tmp_path / "pack", "hyper-sdxl-1step-unet")
    assert result.returncode == 1
    assert "--into FOLDER" in result.stderr


@pytest.mark.parametrize(
    ("pack", "unet"), [("extensions", "webui/models/diffusion_models"), ("custom_nodes", "ComfyUI/models/diffusion_models")]
)
def test_lone_unet_goes_where_the_hosts_own_page_looks_for_it(hub, tmp_path, comfyui, webui, pack, unet):
    catalog = with_hash(tmp_path, kind="unet")
    folder = (webui if pack == "extensions" else comfyui) / pack / "hyper-sd"
    result = run_in(folder, "mine", "--catalog", catalog, HF_ENDPOINT=hub.endpoint)
    assert result.returncode == 0, result.stderr
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("mine.safetensors")] == [
        f"{unet}/mine.safetensors"
    ]
    shutil.rmtree(folder)
    states = states_in(run_in(folder, "--list", "--catalog", catalog))
    assert {entry for entry, state in states.items() if state == "ready"} == {"mine"}


def test_progress_line_shows_share_rate_and_time_left():
    entry = load_catalog().get("hyper-sdxl-8steps-lora")
    line = progress_line(entry, Progress(State.DOWNLOADING, 393_500_000, 787_000_000, 12_000_000.0, 33.0))
    assert line == f"{entry.name} [############............] 50 % of 787 MB  12 MB/s  33 s left"
    line = progress_line(entry, Progress(State.VERIFYING, 787_000_000, 787_000_000))
    assert line.endswith("100 % of 787 MB  verifying")
