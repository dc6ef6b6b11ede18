"""`python -m hyper_sd.demo.evaluate` where the package is not installed."""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import conftest  # noqa: F401 - binds the package

if __name__ == "__main__":
    runpy.run_module("hyper_sd.demo.evaluate", run_name="__main__", alter_sys=True)
