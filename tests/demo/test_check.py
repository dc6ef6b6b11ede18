"""Which commands `python install.py test` runs, and in which environment."""

import subprocess
from pathlib import Path

import pytest
from hyper_sd.demo import check


@pytest.fixture
def commands(monkeypatch):
    """What would have been run: [(command, environment)]."""
    made = []

    def run(command, *, env, **_):
        made.append((command[2:], env))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(check.subprocess, "run", run)
    monkeypatch.delenv("A1111_PATH", raising=False)
    return made


def test_without_webui_style_and_every_test_are_run(commands):
    assert check.run_checks(["-k", "tcd"], Path("comfyui")) == 0
    assert [command[0] for command, _ in commands] == ["ruff", "ruff", "pytest"]
    assert commands[-1][0] == ["pytest", *check.PARALLEL, "-k", "tcd"]
    assert "A1111_PATH" not in commands[-1][1]


def test_comfyui_is_named_to_the_tests_and_not_to_pytest(commands, tmp_path):
    arguments = ["-x", "--comfyui", str(tmp_path), "-k", "tcd"]
    assert check.split_arguments(arguments)[0].comfyui == tmp_path
    check.run_checks(arguments, tmp_path)
    assert commands[-1][0] == ["pytest", *check.PARALLEL, "-x", "-k", "tcd"]
    assert commands[-1][1]["COMFYUI_PATH"] == str(tmp_path)


def test_webui_runs_its_own_tests_with_both_hosts_named(commands, tmp_path):
    assert check.run_checks(["--webui", str(tmp_path), "-x", "--webui-python", "py"], Path("comfyui")) == 0
    ((command, environment),) = commands
    assert command == ["pytest", "tests/webui", "-x"]
    assert environment["A1111_PATH"] == str(tmp_path.resolve())
    assert environment["A1111_PYTHON"] == "py"
    assert environment["COMFYUI_PATH"] == "comfyui"
