"""Door 2 in a process of its own: what it binds, what it imports, and that a second load replaces the first."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

CODE = """
import sys, tempfile, types
from pathlib import Path
package = types.ModuleType("hyper_sd")
package.__path__ = [{root!r}]
sys.modules["hyper_sd"] = package
from hyper_sd.tests.webui_extension.stub_host import StubHost
from hyper_sd.tests.webui_extension.stub_run import load_extension
host = StubHost(Path(tempfile.mkdtemp()))
host.start()
before = list(sys.path)
del sys.modules["hyper_sd"]
for _ in range(2):  # Reload UI runs it again
    load_extension(host)
print("bound to", sys.modules["hyper_sd"].__path__[0], "path kept", sys.path == before)
print("samplers", [data.name for data in host._modules["modules.sd_samplers"].all_samplers])
print("foreign", sorted(name for name in sys.modules if name.split(".")[0] in ("comfy", "diffusers", "transformers")))
"""


def test_door_binds_the_package_and_a_second_load_replaces_the_first():
    code = CODE.format(root=str(ROOT))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"bound to {ROOT} path kept True" in done.stdout
    assert "samplers ['DPM++ 2M', 'Euler', 'Hyper-SD TCD']" in done.stdout
    assert "foreign []" in done.stdout
