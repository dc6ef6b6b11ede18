"""What does the sampler cost inside A1111 or Forge? Beside the host's own Euler a without the network, and at CFG 1 with it.

One command, from the repository root, in the environment of `python install.py test`, with a WebUI that starts:

    python -m hyper_sd.benchmarks.webui_overhead --webui PATH --webui-python FILE --out benchmarks/results/webui_overhead.json

The host runs as the tests run it (tests/webui), with a tiny random checkpoint; probe.py times what lies between the host's
call of the sampler and its return: the grid, the loop, noise, callbacks. Both sides take turns in one process. Without the
network the clock is the processor time of the sampling thread, with it the wall clock.
"""

import json
import os
import shutil
import statistics
import tempfile
from pathlib import Path

import torch

from .measure import command_line, processor, ratios_of, start_logging, take_turns, write_result

STEPS, WARM_UP = 8, 3
OURS, PEER = "Hyper-SD TCD", "Euler a"
BARS = {"without the network": 1.1, "CFG 1": 0.6}
QUIET = {"live_previews_enable": False}


def _timed(host, **changes) -> tuple[float, float]:
    """Returns (thread seconds, wall seconds) per step of one picture."""
    host.ask("/sdapi/v1/txt2img", {"steps": STEPS, "cfg_scale": 1, "seed": 1, "save_images": False, **changes})
    _, steps, thread, wall = json.loads((host.data / "probe.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return thread / steps, wall / steps


def _compare(host, first: dict, second: dict, turns: int, clock: int) -> dict:
    """Returns milliseconds per step of two requests made in turn, and the first's ratio to the second within a turn."""
    sides = {
        name: lambda request=request: _timed(host, **request)[clock] for name, request in (("ours", first), ("peer", second))
    }
    ours, peer = take_turns(sides, turns, WARM_UP).values()
    ratios = statistics.quantiles(ratios_of(ours, peer), n=4)
    return {
        "ours_ms": round(1e3 * statistics.median(ours), 3),
        "peer_ms": round(1e3 * statistics.median(peer), 3),
        "ratio_of_min": round(min(ours) / min(peer), 3),
        "ratio_quartiles": [round(ratio, 3) for ratio in ratios],
    }


def measure(host, turns: int) -> dict:
    """Returns both comparisons: a 512 x 512 picture without the network; 256 x 256 with it, negative prompt skipped or not."""
    without = {"width": 512, "height": 512, "prompt": "without model", "override_settings": QUIET}
    apart = _compare(host, {**without, "sampler_name": OURS}, {**without, "sampler_name": PEER}, turns, clock=0)
    small = {"width": 256, "height": 256, "override_settings": QUIET}
    ours = {**small, "prompt": "red apple", "negative_prompt": "green", "sampler_name": OURS}
    default = {**ours, "override_settings": {**QUIET, "hyper_sd_skip_negative": False}}
    return {
        "without the network": {"peer": PEER, **apart},
        "CFG 1": {"peer": "the same with the host's default", **_compare(host, ours, default, turns, clock=1)},
    }


def main() -> None:
    """Starts the host, measures, and writes the result."""
    from ..tests.webui.webui_host import WebUI, default_python, prepare

    parser = command_line(__doc__)
    parser.add_argument("--webui", type=Path, default=os.environ.get("A1111_PATH"), help="folder of an A1111 or Forge")
    parser.add_argument("--webui-python", default=os.environ.get("A1111_PYTHON"), help="its Python; default: the venv there")
    parser.add_argument("--turns", type=int, default=40, help="turns of both sides; default %(default)s")
    given = parser.parse_args()
    if not given.webui:
        parser.error("give --webui, or set A1111_PATH")
    start_logging()
    with tempfile.TemporaryDirectory() as folder:
        host = WebUI(Path(given.webui).resolve(), Path(folder), given.webui_python or default_python(given.webui))
        prepare(host.data, host.root)
        shutil.copy(Path(__file__).parents[1] / "tests" / "webui" / "probe.py", host.data / "extensions/recorder/scripts")
        (host.data / "extensions/recorder/scripts/recorder.py").unlink()
        with host:
            result = measure(host, given.turns)
    machine = {"cpu": processor(), "cores": os.cpu_count(), "torch_of_tests": torch.__version__}
    write_result(
        {"host": host.root.name, "steps": STEPS, "turns": given.turns, "bars": BARS, "machine": machine, **result}, given.out
    )


if __name__ == "__main__":
    main()
