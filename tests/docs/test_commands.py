"""Every command that a page shows exists, with the options it shows."""

import argparse
import ast
import importlib.util
import re

import pytest
from hyper_sd.demo.check import add_test_options
from hyper_sd.errors import HyperSDError
from hyper_sd.models.catalog import load_catalog
from hyper_sd.tests.documents import DOCS, PAGES, ROOT, each, words_of

BENCHMARK = "hyper_sd.benchmarks."


def _source(*parts: str) -> str:
    return ROOT.joinpath(*parts).read_text(encoding="utf-8")


def _added_options(source: str) -> set[str]:
    """Returns the options that a source adds to its parser."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    adding = (call for call in calls if getattr(call.func, "attr", "") == "add_argument")
    return {word.value for call in adding for word in call.args if isinstance(word, ast.Constant)}


def _benchmark_options(module: str) -> set[str]:
    """Returns the options of a benchmark, with those that other files of its folder add for it."""
    source = _source("benchmarks", f"{module}.py")
    imports = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.level == 1)
    shared = {node.module for node in imports if node.module and (ROOT / "benchmarks" / f"{node.module}.py").is_file()}
    return _added_options(source).union(*map(_benchmark_options, shared))


def _unknown(words: list[str], known: set[str]) -> str:
    unknown = {word for word in words if word.startswith("-")} - known
    return f"there is no option {', '.join(sorted(unknown))}" if unknown else ""


def _make_parser() -> argparse.ArgumentParser:
    spec = importlib.util.spec_from_file_location("hyper_sd_install", ROOT / "install.py")
    install = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(install)
    return install.make_parser()


def _problem_of_install(arguments: list[str]) -> str:
    """Returns what keeps install.py from running; "test" and "train-demo" pass words on that their own parsers know."""
    command, *words = arguments or [""]
    if not command:
        return ""  # what the hosts call
    if command == "train-demo":
        return _unknown(words, _added_options(_source("demo", "recipe", "__main__.py")))
    if command == "test":
        parser = argparse.ArgumentParser()
        add_test_options(parser)
        return _unknown(parser.parse_known_args(words)[1], {"-k"})
    try:
        options = _make_parser().parse_args([command, *words])
        for entry_id in getattr(options, "ids", []):
            load_catalog().get(entry_id)
    except (SystemExit, HyperSDError) as error:
        return f"install.py refuses it: {error}"
    return ""


def _problem_of_module(name: str, words: list[str]) -> str:
    if not ROOT.joinpath(*name.split(".")[1:]).with_suffix(".py").is_file():
        return f"there is no module {name}"
    return _unknown(words, _benchmark_options(name.removeprefix(BENCHMARK))) if name.startswith(BENCHMARK) else ""


def problem_of_command(command: str) -> str:
    """Returns why a command of a page cannot be run as it stands there, "" where it can."""
    words = words_of(command)
    if words[:4] == ["accelerate", "launch", "-m", "hyper_sd.demo.evaluate"]:  # which takes the options of install.py's command
        words = ["python", "install.py", "evaluate", *words[4:]]
    if words[:2] == ["python", "install.py"]:
        return _problem_of_install(words[2:])
    if words[:2] == ["python", "-m"]:
        if ROOT.joinpath(*words[2].split(".")[1:]).is_dir():  # a package, which is given a run file
            missing = [file for file in words[3:] if not (ROOT / file).is_file()]
            return _problem_of_module(f"{words[2]}.__main__", []) or "".join(f"there is no {file}" for file in missing)
        return _problem_of_module(words[2], words[3:])
    if words[0] == "python" or words[:3] == ["accelerate", "launch", "-m"]:
        file = words[1] if words[0] == "python" else words[4]
        module = "" if words[0] == "python" else _problem_of_module(f"{words[3]}.__main__", [])
        return module or ("" if (ROOT / file).is_file() else f"there is no {file}")
    if words[:3] == ["pip", "install", "-e"]:
        extras = set(re.findall(r"\w+", words[3])) - set(re.findall(r"^(\w+) = \[", _source("pyproject.toml"), re.MULTILINE))
        return f"there is no extra {', '.join(sorted(extras))}" if extras else ""
    return "" if words[0] == "curl" else "what is this?"


@each([page for page in PAGES if page.commands])
def test_commands_can_be_run(page):
    problems = {command: problem_of_command(command) for command in page.commands}
    assert not {command: problem for command, problem in problems.items() if problem}


@each(DOCS)
def test_blocks_without_a_language_hold_commands(page):
    assert not page.other_lines


@pytest.mark.parametrize(
    "command",
    [
        "python install.py dmo",
        "python install.py demo --stepz 4",
        "python install.py demo --steps 400",
        "python install.py test --webui PATH --stepz 4",
        "python install.py download hyper-sdxl-9steps-lora",
        "python install.py train-demo --lora",
        "python -m hyper_sd.benchmarks.nothing",
        "python -m hyper_sd.benchmarks.sampler_overhead --outt FILE",
        "python examples/nothing.py",
        "python install.py evaluate --throgh diffusers",
        "accelerate launch -m hyper_sd.demo.evaluate --throgh diffusers",
        "accelerate launch -m hyper_sd.training.lunch training/launch/example.toml",
        "accelerate launch -m hyper_sd.training.launch examples/nothing.toml",
        "pip install -e .[trian]",
        "pip uninstall torch",
    ],
)
def test_wrong_command_is_found(command):
    assert problem_of_command(command)
