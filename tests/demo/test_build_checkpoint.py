"""`python install.py bake` and `build`, as programs."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hyper_sd.demo import build_checkpoint
from hyper_sd.demo.build_checkpoint import find_file
from hyper_sd.demo.errors import DemoError
from hyper_sd.tests.models import bake_world as world
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small SD1.5 checkpoint, and a LoRA of which one layer has no place."""
    folder = tmp_path_factory.mktemp("bake")
    world.write_base(folder / "base.safetensors", "sd15")
    held = world.lora(world.layers("sd15"))[0]
    held |= {name.replace("conv_in", "other"): t.clone() for name, t in held.items() if "conv_in" in name}
    save_file(held, folder / "style.safetensors")
    return folder


def command(*arguments):
    return [sys.executable, str(ROOT / "install.py"), *map(str, arguments)]


def run(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True, encoding="utf-8", timeout=120, check=False)


def test_bake_writes_beside_the_checkpoint_and_says_what_is_left_out(folder):
    result = run("bake", folder / "base.safetensors", folder / "style.safetensors", "--strength", "0.8", "--out", "mixed")
    assert result.returncode == 0, result.stderr
    new = load_file(folder / "mixed.safetensors")
    assert new.keys() == load_file(folder / "base.safetensors").keys()
    count = len(world.layers("sd15"))
    lines = result.stdout.splitlines()
    assert f"{folder / 'mixed.safetensors'}: built and read back." in lines[-3]
    assert lines[-2].startswith(f"{count} of {count + 1} modules matched")
    assert lines[-1] == "  not in the new checkpoint: lora_unet_other"
    (folder / "mixed.safetensors").unlink()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--strength", "x"), 2, "strength must be a number, got 'x'; 1 is as the LoRA was made"),
        (("--strength", "1e9"), 1, "lower the strength"),
        (("--out", "base"), 1, "base.safetensors is there already, and is not overwritten"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(folder, arguments, code, said):
    result = run("bake", folder / "base.safetensors", folder / "style.safetensors", "--out", "mixed", *arguments)
    assert result.returncode == code
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["base.safetensors", "style.safetensors"]


def test_a_killed_bake_leaves_nothing_under_the_name_and_the_next_one_works(tmp_path):
    base = world.write_base(tmp_path / "base.safetensors", "sdxl")
    lora = world.write_lora(tmp_path / "lora.safetensors", world.layers("sdxl"))
    part, target = tmp_path / "new.safetensors.part", tmp_path / "new.safetensors"
    with subprocess.Popen(command("bake", base, lora, "--out", "new"), stdout=subprocess.DEVNULL) as running:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and running.poll() is None and not (part.exists() and part.stat().st_size > 2**20):
            time.sleep(0.005)
        running.kill()
    assert not target.exists()
    assert part.stat().st_size > 2**20
    assert run("bake", base, lora, "--out", "new").returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.safetensors", "lora.safetensors", "new.safetensors"]


def test_build_refuses_what_is_no_lone_unet(folder):
    result = run("build", folder / "base.safetensors", folder / "style.safetensors", "--out", "full")
    assert result.returncode == 1
    assert "style.safetensors is a LoRA, not an SDXL UNet" in result.stderr
    assert "nor below" not in result.stderr


def test_files_are_found_by_their_names_in_the_hosts_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(build_checkpoint, "model_folders", lambda kind: [tmp_path / kind])
    for name in ("a.safetensors", "below/b.safetensors", "below/a.safetensors"):
        (tmp_path / "loras" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "loras" / name).write_bytes(b"x")
    assert find_file("B.safetensors", "loras") == tmp_path / "loras" / "below" / "b.safetensors"
    assert find_file(str(tmp_path / "loras" / "a.safetensors"), "loras") == tmp_path / "loras" / "a.safetensors"
    with pytest.raises(DemoError, match="is there 2 times; give the path"):
        find_file("a.safetensors", "loras")
    with pytest.raises(DemoError, match=r"c\.safetensors is neither here nor below"):
        find_file("c.safetensors", "loras")
    with pytest.raises(DemoError, match="is neither here"):
        find_file(f"below{os.sep}b.safetensors", "loras")
    monkeypatch.setattr(build_checkpoint, "model_folders", lambda kind: [])
    with pytest.raises(DemoError, match=r"d\.safetensors is not here; give the path"):
        find_file("d.safetensors", "loras")


def test_a_python_without_the_packages_is_told(monkeypatch):
    monkeypatch.setattr(build_checkpoint.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DemoError, match=r"has no torch and no filelock\. Use the host's own Python"):
        build_checkpoint._require("torch", "filelock")
