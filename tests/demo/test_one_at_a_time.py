"""The lock between processes that install."""

import subprocess
import sys
import time

from hyper_sd.demo.one_at_a_time import one_at_a_time
from hyper_sd.tests.conftest import ROOT

# Takes the lock, writes that it has begun, waits, and writes that it has ended.
RUN = """
import sys, time
from pathlib import Path
import install

install.bind_package()
from hyper_sd.demo.one_at_a_time import one_at_a_time

with one_at_a_time(Path(sys.argv[1]) / "lock", "at it"), open(Path(sys.argv[1]) / "log", "a") as log:
    print("begin", file=log, flush=True)
    time.sleep(float(sys.argv[2]))
    print("end", file=log, flush=True)
"""


def _start(folder, seconds: float) -> subprocess.Popen:
    command = [sys.executable, "-c", RUN, str(folder), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_processes_take_turns_and_the_waiting_ones_say_so(tmp_path):
    running = [_start(tmp_path, 0.4) for _ in range(4)]
    said = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0] * 4
    assert (tmp_path / "log").read_text(encoding="utf-8").split() == ["begin", "end"] * 4
    assert any("Another run is at it; waiting for it." in text for text in said)


def test_lock_of_a_killed_process_is_free(tmp_path):
    killed = _start(tmp_path, 600)
    deadline = time.monotonic() + 60
    while not (tmp_path / "log").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    with one_at_a_time(tmp_path / "lock", "at it"):
        assert (tmp_path / "log").read_text(encoding="utf-8").split() == ["begin"]


def test_lock_is_free_after_an_error(tmp_path):
    for _ in range(2):
        try:
            with one_at_a_time(tmp_path / "lock", "at it"):
                raise RuntimeError
        except RuntimeError:
            continue
    assert (tmp_path / "lock").is_file()
