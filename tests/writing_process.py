"""A program that never gets done with writing a file, to be killed: python writing_process.py TARGET."""

import sys
import time
import types
from pathlib import Path


def main(target: str) -> None:
    """Writes half of a file, says so on standard output, and waits."""
    package = types.ModuleType("hyper_sd")
    package.__path__ = [str(Path(__file__).resolve().parents[1])]
    sys.modules["hyper_sd"] = package
    from hyper_sd.disk import whole_file

    with whole_file(Path(target)) as partial:
        partial.write_bytes(b"half of it")
        sys.stdout.write(f"{partial.name}\n")
        sys.stdout.flush()
        time.sleep(600)


main(*sys.argv[1:])
