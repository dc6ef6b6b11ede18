"""The repository's layout rules as pure functions: (path inside the repository, its syntax tree) -> the problems found."""

import ast
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

GROUND = frozenset({"errors", "disk", "host_version"})  # what every room may use
BELOW = {"samplers": frozenset()}  # each room's own floors below it
BELOW["models"] = frozenset({"samplers"})
BELOW["rewards"] = frozenset({"samplers", "models"})  # whose catalogue says which files a scorer needs
BELOW["evaluation"] = frozenset({"samplers", "models", "rewards"})
BELOW["training"] = BELOW["evaluation"] | {"evaluation"}  # whose sheets and charts show how a training goes
BELOW |= dict.fromkeys(("nodes", "webui_extension", "demo"), frozenset(BELOW))
DOCUMENTED = BELOW.keys() - {"webui_extension", "demo"}
CROWDED = ("webui_extension/",)  # folders that the rule on arguments leaves alone
COMFYUI = {
    "comfy", "comfy_api", "comfy_config", "comfy_execution", "comfy_extras", "execution", "folder_paths",
    "latent_preview", "node_helpers", "nodes", "server",
}  # fmt: skip
WEBUI = {"gradio", "modules", "modules_forge"}
NETWORK = {
    "aiohttp",
    "ftplib",
    "http",
    "httpx",
    "huggingface_hub",
    "pip",
    "requests",
    "socket",
    "subprocess",
    "urllib",
    "urllib3",
}
UNSAFE_MODULES = {"cloudpickle", "dill", "marshal", "pickle", "shelve"}
# Where torch.load may be called, with weights_only=True alone: the recipe, and the one file that first compares the SHA-256.
CHECKPOINT_READERS = ("demo/recipe/", "rewards/weights.py")
UNSAFE_CALLS = {"eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads"}
PATH_EDITS = {"append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"}
FAMILIES = {"sd15", "sdxl", "sd3", "flux"}
# Where families may be listed: in their own records, and in a training's presets, whose sizes were measured family by family.
FAMILY_TABLES = {"models/families.py", "training/preset_table.py"}
MAX_FILE, MAX_FUNCTION = 300, 40
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def top(path: PurePosixPath) -> str:
    """Returns the top-level folder of a path, "" for a file in the root."""
    return path.parts[0] if len(path.parts) > 1 else ""


def dotted(node: ast.AST) -> str:
    """Returns "a.b.c" for a name or an attribute chain, else ""."""
    if isinstance(node, ast.Name):
        return node.id
    base = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{base}.{node.attr}" if base else ""


def _calls(tree: ast.Module) -> Iterator[tuple[ast.Call, str]]:
    return ((node, dotted(node.func)) for node in ast.walk(tree) if isinstance(node, ast.Call))


def _relative(path: PurePosixPath, node: ast.ImportFrom) -> Iterator[str]:
    """Turns `from ..a import b` into "hyper_sd.a.b", reading the repository root as the package."""
    package = list(path.parts[:-1])
    package = package[: len(package) - (node.level - 1)]
    base = ".".join(["hyper_sd", *package, *([node.module] if node.module else [])])
    yield from (f"{base}.{alias.name}" for alias in node.names)


