"""A downloading program of its own, to be killed, run twice at once, or sent offline: python download_process.py ENTRY ROOT."""

import json
import sys
import types
from pathlib import Path


def main(entry_file: str, root: str) -> None:
    """Downloads the entry that a catalogue file describes last, saying how far it is on standard output."""
    package = types.ModuleType("hyper_sd")
    package.__path__ = [str(Path(__file__).resolve().parents[2])]
    sys.modules["hyper_sd"] = package
    from hyper_sd.errors import DownloadError
    from hyper_sd.models.catalog import load_catalog
    from hyper_sd.models.download import download

    def tell(progress) -> None:
        sys.stdout.write(f"{json.dumps([progress.state.value, progress.bytes_done])}\n")
        sys.stdout.flush()

    try:
        download(load_catalog(Path(entry_file)).entries[-1], Path(root), progress=tell)
    except DownloadError as error:
        sys.exit(str(error))


main(*sys.argv[1:])
