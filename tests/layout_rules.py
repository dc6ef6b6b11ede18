"""The repository's layout rules as pure functions: (path inside the repository, its syntax tree) -> the problems found."""

import ast
from collections.abc import Iterator
from pathlib import PurePosixPath

GROUND = frozenset({"errors", "disk"})  # what every room may use
BELOW = {"samplers": frozenset()}  # each room's own floors below it
BELOW |= dict.fromkeys(("models", "rewards"), frozenset({"samplers"}))
BELOW["evaluation"] = frozenset({"samplers", "models", "rewards"})
BELOW["training"] = BELOW["evaluation"] | {"evaluation"}  # whose sheets and charts show how a training goes
BELOW |= dict.fromkeys(("nodes", "webui_extension", "demo"), frozenset(BELOW))
DOCUMENTED = BELOW.keys() - {"webui_extension", "demo"}
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
UNSAFE_CALLS = {"eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads"}
PATH_EDITS = {"append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"}
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
    """nodes, webui_extension, demo -> training -> evaluation -> rewards, models -> samplers -> errors, disk; never back."""
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
    """No eval, exec, pickle or shell=True; torch.load in demo/recipe with weights_only=True. Tests may pickle a bad file."""
    problems = _border(UNSAFE_MODULES, {"tests"}, path, tree)
    for call, name in _calls(tree):
        given = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
        if name in UNSAFE_CALLS:
            problems.append(f"line {call.lineno}: {name}()")
        if given.get("shell") is True or given.get("allow_pickle") is True:
            problems.append(f"line {call.lineno}: shell or allow_pickle is True")
        in_recipe = str(path).startswith("demo/recipe/")
        if name == "torch.load" and not (in_recipe and given.get("weights_only") is True):
            problems.append(f"line {call.lineno}: torch.load")
    return problems


def _docstring_lines(node: ast.AST) -> int:
    if ast.get_docstring(node, clean=False) is None:
        return 0
    return node.body[0].end_lineno - node.body[0].lineno + 1


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


RULES = {
    rule.__name__: rule
    for rule in (
        arrows, comfyui_border, webui_border, network, no_print, no_path_edits, no_unsafe_code, sizes, docstrings,
    )
}  # fmt: skip
