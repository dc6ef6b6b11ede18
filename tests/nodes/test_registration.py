"""How the host finds the pack: the door, the dropdowns, the nodes' descriptions and their help pages."""

import ast
import asyncio
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOOR = ROOT / "__init__.py"

LOAD_AS_HOST = """
import asyncio, importlib.util, sys
path = sys.argv[1]
name = path.replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, path + "/__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
heavy = [m for m in sys.modules if m.split(".")[0] in {"comfy", "comfy_api", "folder_paths", "torch"}]
assert not heavy, heavy
assert not hasattr(module, "NODE_CLASS_MAPPINGS")
print(asyncio.iscoroutinefunction(module.comfy_entrypoint), module.WEB_DIRECTORY)
"""


def _code_lines(path: Path) -> int:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = [
        n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    ]
    strings = [n.body[0] for n in documented if ast.get_docstring(n)]
    prose = {line for s in strings for line in range(s.lineno, s.end_lineno + 1)}
    lines = path.read_text(encoding="utf-8").splitlines()
    return sum(bool(text.split("#")[0].strip()) for number, text in enumerate(lines, 1) if number not in prose)


def test_door_has_at_most_twelve_code_lines():
    assert 0 < _code_lines(DOOR) <= 12


def test_door_imports_nothing_of_the_host_when_loaded_under_a_path_name():
    command = [sys.executable, "-c", LOAD_AS_HOST, str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT.parent)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["True", "./web"]


def test_entrypoint_returns_the_extension_when_loaded_under_a_path_name(host, pack):
    from comfy_api.latest import ComfyExtension

    name = f"{ROOT}_under_test".replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, DOOR, submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        extension = asyncio.run(module.comfy_entrypoint())
        assert isinstance(extension, ComfyExtension)
        ids = [node.GET_SCHEMA().node_id for node in asyncio.run(extension.get_node_list())]
    finally:
        for loaded in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
            del sys.modules[loaded]
        host.load_pack()  # the dropdowns point to this copy of the pack again
    assert sorted(ids) == sorted(pack)


def test_dropdown_names_appear_once_when_the_pack_is_loaded_twice(host):
    host.load_pack()
    host.load_pack()
    samplers = host.comfy.samplers
    for names in (samplers.KSAMPLER_NAMES, samplers.SAMPLER_NAMES, samplers.KSampler.SAMPLERS):
        assert names.count("hyper_sd_tcd") == 1
    for names in (samplers.SCHEDULER_NAMES, samplers.KSampler.SCHEDULERS, list(samplers.SCHEDULER_HANDLERS)):
        assert names.count("hyper_sd") == 1


def test_dropdown_names_are_offered_by_the_hosts_nodes(host):
    inputs = host.nodes.KSampler.INPUT_TYPES()["required"]
    assert "hyper_sd_tcd" in inputs["sampler_name"][0]
    assert "hyper_sd" in inputs["scheduler"][0]


def test_dropdown_sampler_runs_the_packs_function(host):
    from hyper_sd.samplers.tcd import sample_tcd

    assert host.comfy.samplers.sampler_object("hyper_sd_tcd").sampler_function is sample_tcd


def test_dropdown_scheduler_gives_the_nodes_sigmas(host, pack, unet):
    sampling = unet.get_model_object("model_sampling")
    for steps in (1, 3, 8, 50, 1000):
        (expected,) = pack["HyperSDScheduler"].execute(unet, steps, 1, 1.0).args
        assert host.comfy.samplers.calculate_sigmas(sampling, "hyper_sd", steps).equal(expected)


@pytest.fixture
def schemas(pack):
    """Every node's schema by id."""
    return {node_id: node.define_schema() for node_id, node in pack.items()}


def test_every_input_has_a_tooltip(schemas):
    bare = [f"{name}.{i.id}" for name, schema in schemas.items() for i in schema.inputs if len(i.tooltip or "") < 20]
    assert not bare


def test_every_node_belongs_to_the_category_and_is_described(schemas):
    assert {schema.category.split("/")[0] for schema in schemas.values()} == {"Hyper-SD"}
    assert all(name.startswith("HyperSD") for name in schemas)
    assert all(schema.display_name.startswith("Hyper-SD") and len(schema.description) > 20 for schema in schemas.values())


def test_every_node_has_a_help_page_that_names_its_inputs(schemas):
    for name, schema in schemas.items():
        page = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
        missing = [i.id for i in schema.inputs if f"`{i.id}`" not in page]
        assert not missing, f"{name}.md says nothing about {missing}"


def test_every_help_page_has_a_picture(schemas):
    for name in schemas:
        page = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
        pictures = [ROOT / "web" / "docs" / path for path in re.findall(r"!\[[^\]]{5,}\]\(([^)]+)\)", page)]
        assert pictures, name
        assert not [str(path) for path in pictures if not path.is_file()]


def test_every_input_is_used_by_execute(pack, schemas):
    import inspect
    from dataclasses import fields

    from hyper_sd.training.presets import TrainRequest

    for name, schema in schemas.items():
        parameters = inspect.signature(pack[name].execute).parameters
        taken = [parameter for parameter, entry in parameters.items() if entry.kind is not entry.VAR_KEYWORD]
        if len(taken) < len(parameters):  # the rest is a request's, by the same names
            taken += [field.name for field in fields(TrainRequest)]
            assert sorted(taken) == sorted(i.id for i in schema.inputs)
        else:
            assert taken == [i.id for i in schema.inputs]


def test_every_node_names_search_words_where_the_host_takes_them(pack, monkeypatch):
    from dataclasses import dataclass, field

    from comfy_api.latest import io

    @dataclass
    class SchemaWithAliases(io.Schema):
        search_aliases: list = field(default_factory=list)

    if "search_aliases" not in io.Schema.__dataclass_fields__:
        monkeypatch.setattr(io, "Schema", SchemaWithAliases)
    for name, node in pack.items():
        words = node.define_schema().search_aliases
        assert len(words) >= 3, name
        assert len(set(map(str.lower, words))) == len(words), name
