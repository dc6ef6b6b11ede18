"""The wheel, built from what git tracks: every file of every room is in it, and works where only the wheel is."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import pytest
from hyper_sd.tests.repository import FILES, ROOT

LEFT_OUT = {"tests", "scripts", "examples"}  # folders of modules that a checkout alone has
HOSTS = {"nodes", "webui_extension"}  # rooms that cannot be imported without their host
DATA = (
    "localizations/*.json", "models/*.json", "training/launch/*.toml", "demo/model/*", "demo/model/tokenizer/*",
    "evaluation/*.json", "evaluation/compare_page/*",
)  # fmt: skip
EXTRAS = {"kornia", "resvg_py", "tokenizers", "diffusers", "transformers", "accelerate", "tomli", "matplotlib", "sklearn"}
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
IMPORT = """
import importlib, json, sys
files, missing = {}, {}
for name in sys.argv[1:]:
    try:
        files[name] = importlib.import_module(name).__file__
    except ModuleNotFoundError as error:
        missing[name] = error.name
print(json.dumps([files, missing]))
"""


def expected(files: Iterable[PurePosixPath] = FILES) -> set[str]:
    """Returns the names that a wheel of these files has in its folder hyper_sd: the modules, and what they read."""
    modules = {str(path) for path in files if path.suffix == ".py" and path.parts[0] not in LEFT_OUT}
    return modules | {str(path) for path in files if any(path.match(pattern) for pattern in DATA)}


def build_wheel(folder: Path, left_out: str = "") -> Path:
    """Builds a wheel from a copy of the repository, as pip would do, and returns its file.

    Args:
        folder: an empty one, for the copy and the wheel.
        left_out: a package that the copy's pyproject.toml does not name.
    """
    source, target = folder / "source", folder / "wheel"
    target.mkdir()
    for path in FILES:
        if path.parts[0] != "tests":
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, source / path)
    if left_out:
        project = source / "pyproject.toml"
        before, after = project.read_text(encoding="utf-8").split("packages = [")
        listed, after = after.split("]", 1)
        listed, count = re.subn(rf'"{re.escape(left_out)}",?\s*', "", listed)
        assert count == 1
        project.write_text(f"{before}packages = [{listed}]{after}", encoding="utf-8")
    command = [sys.executable, "-c", BUILD, str(target)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    shutil.rmtree(source)
    (wheel,) = target.iterdir()
    return wheel


def names_in(wheel: Path) -> set[str]:
    """Returns the names in a wheel's folder hyper_sd."""
    with zipfile.ZipFile(wheel) as archive:
        return {name.removeprefix("hyper_sd/") for name in archive.namelist() if name.startswith("hyper_sd/")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this repository."""
    pytest.importorskip("setuptools", minversion="70.1", reason="the first that builds wheels by itself")
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def elsewhere(wheel, tmp_path_factory):
    """Runs Python in an empty folder, where the wheel is installed and the repository is not."""
    site, empty = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("empty")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)

    def run(*arguments: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, timeout=600, check=False)

    run.site = site
    return run


def test_wheel_holds_every_module_of_every_room_and_what_they_read(wheel):
    assert {"training/launch/example.toml", "models/catalog.json", "nodes/training/train_lora.py"} <= expected()
    assert names_in(wheel) == expected()


@pytest.mark.parametrize("room", ["training/launch", "nodes/training"])
def test_room_that_is_not_named_is_missing(tmp_path, room):
    pytest.importorskip("setuptools", minversion="70.1")
    broken = build_wheel(tmp_path, left_out="hyper_sd." + room.replace("/", "."))
    assert {str(PurePosixPath(name).parent) for name in expected() - names_in(broken)} == {room}


def test_every_module_that_needs_no_host_is_imported_from_the_wheel(elsewhere):
    paths = [PurePosixPath(name) for name in sorted(expected()) if name.endswith(".py") and name != "install.py"]
    names = [".".join(["hyper_sd", *path.with_suffix("").parts]) for path in paths if path.parts[0] not in HOSTS]
    names = [name.removesuffix(".__init__") for name in names]
    assert {"hyper_sd", "hyper_sd.disk", "hyper_sd.training.objectives.tscd", "hyper_sd.training.launch.__main__"} <= set(names)
    done = elsewhere("-c", IMPORT, *names)
    assert done.returncode == 0, done.stderr[-3000:]
    files, missing = json.loads(done.stdout.splitlines()[-1])
    assert set(missing.values()) <= EXTRAS, missing
    assert not {name for name in missing if not name.startswith(("hyper_sd.demo.recipe.", "hyper_sd.benchmarks."))}
    assert set(files) | set(missing) == set(names)
    assert {name for name, file in files.items() if not Path(file).is_relative_to(elsewhere.site)} == set()


def test_training_is_launched_from_the_wheel(elsewhere):
    done = elsewhere("-m", "hyper_sd.training.launch", "--help")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "usage: " in done.stdout
