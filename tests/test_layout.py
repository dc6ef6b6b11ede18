"""Holds the design's arrows, borders and house rules over the whole repository, and shows that each rule can fail."""

import ast
from pathlib import PurePosixPath

import pytest
from hyper_sd.tests.layout_rules import RULES
from hyper_sd.tests.repository import FILES, MODULES, ROOT, private_text

TEXT = {"", ".cfg", ".css", ".html", ".ini", ".js", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml"}


def packages_in_generic_folders(files: list[PurePosixPath]) -> list[str]:
    """Returns every __init__.py below the root: a real package `models` or `modules` would hide a host's own."""
    return [str(path) for path in files if path.name == "__init__.py" and len(path.parts) > 1]


def test_repository_holds_the_folders_the_rules_speak_of():
    assert {"samplers", "nodes", "demo", "tests"} <= {path.parts[0] for path in MODULES}
    assert len(MODULES) > 20


@pytest.fixture(scope="module")
def trees():
    """Every module's syntax tree by its path."""
    return {path: ast.parse((ROOT / path).read_text(encoding="utf-8"), str(path)) for path in MODULES}


@pytest.mark.parametrize("name", RULES)
def test_rule_holds_everywhere(trees, name):
    problems = [f"{path}, {problem}" for path, tree in trees.items() for problem in RULES[name](path, tree)]
    assert not problems, "\n".join([RULES[name].__doc__, *problems])


def test_generic_folders_are_namespace_packages():
    assert packages_in_generic_folders(FILES) == []


def test_text_files_name_no_machine_and_no_registry():
    problems = []
    for path in FILES:
        if path.suffix in TEXT and "tokenizer" not in path.parts:
            problems += [f"{path}, {p}" for p in private_text((ROOT / path).read_text(encoding="utf-8", errors="replace"))]
    assert not problems, "\n".join(problems)


LONG_FUNCTION = "def long():\n" + "    pass\n" * 40
BAD = [
    ("arrows", "samplers/a.py", "from ..models.lora import plan"),
    ("arrows", "samplers/a.py", "from ..nodes import sampling"),
    ("arrows", "models/a.py", "from ..training import loop"),
    ("arrows", "rewards/a.py", "from ..training import loop"),
    ("arrows", "models/a.py", "from ..rewards import clip"),
    ("arrows", "evaluation/a.py", "from ..training import loop"),
    ("arrows", "training/a.py", "from ..nodes import sampling"),
    ("arrows", "training/launch/a.py", "from ...nodes.training import network"),
    ("arrows", "training/data/a.py", "def f():\n    from ...demo import run"),
    ("arrows", "disk.py", "from .models import catalog"),
    ("arrows", "models/a.py", "import hyper_sd.nodes.sampling"),
    ("arrows", "demo/a.py", "from ..nodes.sampling import NODES"),
    ("arrows", "demo/recipe/a.py", "from ...webui_extension import registration"),
    ("arrows", "nodes/a.py", "def f():\n    from ..demo import run"),
    ("arrows", "webui_extension/a.py", "import importlib\nimportlib.import_module('hyper_sd.nodes.sampling')"),
    ("comfyui_border", "samplers/a.py", "import comfy.samplers"),
    ("comfyui_border", "training/a.py", "import folder_paths"),
    ("comfyui_border", "training/data/a.py", "import comfy.model_management"),
    ("comfyui_border", "rewards/a.py", "def f():\n    import comfy.sd"),
    ("comfyui_border", "disk.py", "from server import PromptServer"),
    ("comfyui_border", "demo/a.py", "from folder_paths import base_path"),
    ("comfyui_border", "__init__.py", "def f():\n    import comfy_api.latest"),
    ("comfyui_border", "webui_extension/a.py", "__import__('server')"),
    ("webui_border", "nodes/a.py", "import gradio as gr"),
    ("webui_border", "models/a.py", "from modules import shared"),
    ("webui_border", "training/launch/a.py", "from modules import shared"),
    ("network", "nodes/a.py", "import urllib.request"),
    ("network", "samplers/a.py", "from huggingface_hub import hf_hub_download"),
    ("network", "models/lora.py", "import requests"),
    ("network", "nodes/a.py", "import subprocess"),
    ("no_print", "samplers/a.py", "print('hello')"),
    ("no_print", "benchmarks/a.py", "def f():\n    print()"),
    ("no_path_edits", "nodes/a.py", "import sys\nsys.path.insert(0, 'x')"),
    ("no_path_edits", "demo/a.py", "import sys\nsys.path += ['x']"),
    ("no_path_edits", "scripts/a.py", "import sys\nsys.path[:] = []"),
    ("no_path_edits", "scripts/a.py", "import sys\nsys.path = []"),
    ("no_unsafe_code", "samplers/a.py", "eval('1')"),
    ("no_unsafe_code", "tests/a.py", "exec('1')"),
    ("no_unsafe_code", "training/a.py", "import pickle"),
    ("no_unsafe_code", "demo/a.py", "from pickle import loads"),
    ("no_unsafe_code", "install.py", "import subprocess\nsubprocess.run('ls', shell=True)"),
    ("no_unsafe_code", "evaluation/a.py", "import numpy as np\nnp.load('x', allow_pickle=True)"),
    ("no_unsafe_code", "models/a.py", "import torch\ntorch.load('x', weights_only=True)"),
    ("no_unsafe_code", "demo/recipe/a.py", "import torch\ntorch.load('x')"),
    ("no_unsafe_code", "rewards/weights.py", "import torch\ntorch.load('x', mmap=True)"),
    ("no_unsafe_code", "rewards/weights.py", "import torch\ntorch.load('x', weights_only=False)"),
    ("no_unsafe_code", "rewards/clip.py", "import torch\ntorch.load('x', weights_only=True)"),
    ("no_unsafe_code", "demo/recipe/a.py", "import torch\ntorch.load('x', weights_only=False)"),
    ("families", "models/a.py", 'TITLES = {"sd15": "SD1.5", "sdxl": "SDXL"}'),
    ("families", "models/a.py", 'VARIANTS = {"sd3": ("cfg",), "flux": ("n-step",)}'),
    ("families", "webui_extension/a.py", 'SIGNS = {"double_blocks.": "flux", "joint_blocks.": "sd3"}'),
    ("families", "nodes/training/a.py", 'def f(family):\n    return family in ("sd15", "sdxl")'),
    ("families", "demo/a.py", "SIZES = dict(sd15=512, sdxl=1024)"),
    ("families", "training/launch/a.py", 'OPEN = {"sd15", "sdxl"}'),
    ("sizes", "samplers/a.py", "x = 1\n" * 301),
    ("sizes", "samplers/a.py", LONG_FUNCTION),
    ("sizes", "nodes/a.py", "class A:\n" + "".join(f"    {line}\n" for line in LONG_FUNCTION.splitlines())),
    ("docstrings", "evaluation/a.py", "x = 1"),
    ("docstrings", "samplers/a.py", '"""Module."""\ndef public():\n    pass'),
    ("docstrings", "nodes/a.py", '"""Module."""\nclass Public:\n    pass'),
    ("docstrings", "nodes/a.py", '"""Module."""\nasync def public():\n    pass'),
    ("arguments", "models/a.py", 'def f(a, b):\n    """One.\n\n    Args: a: first; b: second.\n    """'),
    ("arguments", "nodes/a.py", 'def f(a, b):\n    """One.\n\n    Args: a: first.\n        b: second.\n    """'),
    ("arguments", "evaluation/a.py", 'def f(a, *, b):\n    """One.\n\n    Args:\n        a, b: both.\n    """'),
    ("arguments", "samplers/a.py", 'def f(a, **b):\n    """One.\n\n    Args:\n        a: first; b: second.\n    """'),
    ("arguments", "demo/a.py", 'class A:\n    """One.\n\n    Args: a: first; b: second.\n    """\n    a: int\n    b: int'),
    (
        "arguments",
        "rewards/a.py",
        'class A:\n    """One.\n\n    Args: a, b: two.\n    """\n    def __init__(self, a, b):\n        pass',
    ),
    ("arguments", "demo/a.py", 'def f(a, b):\n    """One.\n\n    Args: a [batch]; b int [batch].\n    """'),
    ("arguments", "nodes/a.py", 'class A:\n    def _f(self, a, b):\n        """One. Args: a: first; b: second."""'),
    ("tests_apart", "tests/nodes/test_a.py", "from hyper_sd.tests.nodes.test_b import page"),
    ("tests_apart", "tests/nodes/test_a.py", "def f():\n    from hyper_sd.tests.nodes import test_b"),
    ("tests_apart", "tests/nodes/a.py", "import importlib\nimportlib.import_module('hyper_sd.tests.nodes.test_b')"),
    ("tests_apart", "tests/test_a.py", "from hyper_sd.tests.nodes.conftest import host"),
]
GOOD = [
    (
        "arrows",
        "nodes/a.py",
        "from ..samplers.tcd import sample_tcd\nfrom ..models import lora\nfrom ..errors import HyperSDError",
    ),
    ("arrows", "models/a.py", "from ..samplers import schedule\nfrom .catalog import load_catalog\nimport torch"),
    ("arrows", "tests/nodes/a.py", "from hyper_sd.nodes import sampling"),
    ("arrows", "training/launch/a.py", "from ...evaluation.contact_sheet import contact_sheet\nfrom ..loop import train"),
    ("arrows", "nodes/training/a.py", "from ...training.phases import run_job\nfrom ..schema import found_as"),
    ("arrows", "models/a.py", "from ..disk import whole_file"),
    ("comfyui_border", "nodes/a.py", "import comfy.samplers\nfrom server import PromptServer"),
    ("comfyui_border", "demo/a.py", "from .server import ComfyServer\nimport http.server"),
    ("webui_border", "webui_extension/a.py", "from modules import shared\nimport gradio"),
    ("network", "models/download.py", "from huggingface_hub import hf_hub_url"),
    ("network", "demo/a.py", "import urllib.request"),
    ("no_print", "demo/a.py", "print('hello')"),
    ("no_print", "examples/a.py", "print('hello')"),
    ("no_path_edits", "nodes/a.py", "import sys\nfirst = sys.path[0]\nsys.modules['x'] = None"),
    ("no_unsafe_code", "demo/recipe/a.py", "import torch\ntorch.load('x', weights_only=True)\nmodel.eval()"),
    ("no_unsafe_code", "rewards/weights.py", "import torch\ntorch.load('x', weights_only=True, mmap=True)"),
    ("families", "models/families.py", 'ORDER = ["sd15", "sdxl"]'),
    ("families", "training/preset_table.py", 'PRESETS = {"sd15": 1, "sdxl": 2}'),
    ("families", "models/a.py", 'if family == "sdxl" and (family, steps) == ("sdxl", 4):\n    x = ["sdxl", "unified"]'),
    ("sizes", "samplers/a.py", 'def f():\n    """' + "text\n" * 60 + '    """\n    return 1'),
    ("docstrings", "samplers/a.py", '"""Module."""\ndef _private():\n    pass'),
    ("arguments", "models/a.py", 'def f(a, b):\n    """One.\n\n    Args: a: the only one that needs words, of two.\n    """'),
    (
        "arguments",
        "samplers/a.py",
        'def f(a, b):\n    """One.\n\n    Args:\n        a: one of "b: x".\n        b: second.\n    """',
    ),
    ("tests_apart", "tests/nodes/test_a.py", "from hyper_sd.tests.nodes.host import latent\nimport test_tools"),
    ("tests_apart", "tests/training/launch/a.py", "import conftest\nfrom hyper_sd.tests.conftest import ROOT"),
]


@pytest.mark.parametrize(("name", "path", "source"), BAD)
def test_rule_finds_the_problem_in_a_bad_sample(name, path, source):
    assert RULES[name](PurePosixPath(path), ast.parse(source))


@pytest.mark.parametrize(("name", "path", "source"), GOOD)
def test_rule_is_silent_on_a_good_sample(name, path, source):
    assert RULES[name](PurePosixPath(path), ast.parse(source)) == []


def test_every_rule_has_a_bad_and_a_good_sample():
    assert {name for name, _, _ in BAD} == {name for name, _, _ in GOOD} == set(RULES)


def _joined(*parts: str) -> str:
    """Puts a forbidden name together, so that this file does not hold it."""
    return "".join(parts)


@pytest.mark.parametrize(
    "text",
    [
        _joined("/ho", "me/ada/pack"),
        _joined("path = '/ro", "ot/x'"),
        _joined("C:", "\\Us", "ers\\Ada"),
        _joined("from https://py", "pi.org/simple"),
        _joined("files.python", "hosted.org"),
        _joined("http://10.", "1.2.3:8080"),
    ],
)
def test_private_text_is_found(text):
    assert private_text(f"first line\n{text}") != []


@pytest.mark.parametrize(
    "text", ["~/comfy/ComfyUI", "https://example.com/home/page", "a home/root word", "10.5.1", "127.0.0.1"]
)
def test_harmless_text_is_left_alone(text):
    assert private_text(text) == []


def test_package_file_is_found_below_the_root():
    assert packages_in_generic_folders([PurePosixPath("__init__.py"), PurePosixPath("models/__init__.py")]) == [
        "models/__init__.py"
    ]
