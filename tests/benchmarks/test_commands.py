"""Every benchmark is one command, named at its head, that starts; none of them imports another one."""

import ast
import importlib
import sys
from pathlib import PurePosixPath

import pytest
from hyper_sd.tests.layout_rules import imports
from hyper_sd.tests.repository import MODULES, ROOT

TREES = {path.stem: ast.parse((ROOT / path).read_text(encoding="utf-8")) for path in MODULES if path.parts[0] == "benchmarks"}


def is_command(tree: ast.Module) -> bool:
    """Whether a module runs something when it is started."""
    return any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body)


def imported_commands(trees: dict[str, ast.Module]) -> list[str]:
    """Returns the imports of benchmarks in other modules of their folder, such as "a imports b"."""
    commands = {name for name, tree in trees.items() if is_command(tree)}
    found = []
    for name, tree in trees.items():
        parts = (imported.split(".") for _, imported in imports(PurePosixPath("benchmarks", f"{name}.py"), tree))
        found += [f"{name} imports {p[2]}" for p in parts if p[:2] == ["hyper_sd", "benchmarks"] and p[2] in commands]
    return found


COMMANDS = [name for name, tree in TREES.items() if is_command(tree)]


def test_no_benchmark_imports_another_one():
    assert len(COMMANDS) > 10
    assert imported_commands(TREES) == []


START = 'if __name__ == "__main__":\n    main()'


@pytest.mark.parametrize(
    "line", ["from .other import spread", "from . import other", "def f():\n    from .other import spread"]
)
def test_import_of_another_benchmark_is_found(line):
    trees = {"one": ast.parse(f"{line}\n{START}"), "other": ast.parse(START)}
    assert imported_commands(trees) == ["one imports other"]


def test_import_of_what_is_no_benchmark_is_none():
    trees = {"one": ast.parse(f"from .measure import spread\nfrom ..samplers import other\n{START}"), "other": ast.parse(START)}
    assert imported_commands(trees | {"measure": ast.parse("x = 1")}) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_benchmark_starts_by_the_command_at_its_head(name, monkeypatch, capsys):
    try:
        module = importlib.import_module(f"hyper_sd.benchmarks.{name}")
    except ModuleNotFoundError as error:
        pytest.skip(f"needs {error.name}")
    assert f"    python -m hyper_sd.benchmarks.{name} --" in module.__doc__
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.setenv("COLUMNS", "300")  # so that no line is broken
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert module.__doc__.splitlines()[0] in shown
    assert "--out OUT" in shown
