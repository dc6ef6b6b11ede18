"""In which environment a command runs, and what is installed where."""

from pathlib import Path

import pytest
from hyper_sd.demo import commands, environment, host
from hyper_sd.demo.lock import is_locked


@pytest.fixture
def made(monkeypatch, tmp_path):
    """What run() did, with a cache of the test's own: [("install" or "rerun", environment, requirements or arguments)]."""
    done = []
    monkeypatch.setattr(environment, "CACHE", tmp_path / ".demo")
    monkeypatch.setattr(commands, "CACHE", tmp_path / ".demo")
    monkeypatch.setattr(environment, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(commands, "is_complete", lambda *_: False)
    monkeypatch.setattr(commands, "install", lambda command, lines, venv: done.append(("install", venv, lines)))
    monkeypatch.setattr(commands, "rerun", lambda arguments, venv: done.append(("rerun", venv, arguments)) or 0)
    return done


def test_pinned_copy_and_a_command_without_a_comfyui_have_the_shared_environment(made, tmp_path, monkeypatch, comfyui_folder):
    pinned = comfyui_folder(tmp_path / ".demo" / f"comfyui-{host.COMFYUI_VERSION}")
    monkeypatch.setattr(commands, "ensure_comfyui", lambda explicit, pip_python: pinned)
    assert commands.run("test", ["-k", "tcd"], None) == 0
    assert commands.run("train-demo", [], None) == 0
    assert [venv for _, venv, _ in made] == [tmp_path / ".venv"] * 4
    lines = [line for kind, _, lines in made if kind == "install" for line in lines]
    assert {line for line in lines if not is_locked(line)} == {"torchvision"}


def test_comfyui_of_ones_own_brings_its_packages_into_no_other_environment(made, tmp_path, comfyui_folder):
    own = comfyui_folder(tmp_path / "ComfyUI")
    (own / "requirements.txt").write_text("comfyui-frontend-package==9.9.9\n", encoding="utf-8")
    arguments = ["-x", "--comfyui", str(own)]
    assert commands.run("test", arguments, None) == 0
    (_, installed, lines), (_, entered, passed_on) = made
    assert "comfyui-frontend-package==9.9.9" in lines
    assert not any(map(is_locked, lines))
    assert installed == entered
    assert entered.parent == tmp_path / ".demo"
    assert entered.name.startswith("venv-ComfyUI-")
    assert passed_on == ["test", *arguments]
    assert not (tmp_path / ".venv").exists()
    assert sorted(path.name for path in own.iterdir()) == sorted([*host._PARTS, "comfyui_version.py", "requirements.txt"])


def test_two_folders_of_one_name_have_two_environments_and_a_folder_always_the_same(made, tmp_path, monkeypatch):
    one, other = tmp_path / "a" / "ComfyUI", tmp_path / "b" / "ComfyUI"
    assert environment.environment_for(one) != environment.environment_for(other)
    for folder in (one, other):
        folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a")
    assert environment.environment_for(one) == environment.environment_for(Path("ComfyUI"))
