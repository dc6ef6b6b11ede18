"""What do verified downloads cost beside huggingface_hub alone, and hashing beside hashlib? Time and peak memory, in turn.

One command, from the repository root, in the environment of `python install.py test`; it needs about 4 GB of disk:

    python -m hyper_sd.benchmarks.download --out benchmarks/results/download.json

A loopback hub in this process serves one file of a GB. Each download is a program of its own, ours and the peer's in turn
(A B, B A, ..): the peer is huggingface_hub's own hf_hub_download, which neither verifies the content nor waits for the disk.
Ours does both. The clock is the wall clock around the download inside the program; the peak is the whole program's.
"""

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .measure import MIB, command_line, extremes, machine, ratios_of, start_logging, take_turns, versions, write_result

ROUNDS = 7
OURS, PEER = "hyper_sd", "huggingface_hub"
REPO, FILE = "me/models", "model.safetensors"

_PROGRAM = """
import json, resource, sys, time, types
package = types.ModuleType("hyper_sd"); package.__path__ = [sys.argv[1]]; sys.modules["hyper_sd"] = package
which, folder, sha256, size = sys.argv[2:]
import filelock, hashlib, huggingface_hub
from pathlib import Path
from hyper_sd.models.entry import UNKNOWN, read_entry
from hyper_sd.models.download import download
session = huggingface_hub.get_session()
entry = read_entry({"id": "model", "family": "sdxl", "kind": "n-step", "steps": 4, "repo": "me/models",
                    "file": "model.safetensors", "sha256": sha256, "size": int(size)}, {"unknown": UNKNOWN})
start = time.perf_counter()
if which == "hyper_sd":
    download(entry, Path(folder), progress=lambda progress: None)
else:
    huggingface_hub.hf_hub_download("me/models", "model.safetensors", local_dir=folder)
seconds = time.perf_counter() - start
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def write_model(path: Path, size: int) -> None:
    """Writes a safetensors file of about `size` bytes that do not compress."""
    header = json.dumps({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(0, size, 16 * MIB):
            file.write(os.urandom(min(16 * MIB, size)))
        file.truncate(8 + len(header) + size)


def run_one(which: str, endpoint: str, sha256: str, size: int, folder: Path) -> tuple[float, float]:
    """Returns one download's seconds and its program's peak memory in MiB."""
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory(dir=folder) as target:
        command = [sys.executable, "-c", _PROGRAM, str(root), which, target, sha256, str(size)]
        env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def compare_downloads(folder: Path, size: int, rounds: int, bytes_per_second: float) -> dict[str, Any]:
    """Downloads with both programs in turn and returns times, peaks and the ratios within each turn."""
    from hyper_sd.tests.models.loopback_hub import ALWAYS, Fault, LoopbackHub

    source = folder / "source.safetensors"
    write_model(source, size)
    with LoopbackHub() as hub:
        sha256 = hub.add(REPO, FILE, source)
        if bytes_per_second:
            hub.faults.append(Fault(times=ALWAYS, bytes_per_second=bytes_per_second))
        whole = source.stat().st_size
        sides = {which: lambda which=which: run_one(which, hub.endpoint, sha256, whole, folder) for which in (OURS, PEER)}
        runs = take_turns(sides, rounds)
    seconds, peaks = ({which: [run[figure] for run in done] for which, done in runs.items()} for figure in (0, 1))
    return {
        "bytes": size,
        "line_bytes_per_second": bytes_per_second or None,
        "seconds": {name: extremes(values) for name, values in seconds.items()},
        "ratio": extremes(ratios_of(seconds[OURS], seconds[PEER])),
        "peak_mib": {name: extremes(values) for name, values in peaks.items()},
        "extra_mib": statistics.median(peaks[OURS]) - statistics.median(peaks[PEER]),
    }


def compare_hashing(folder: Path, rounds: int) -> dict[str, Any]:
    """Hashes the same cached file with ours and with hashlib.file_digest (or a plain read loop before Python 3.11)."""
    from ..models import files

    path = folder / "source.safetensors"

    def plain() -> str:
        with path.open("rb") as file:
            if hasattr(hashlib, "file_digest"):
                return hashlib.file_digest(file, "sha256").hexdigest()
            digest = hashlib.sha256()
            while block := file.read(2**18):
                digest.update(block)
            return digest.hexdigest()

    def ours() -> str:
        path.touch()  # otherwise the second time is remembered
        return files.sha256_of(path, lambda done: None)

    def seconds_of(call: Callable[[], str]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    seconds = take_turns({OURS: lambda: seconds_of(ours), "hashlib": lambda: seconds_of(plain)}, rounds)
    ratio = extremes(ratios_of(seconds[OURS], seconds["hashlib"]))
    return {"seconds": {name: extremes(values) for name, values in seconds.items()}, "ratio": ratio}


def main() -> None:
    """Measures and writes the result."""
    parser = command_line(__doc__)
    parser.add_argument("--size", type=int, default=10**9, help="bytes of the file; default %(default)s")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of both sides; default %(default)s")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="where the files go; default: here")
    parser.add_argument("--line", type=float, default=125e6, help="bytes a second of the second line; default a gigabit")
    options = parser.parse_args()
    start_logging()
    import huggingface_hub

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = {
            "machine": machine(),
            "versions": versions(huggingface_hub=huggingface_hub.__version__),
            "rounds": options.rounds,
            "unlimited": compare_downloads(Path(folder), options.size, options.rounds, 0),
            "gigabit": compare_downloads(Path(folder), options.size, max(options.rounds // 2, 1), options.line),
            "hashing": compare_hashing(Path(folder), options.rounds),
        }
    write_result(result, options.out)


if __name__ == "__main__":
    main()