def imports(path: PurePosixPath, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields (line, absolute module name) of every import, importlib.import_module("...") and __import__("...") included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = _relative(path, node) if node.level else (f"{node.module}.{alias.name}" for alias in node.names)
            yield from ((node.lineno, name) for name in names)
    for call, name in _calls(tree):
        if name.rpartition(".")[2] in {"import_module", "__import__"} and call.args and isinstance(call.args[0], ast.Constant):
            yield call.lineno, str(call.args[0].value)


def arrows(path: PurePosixPath, tree: ast.Module) -> list[str]:
    """nodes, webui_extension, demo -> training -> evaluation -> rewards -> models -> samplers -> GROUND; never back."""
    own = str(path.with_suffix("")) if str(path.with_suffix("")) in GROUND else top(path)
    if own not in BELOW and own not in GROUND:
        return []
    reached = [(line, name, name.split(".")[1]) for line, name in imports(path, tree) if name.startswith("hyper_sd.")]
    allowed = BELOW.get(own, frozenset()) | {own, *GROUND}
    return [f"line {line}: {own} imports {name}" for line, name, folder in reached if folder not in allowed]


def _border(modules: set[str], folders: set[str], path: PurePosixPath, tree: ast.Module) -> list[str]:
    if top(path) in folders:
        return []
    return [f"line {line}: imports {name}" for line, name in imports(path, tree) if name.split(".")[0] in modules]


def comfyui_border(path: PurePosixPath, tree: ast.Module) -> list[str]:
    """ComfyUI's modules are imported in nodes/, benchmarks/ and tests/ only."""
    return _border(COMFYUI, {"nodes", "benchmarks", "tests"}, path, tree)


def webui_border(path: PurePosixPath, tree: ast.Module) -> list[str]:
    """The A1111 family's modules are imported in webui_extension/, scripts/ and tests/ only."""
    return _border(WEBUI, {"webui_extension", "scripts", "tests"}, path, tree)


def network(path: PurePosixPath, tree: ast.Module) -> list[str]:
    """Network, pip and child processes belong to install.py, models/download.py, demo/ and what drives them."""
    if str(path) in {"install.py", "models/download.py"}:
        return []
    return _border(NETWORK, {"demo", "tests", "benchmarks"}, path, tree)


def no_print(path: PurePosixPath, tree: ast.Module) -> list[str]:
    """Only install.py, demo/ and examples/ speak to a terminal; everything else logs."""
    if str(path) == "install.py" or top(path) in {"demo", "examples"}:
        return []
    return [f"line {call.lineno}: print()" for call, name in _calls(tree) if name == "print"]


def no_path_edits(path: PurePosixPath, tree: ast.Module) -> list[str]:
    """Nothing but a test's fixture edits sys.path."""
    if top(path) == "tests":
        return []
    edits = [
        call.lineno for call, name in _calls(tree) if name in {f"sys.path.{edit}" for edit in PATH_EDITS} | {"site.addsitedir"}
    ]
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else [getattr(node, "target", None)]
        chains = [dotted(t.value if isinstance(t, ast.Subscript) else t) for t in targets if t is not None]
        edits += [node.lineno for chain in chains if chain == "sys.path"]
    return [f"line {line}: edits sys.path" for line in edits]


def no_unsafe_code(path: PurePosixPath, tree: ast.Module) -> list[str]:
    """No eval, exec, pickle or shell=True; torch.load in CHECKPOINT_READERS, with weights_only. Tests may pickle a bad file."""
    problems = _border(UNSAFE_MODULES, {"tests"}, path, tree)
    for call, name in _calls(tree):
        given = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
        if name in UNSAFE_CALLS:
            problems.append(f"line {call.lineno}: {name}()")
        if given.get("shell") is True or given.get("allow_pickle") is True:
            problems.append(f"line {call.lineno}: shell or allow_pickle is True")
        may_read = str(path).startswith(CHECKPOINT_READERS)
        if name == "torch.load" and not (may_read and given.get("weights_only") is True):
            problems.append(f"line {call.lineno}: torch.load")
    return problems


def _docstring_lines(node: ast.AST) -> int:
    if ast.get_docstring(node, clean=False) is None:
        return 0
    return node.body[0].end_lineno - node.body[0].lineno + 1


def _listed(node: ast.AST) -> list[ast.AST | None]:
    """Returns what a literal or a call of dict() lists."""
    if isinstance(node, ast.Dict):
        return [*node.keys, *node.values]
    if isinstance(node, ast.Call) and dotted(node.func) == "dict":
        return [ast.Constant(keyword.arg) for keyword in node.keywords]
    return node.elts if isinstance(node, ast.List | ast.Tuple | ast.Set) else []


def families(path: PurePosixPath, tree: ast.Module) -> list[str]:
    """What a family of models is, models/families.py alone says: no other table names two of them."""
    if top(path) in {"tests", "benchmarks"} or str(path) in FAMILY_TABLES:
        return []
    tables = [(node.lineno, _listed(node)) for node in ast.walk(tree) if isinstance(node, ast.expr)]
    named = [(line, {n.value for n in items if isinstance(n, ast.Constant)} & FAMILIES) for line, items in tables]
    return [f"line {line}: lists {', '.join(sorted(names))}" for line, names in named if len(names) > 1]


def sizes(path: PurePosixPath, tree: ast.Module) -> list[str]:
    """Files of at most 300 lines, functions of at most 40, docstrings not counted."""
    last = max((node.end_lineno for node in ast.walk(tree) if hasattr(node, "end_lineno")), default=0)
    problems = [f"{last} lines, at most {MAX_FILE}"] if last > MAX_FILE else []
    for node in ast.walk(tree):
        if isinstance(node, FUNCTION):
            length = node.end_lineno - node.lineno + 1 - _docstring_lines(node)
            if length > MAX_FUNCTION:
                problems.append(f"line {node.lineno}: {node.name} has {length} lines, at most {MAX_FUNCTION}")
    return problems


def docstrings(path: PurePosixPath, tree: ast.Module) -> list[str]:
    """Every public function and class of the host-free folders and nodes/ is documented, and so is every module."""
    problems = [] if ast.get_docstring(tree) or top(path) == "tests" else ["the module has no docstring"]
    if top(path) not in DOCUMENTED:
        return problems
    bare = [n for n in tree.body if isinstance(n, (*FUNCTION, ast.ClassDef)) and n.name[0] != "_" and not ast.get_docstring(n)]
    return problems + [f"line {node.lineno}: {node.name} has no docstring" for node in bare]


def _described(node: ast.AST) -> set[str]:
    """Returns the names that a docstring's Args may describe: a function's arguments; a class's attributes and __init__'s."""
    if isinstance(node, FUNCTION):
        arguments = node.args
        listed = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        return {argument.arg for argument in listed if argument}
    attributes = {n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    makers = (n for n in node.body if isinstance(n, FUNCTION) and n.name == "__init__")
    return attributes.union(*map(_described, makers))


def _crowded(docstring: str, names: set[str]) -> bool:
    """Returns whether Args has two arguments on a line, or one beside the word that others follow on lines of their own."""
    section = re.search(r"\bArgs:.*(?:\n(?! *(?:Returns|Raises|Source):).*)*", docstring, re.MULTILINE)
    if not section:
        return False
    lines = [line.strip() for line in section[0].splitlines()]
    lists = [re.match(r"(?:Args: *)?((?:\w+[,;/] *)+\w+) *:", line) for line in lines]
    told = [[name for name in re.findall(r"(?<![\w.\"'])(\w+):(?!\w)", line) if name in names] for line in lines]
    joined = any(name in names for name in re.findall(r"; (\w+)", lines[0]))
    beside = lines[0] != "Args:" and (joined or sum(map(len, told)) > 1)
    return beside or any(lists) or any(len(set(line)) > 1 for line in told)


def arguments(path: PurePosixPath, tree: ast.Module) -> list[str]:
    """A docstring describes one argument a line; Args stands alone on its line where there are several."""
    if top(path) not in BELOW or str(path).startswith(CROWDED):
        return []
    nodes = [node for node in ast.walk(tree) if isinstance(node, (*FUNCTION, ast.ClassDef)) and ast.get_docstring(node)]
    crowded = [node for node in nodes if _crowded(ast.get_docstring(node), _described(node))]
    return [f"line {node.lineno}: {node.name} describes several arguments on one line" for node in crowded]


def tests_apart(path: PurePosixPath, tree: ast.Module) -> list[str]:
    """No test module is imported: fixtures stand in a conftest.py, where pytest finds them, helpers in modules of their own."""
    problems = []
    for line, name in imports(path, tree):
        parts = name.split(".")
        is_test = any(part.startswith("test_") for part in parts)
        if parts[:2] == ["hyper_sd", "tests"] and (is_test or "conftest" in parts[3:]):
            problems.append(f"line {line}: imports {name}")
    return problems


RULES = {
    rule.__name__: rule
    for rule in (
        arrows, comfyui_border, webui_border, network, no_print, no_path_edits, no_unsafe_code, families, sizes,
        docstrings, arguments, tests_apart,
    )
}  # fmt: skip
