"""The command line of `python install.py votes`. Standard library only."""

import argparse
import glob
import json
from pathlib import Path

from .compare_options import COMPARISONS
from .errors import DemoError

KEY, RESULT = "comparison.json", "result.json"  # in a comparison's folder


def add_votes_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `votes` to a parser."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="files of votes, or folders of them")
    parser.add_argument(
        "--comparison",
        type=Path,
        metavar="FOLDER",
        help="the folder that `compare` wrote; default: found by the votes",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the results go; default: the comparison's folder")


def vote_files(given: list[str]) -> list[Path]:
    """Returns the files that are meant: those named, those that a pattern fits, and every JSON file but keys of a folder.

    Raises: DemoError for a path that is not there and a folder without one.
    """
    files: list[Path] = []
    for text in given:
        path = Path(text)
        found = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(text))]
        if path.is_dir():
            found = sorted(file for file in path.glob("*.json") if file.name not in {KEY, RESULT})
        if not found:
            raise DemoError(f"There is no file of votes at {text}; give what the comparison's page saved.")
        files += found
    return list(dict.fromkeys(file.resolve() for file in files))


def find_comparison(files: list[Path]) -> Path:
    """Returns the folder of the comparison that the first readable file of votes belongs to.

    It is looked for beside the files, in the folder above them, where one stands, and where `compare` puts comparisons.

    Raises: DemoError where there is none.
    """
    wanted = next(filter(None, (_said(file, "comparison") for file in files)), None)
    made = sorted(COMPARISONS.iterdir()) if COMPARISONS.is_dir() else []
    places = [folder for file in files for folder in (file.parent, file.parent.parent)]
    for folder in dict.fromkeys([*places, Path.cwd(), *made]):
        if wanted and _said(folder / KEY, "id") == wanted:
            return folder
    raise DemoError(
        "The comparison of these votes was not found; give the folder that `compare` wrote, where its comparison.json is: "
        "--comparison FOLDER."
    )


def _said(file: Path, name: str) -> str | None:
    """Returns one text of a JSON file, None where it has none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    value = content.get(name) if isinstance(content, dict) else None
    return value if isinstance(value, str) else None
