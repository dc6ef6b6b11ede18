"""The command line of `python install.py compare`. Standard library only."""

import argparse
import os
from pathlib import Path

from .errors import DemoError
from .requirements import ROOT

COMPARISONS = ROOT / "comparisons"  # where comparisons go that were given no other folder


def _whole(name: str, low: int, remedy: str):
    """Returns an argparse type for a whole number from `low` on, with an error that says what to do."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"{name} must be a whole number from {low} on, got {text!r}; {remedy}.")
        return value

    return parse


def add_compare_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `compare` to a parser."""
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="2 or more folders of pictures with equal file names"
    )
    limit = _whole("limit", 1, "leave it out to show every pair")
    parser.add_argument("--limit", type=limit, metavar="N", help="different pairs at most; default: all")
    parser.add_argument("--question", default="", metavar="TEXT", help="what is asked; default: which picture is liked better")
    longest = _whole("longest", 16, "leave it out to keep the pictures' sizes")
    parser.add_argument("--longest", type=longest, metavar="N", help="scale larger pictures down to this side, in pixels")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--inside", action="store_const", const=True, dest="inside", help="put the pictures into the page")
    place.add_argument(
        "--beside", action="store_const", const=False, dest="inside", help="put them into a folder beside it; default: by size"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: a new folder in `comparisons` in this folder")


def check_compare(parsed: argparse.Namespace) -> None:
    """Refuses what cannot be compared before anything is installed.

    Raises: DemoError for an --out that has a comparison; EvaluationError for folders that cannot be compared.
    """
    from ..evaluation.comparison import KEY, find_pictures

    if parsed.out and os.path.lexists(parsed.out / KEY):
        raise DemoError(
            f"--out {parsed.out} has a comparison already, whose votes could not be read any more; give another folder."
        )
    find_pictures(parsed.folders)
