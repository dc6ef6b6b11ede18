"""What each command installs, and that the pack declares what it imports."""

import ast
import sys

import pytest
from hyper_sd.demo import requirements

OPTIONAL = {
    "bitsandbytes",
    "choix",
    "matplotlib",
    "hf_xet",
    "accelerate",
    "diffusers",
    "requests",  # what huggingface_hub before its release 1 brings
    "tomli",
    "transformers",
}  # guarded where they are imported, or of the extras train and evaluation


@pytest.mark.parametrize(
    ("line", "name"),
    [("Pydantic_Settings~=2.0", "pydantic-settings"), ("av>=14.2.0", "av"), ("a[b]==1", "a"), ("x ; python_version>'3'", "x")],
)
def test_name_of_reads_the_project(line, name):
    assert requirements.name_of(line) == name


def test_host_requirements_leave_out_torch_comments_and_options(tmp_path):
    text = "torch\ntorchaudio==2\ntorchvision\n# a comment\naiohttp>=3 # why\n-f somewhere\ncomfyui-workflow-templates==1\n\n"
    (tmp_path / "requirements.txt").write_text(text, encoding="utf-8")
    assert requirements.host_requirements(tmp_path) == ("torchaudio==2", "torchvision", "aiohttp>=3", "requests")


def test_pinned_list_stands_in_where_a_comfyui_has_none(tmp_path):
    assert requirements.host_requirements(tmp_path) == requirements.COMFYUI


@pytest.mark.parametrize("command", requirements.COMMANDS)
def test_every_command_names_a_project_once_and_holds_the_packs_own_needs(tmp_path, command):
    names = [requirements.name_of(line) for line in requirements.requirements_for(command, tmp_path)]
    assert len(names) == len(set(names))
    assert {"safetensors", "huggingface-hub", "numpy", "pillow", "filelock", "tqdm"} <= set(names)
    assert "torch" not in names


def test_train_demo_needs_no_comfyui():
    names = [requirements.name_of(line) for line in requirements.requirements_for("train-demo", None)]
    assert requirements.FRONTEND not in names
    assert "diffusers" in names


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is new in Python 3.11")
@pytest.mark.parametrize(("extra", "lines"), [("recipe", requirements.RECIPE), ("evaluation", requirements.EVALUATION)])
def test_extra_of_the_project_file_is_the_same_list(extra, lines):
    import tomllib

    project = tomllib.loads((requirements.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(project["optional-dependencies"][extra]) == set(lines)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is new in Python 3.11")
def test_dependencies_of_the_project_file_are_torch_and_the_same_list():
    import tomllib

    project = tomllib.loads((requirements.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["dependencies"] == ["torch", *requirements.read_requirements(requirements.ROOT / "requirements.txt")]


@pytest.mark.parametrize("room", ["samplers", "models", "training", "evaluation"])
def test_room_without_a_host_imports_only_what_is_declared(room):
    imported = set()
    for path in (requirements.ROOT / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.partition(".")[0])
    lines = requirements.read_requirements(requirements.ROOT / "requirements.txt")
    declared = {"PIL" if line == "pillow" else line for line in lines}
    assert "torch" in imported
    assert imported - sys.stdlib_module_names - OPTIONAL <= {"torch", *declared}


def test_digest_changes_with_the_list_and_not_with_its_order():
    assert requirements.digest(("a", "b")) == requirements.digest(("b", "a")) != requirements.digest(("a", "c"))
