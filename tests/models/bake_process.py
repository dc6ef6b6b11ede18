"""A baking program of its own, whose memory counts: python bake_process.py BASE LORA TARGET."""

import resource
import sys
import types
from pathlib import Path

import torch


def main(base: str, lora: str, target: str) -> None:
    """Bakes once, and says by how many bytes the memory has grown since a first sum had loaded what sums need."""
    package = types.ModuleType("hyper_sd")
    package.__path__ = [str(Path(__file__).resolve().parents[2])]
    sys.modules["hyper_sd"] = package
    from hyper_sd.models.bake import bake

    torch.addmm(torch.ones(64, 64), torch.ones(64, 64), torch.ones(64, 64))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bake(Path(base), Path(lora), Path(target))
    sys.stdout.write(str(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)))


main(*sys.argv[1:])
