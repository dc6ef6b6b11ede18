"""Door 2 under a stub of the one name it uses, modules.scripts.basedir; no WebUI is involved."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

HOST_STUB = """
import runpy, sys, types
modules, scripts = types.ModuleType("modules"), types.ModuleType("modules.scripts")
scripts.basedir = lambda: {root!r}
modules.scripts = scripts
sys.modules.update({{"modules": modules, "modules.scripts": scripts}})
for _ in range(2):  # Reload UI runs it again
    runpy.run_path({door!r})
print("bound to", sys.modules["hyper_sd"].__path__[0])
print("hosts", sorted(name for name in sys.modules if name.split(".")[0] in ("comfy", "torch")))
"""


def test_door_binds_the_package_and_says_that_nothing_was_added():
    code = HOST_STUB.format(root=str(ROOT), door=str(ROOT / "scripts" / "hyper_sd.py"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert f"bound to {ROOT}" in done.stdout
    assert "hosts []" in done.stdout
    assert done.stderr.count("adds nodes to ComfyUI only") == 2
