"""Binds the repository root as the package `hyper_sd`, as both hosts do in their own way."""

import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

if "hyper_sd" not in sys.modules:
    package = types.ModuleType("hyper_sd")
    package.__path__ = [str(ROOT)]
    sys.modules["hyper_sd"] = package
