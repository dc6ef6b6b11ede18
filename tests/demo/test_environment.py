import sys
import venv

import pytest
from hyper_sd.demo import environment, pip, torch_build
from hyper_sd.demo.errors import InstallError

REQUIREMENTS = ("numpy", "pillow")


def install_fake(folder, name, version, complete=True):
    """Puts a project's metadata into a virtual environment, as pip would."""
    python = environment.venv_python(folder)
    info = pip.site_packages(python)[0] / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    if complete:
        (info / "RECORD").write_text("", encoding="utf-8")
    return info


@pytest.fixture
def folder(tmp_path):
    """A virtual environment without pip, with torch's metadata."""
    venv.create(tmp_path / "venv", with_pip=False)
    install_fake(tmp_path / "venv", "torch", "2.13.0+cpu")
    return tmp_path / "venv"


@pytest.fixture
def installed(monkeypatch):
    """What install gives to pip, call by call, instead of installing it."""
    calls = []
    monkeypatch.setattr(environment, "make_venv", environment.venv_python)
    monkeypatch.setattr(environment, "pip_install", lambda python, arguments: calls.append(arguments))
    monkeypatch.setattr(environment, "repair_torchaudio", lambda python: None)
    return calls


def test_environment_is_complete_only_after_its_stamp(folder):
    assert not environment.is_complete("demo", REQUIREMENTS, folder)
    environment.write_stamp("demo", REQUIREMENTS, folder)
    assert environment.is_complete("demo", REQUIREMENTS, folder)
    assert not environment.is_complete("test", REQUIREMENTS, folder)


def test_second_command_keeps_the_stamp_of_the_first(folder):
    environment.write_stamp("demo", REQUIREMENTS, folder)
    environment.write_stamp("test", (*REQUIREMENTS, "pytest"), folder)
    assert environment.is_complete("demo", REQUIREMENTS, folder)


def test_changed_requirements_torch_or_python_make_it_incomplete(folder):
    environment.write_stamp("demo", REQUIREMENTS, folder)
    assert not environment.is_complete("demo", (*REQUIREMENTS, "av"), folder)
    (folder / "pyvenv.cfg").write_text("version = 3.99.0\n", encoding="utf-8")
    assert not environment.is_complete("demo", REQUIREMENTS, folder)
    environment.write_stamp("demo", REQUIREMENTS, folder)
    (info,) = pip.site_packages(environment.venv_python(folder))[0].glob("torch-*")
    info.rename(info.with_name("torch-2.14.0.dist-info"))
    (info.with_name("torch-2.14.0.dist-info") / "METADATA").write_text("Name: torch\nVersion: 2.14.0\n", encoding="utf-8")
    assert not environment.is_complete("demo", REQUIREMENTS, folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"demo": 1}'])
def test_damaged_stamp_counts_as_none(folder, content):
    (folder / environment.STAMP).write_text(content, encoding="utf-8")
    assert not environment.is_complete("demo", REQUIREMENTS, folder)


def test_half_installed_projects_are_forgotten(folder):
    half, whole = install_fake(folder, "av", "14.2.0", complete=False), install_fake(folder, "tqdm", "4.0")
    assert pip.remove_half_installed(environment.venv_python(folder)) == ["av-14.2.0.dist-info"]
    assert not half.exists()
    assert whole.exists()


def test_install_writes_the_stamp_last(folder, monkeypatch):
    def fail(*_):
        raise InstallError("no network")

    monkeypatch.setattr(environment, "make_venv", environment.venv_python)
    monkeypatch.setattr(environment, "pip_install", fail)
    with pytest.raises(InstallError, match="no network"):
        environment.install("demo", REQUIREMENTS, folder)
    assert environment.read_stamp(folder) == {}
    monkeypatch.setattr(environment, "pip_install", lambda *_: None)
    environment.install("demo", REQUIREMENTS, folder)
    assert environment.is_complete("demo", REQUIREMENTS, folder)


def test_own_comfyui_of_the_tests_gets_k_diffusion_without_what_it_asks_for(folder, installed):
    for command in ("demo", "test"):
        environment.install(command, REQUIREMENTS, folder)
    alone = [arguments for arguments in installed if "--no-deps" in arguments]
    assert [arguments[1:] for arguments in alone] == [["k-diffusion==0.1.1.post1"]]
    assert not [line for arguments in installed for line in arguments if "k-diffusion" in line and arguments[0] != "--no-deps"]


