"""Door 2 in a process of its own: what it binds, what it imports, and that a second load replaces the first."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from hyper_sd.tests.webui_extension.stub_run import DOOR, load_extension, unload_extension

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


def _lists(host) -> dict[str, list]:
    """Returns what every list of the host names, in its order."""
    samplers, types = host._modules["modules.sd_samplers"], host._modules.get("modules.sd_schedulers")
    lists = {
        "samplers": [data.name for data in samplers.samplers],
        "map": list(samplers.all_samplers_map),
        "lower": list(samplers.samplers_map),
        "options": list(host.shared.opts.data_labels),
    }
    return lists | ({"types": [t.label for t in types.schedulers], "types_map": list(types.schedulers_map)} if types else {})


@pytest.mark.parametrize("schedule_types", [True, False])
def test_reload_ui_without_the_extension_leaves_nothing_and_with_it_everything_once(make_host, schedule_types):
    host = make_host(schedule_types=schedule_types)
    loaded = _lists(host)
    host.shared.opts.data["hyper_sd_end"] = "alpha_bar[0]"
    unload_extension(host)
    assert not [name for names in _lists(host).values() for name in names if "hyper" in name.lower()]
    assert host.shared.opts.data["hyper_sd_end"] == "alpha_bar[0]"
    for _ in range(2):
        load_extension(host)
        assert _lists(host) == loaded
        runpy.run_path(str(DOOR))  # the hosts' button Reload custom script bodies
        assert _lists(host) == loaded
    assert all(len(set(names)) == len(names) for names in loaded.values())


def test_the_host_finds_no_sampler_of_ours_once_it_is_switched_off(host):
    lookup = host._modules["modules.sd_samplers"].get_sampler_and_scheduler
    assert lookup("Hyper-SD TCD", "Hyper-SD") == ("Hyper-SD TCD", "Hyper-SD")
    unload_extension(host)
    assert lookup("Hyper-SD TCD", "Hyper-SD") == ("DPM++ 2M", "Automatic")
