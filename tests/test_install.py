"""install.py as its callers use it: a program whose text and exit code count."""

import importlib.util
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hyper_sd.tests.models import synthetic_checkpoints

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments):
    command = [sys.executable, str(ROOT / "install.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60, check=False)


@pytest.fixture
def install():
    spec = importlib.util.spec_from_file_location("hyper_sd_install", ROOT / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_argument_is_silent_when_nothing_is_missing():
    result = run()
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_no_argument_installs_only_what_is_missing_and_pins_what_is_there(install, monkeypatch):
    calls = []

    def pip(command, **_):
        calls.append((command, Path(command[command.index("--constraint") + 1]).read_text(encoding="utf-8")))
        return subprocess.CompletedProcess(command, 0)

    found = install.importlib.util.find_spec
    monkeypatch.setattr(install.importlib.util, "find_spec", lambda name: None if name == "PIL" else found(name))
    monkeypatch.setattr(install.subprocess, "run", pip)
    assert install.main([]) == 0
    ((command, constraints),) = calls
    assert command[0] == sys.executable
    assert command[-1] == "pillow"
    assert {"torch", "numpy", "--upgrade", "-U"}.isdisjoint(command)
    assert any(line.startswith("numpy==") for line in constraints.splitlines())


def test_failed_pip_is_reported_with_what_to_do(install, monkeypatch, capsys):
    monkeypatch.setattr(install, "missing_dependencies", lambda: ["safetensors"])
    monkeypatch.setattr(install.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1))
    assert install.main([]) == 1
    assert "could not install safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "0"], "steps must be whole numbers from 1 to 50"),
        (["--steps", "1,x"], "got '1,x'; for example 1,2,4,8,25"),
        (["--steps", ""], "steps must be"),
        (["--eta", "1.3"], "eta must be a number from 0 to 1, got '1.3'; use 0 for deterministic sampling"),
        (["--eta", "nan"], "eta must be"),
        (["--cfg", "0.5"], "cfg must be a number from 1 to 100"),
        (["--seed", "-1"], "seed must be"),
        (["--port", "99999"], "port must be a number from 1 to 65535"),
        (["--colour"], "nrecognized arguments: --colour"),
    ],
)
def test_wrong_option_gives_one_line_and_exit_code_2(arguments, words):
    result = run("demo", *arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_unknown_command_names_the_known_ones():
    result = run("demos")
    assert result.returncode == 2
    assert "train-demo" in result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["test", "--help"], ["train-demo", "--help"]])
def test_help_is_shown_without_making_anything(arguments):
    result = run(*arguments)
    assert result.returncode == 0
    assert "usage: python install.py" in result.stdout


@pytest.mark.parametrize("command", ["--help", "demo --help", "evaluate --help", "bake --help", "download --list"])
def test_a_python_without_any_package_reads_every_command(command):
    program = [sys.executable, "-S", str(ROOT / "install.py"), *command.split()]  # -S: no site-packages, as a newcomer's Python
    result = subprocess.run(program, capture_output=True, text=True, encoding="utf-8", timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_bad_checkpoint_fails_before_anything_is_installed(tmp_path):
    result = run("demo", "--checkpoint", str(tmp_path / "none.safetensors"))
    assert result.returncode == 1
    assert "none.safetensors does not exist" in result.stderr
    assert "Traceback" not in result.stderr


def test_refiner_is_refused_by_its_name_before_anything_is_installed(tmp_path):
    refiner = synthetic_checkpoints.full(synthetic_checkpoints.refiner(), "SDXL")
    path = synthetic_checkpoints.write_checkpoint(tmp_path / "refiner.safetensors", refiner)
    result = run("demo", "--checkpoint", str(path))
    assert result.returncode == 1
    assert "refiner.safetensors is the SDXL refiner" in result.stderr
    assert "Traceback" not in result.stderr


def test_folder_without_comfyui_fails_with_a_message(tmp_path, checkpoint):
    result = run("demo", "--checkpoint", str(checkpoint), "--comfyui", str(tmp_path))
    assert result.returncode == 1
    assert "no ComfyUI" in result.stderr


def test_taken_port_fails_with_a_message(checkpoint):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = run("demo", "--checkpoint", str(checkpoint), "--port", port)
    assert result.returncode == 1
    assert f"Port {port} is taken" in result.stderr


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint that passes the check of its header."""
    tensors = synthetic_checkpoints.full(synthetic_checkpoints.sd15(), "SD1.5")
    return synthetic_checkpoints.write_checkpoint(tmp_path / "model.safetensors", tensors)


def test_file_is_readable_for_python_3_7():
    """The message "Python too old" can only appear where the whole file can be parsed."""
    import ast

    ast.parse((ROOT / "install.py").read_text(encoding="utf-8"), feature_version=(3, 7))