def test_locked_packages_are_installed_first_and_torch_brings_only_what_the_card_decides(folder, installed, monkeypatch):
    monkeypatch.setattr(environment, "pip_install_locked", lambda python, lines: installed.append(lines))
    locked = "numpy==2.4.6 --hash=sha256:" + "0" * 64
    environment.install("test", (locked, "torchaudio"), folder)
    assert installed == [[locked], ["torch==2.13.0+cpu", "torchaudio"]]
    assert environment.is_complete("test", (locked, "torchaudio"), folder)
    assert not environment.is_complete("test", (locked.replace("0" * 64, "1" * 64), "torchaudio"), folder)


@pytest.mark.parametrize("compiled", ["broken", "whole"])
def test_torchaudio_loses_its_compiled_part_only_where_that_does_not_load(folder, compiled):
    python = environment.venv_python(folder)
    package = pip.site_packages(python)[0] / "torchaudio"
    (package / "lib").mkdir(parents=True)
    library = package / "lib" / "_torchaudio.so"
    library.write_text(compiled, encoding="utf-8")
    (package / "functional.py").write_text("", encoding="utf-8")
    loads = f"from pathlib import Path\np = Path({str(library)!r})\nassert not p.exists() or p.read_text() == 'whole'\n"
    (package / "__init__.py").write_text(loads, encoding="utf-8")
    torch_build.repair_torchaudio(python)
    assert library.exists() == (compiled == "whole")


def test_torchaudio_that_does_not_import_says_what_to_do(folder):
    with pytest.raises(InstallError, match=r"torchaudio does not import .* pip install torch torchaudio"):
        torch_build.repair_torchaudio(environment.venv_python(folder))


def test_full_disk_is_refused_before_the_first_installation(tmp_path):
    with pytest.raises(InstallError, match=r"GB free, the first installation needs 1000000 GB; free some space"):
        torch_build.check_space(tmp_path, 10**6 * torch_build.GIB)


def test_torch_candidates_prefer_the_cpu_build_without_a_gpu():
    assert torch_build.torch_candidates(gpu=True) == ("torch",)
    assert torch_build.torch_candidates(gpu=False) == ("torch==2.13.0+cpu", "torch==2.13.0", "torch")


@pytest.mark.parametrize(
    ("torch_version", "first", "then"),
    [("2.13.0+cpu", "torchvision==0.28.0+cpu", "torchvision==0.16.2"), ("2.4.1", "torchvision==0.19.*", "torchvision==0.16.2")],
)
def test_torchvision_candidates_start_with_the_matching_release(torch_version, first, then):
    names = [arguments[-1] for arguments in torch_build.torchvision_candidates(torch_version)]
    assert names[0] == first
    assert then in names[1:]


def test_torch_falls_back_to_what_is_on_offer(folder, monkeypatch):
    asked = []

    def offers(python, arguments):
        asked.append(arguments[-1])
        return arguments[-1] == "torch==2.13.0"

    versions = iter([None, "2.13.0"])
    monkeypatch.setattr(torch_build, "has_gpu", lambda: False)
    monkeypatch.setattr(torch_build, "check_space", lambda *_: None)
    monkeypatch.setattr(torch_build, "installed_version", lambda *_: next(versions))
    monkeypatch.setattr(torch_build, "pip_try", offers)
    assert torch_build.install_torch(environment.venv_python(folder), folder) == "2.13.0"
    assert asked == ["torch==2.13.0+cpu", "torch==2.13.0"]


@pytest.mark.parametrize("network", ["NewConnectionError(...)", "Retrying (Retry(total=4))", "Max retries exceeded"])
def test_network_failure_stops_with_what_to_do(monkeypatch, network):
    stderr = f"WARNING: {network}\nERROR: No matching distribution found for torch"
    monkeypatch.setattr(pip, "_pip", lambda *_, **__: pip.subprocess.CompletedProcess([], 1, stderr=stderr))
    for call in (pip.pip_try, pip.pip_install):
        with pytest.raises(InstallError, match=r"Check the network .* same command again"):
            call(sys.executable, ["torch"])


def test_version_not_on_offer_is_no_error_for_pip_try(monkeypatch):
    stderr = "ERROR: No matching distribution found for torch==2.13.0+cpu"
    monkeypatch.setattr(pip, "_pip", lambda *_, **__: pip.subprocess.CompletedProcess([], 1, stderr=stderr))
    assert pip.pip_try(sys.executable, ["torch==2.13.0+cpu"]) is False
