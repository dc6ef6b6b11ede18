"""What do verified downloads cost beside huggingface_hub alone, and hashing beside hashlib? Time and peak memory, in turn.

One command, from the repository root, in an environment with the `test` extra; it needs about 4 GB of disk:

    python -m hyper_sd.benchmarks.download --out benchmarks/results/download.json

A loopback hub in this process serves one file of a GB. Each download is a program of its own, ours and the peer's in turn
(A B, B A, ..): the peer is huggingface_hub's own hf_hub_download, which neither verifies the content nor waits for the disk.
Ours does both. The clock is the wall clock around the download inside the program; the peak is the whole program's.
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROUNDS, MIB = 7, 2**20
OURS, PEER = "hyper_sd", "huggingface_hub"
REPO, FILE = "me/models", "model.safetensors"

_PROGRAM = """
import json, resource, sys, time, types
package = types.ModuleType("hyper_sd"); package.__path__ = [sys.argv[1]]; sys.modules["hyper_sd"] = package
which, folder, sha256, size = sys.argv[2:]
import filelock, hashlib, huggingface_hub
from pathlib import Path
from hyper_sd.models.catalog import UNKNOWN, read_entry
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


def summary(values: list[float]) -> dict[str, float]:
    """Returns the smallest, the median and the largest."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def compare_downloads(folder: Path, size: int, rounds: int, bytes_per_second: float) -> dict[str, Any]:
    """Downloads with both programs in turn and returns times, peaks and the ratios within each turn."""
    from hyper_sd.tests.models.loopback_hub import ALWAYS, Fault, LoopbackHub

    source = folder / "source.safetensors"
    write_model(source, size)
    seconds: dict[str, list[float]] = {OURS: [], PEER: []}
    peaks: dict[str, list[float]] = {OURS: [], PEER: []}
    with LoopbackHub() as hub:
        sha256 = hub.add(REPO, FILE, source)
        if bytes_per_second:
            hub.faults.append(Fault(times=ALWAYS, bytes_per_second=bytes_per_second))
        for turn in range(rounds):
            for which in (OURS, PEER) if turn % 2 else (PEER, OURS):
                took, peak = run_one(which, hub.endpoint, sha256, source.stat().st_size, folder)
                seconds[which].append(took)
                peaks[which].append(peak)
    ratios = [ours / peer for ours, peer in zip(seconds[OURS], seconds[PEER], strict=True)]
    return {
        "bytes": size,
        "line_bytes_per_second": bytes_per_second or None,
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "ratio": summary(ratios),
        "peak_mib": {name: summary(values) for name, values in peaks.items()},
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

    seconds: dict[str, list[float]] = {OURS: [], "hashlib": []}
    for turn in range(rounds):
        for name, call in ((OURS, ours), ("hashlib", plain))[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    ratios = [mine / theirs for mine, theirs in zip(seconds[OURS], seconds["hashlib"], strict=True)]
    return {"seconds": {name: summary(values) for name, values in seconds.items()}, "ratio": summary(ratios)}


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=10**9, help="bytes of the file; default %(default)s")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="where the files go; default: here")
    parser.add_argument("--line", type=float, default=125e6, help="bytes a second of the second line; default a gigabit")
    options = parser.parse_args()
    import huggingface_hub

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = {
            "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            "versions": {"python": platform.python_version(), "huggingface_hub": huggingface_hub.__version__},
            "rounds": options.rounds,
            "unlimited": compare_downloads(Path(folder), options.size, options.rounds, 0),
            "gigabit": compare_downloads(Path(folder), options.size, max(options.rounds // 2, 1), options.line),
            "hashing": compare_hashing(Path(folder), options.rounds),
        }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
