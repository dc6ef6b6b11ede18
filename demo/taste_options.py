"""The command line of `python install.py taste`. Standard library only."""

import argparse
from pathlib import Path

from .errors import DemoError
from .votes_options import KEY, vote_files

FEATURES = ("auto", "clip_l", "embedded")


def add_taste_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `taste` to a parser."""
    parser.add_argument("votes", nargs="+", metavar="VOTES", help="files of votes, or folders of them")
    parser.add_argument(
        "--comparison", type=Path, metavar="FOLDER", help="the folder that `compare` wrote; default: found by the votes"
    )
    parser.add_argument(
        "--features", choices=FEATURES, default="auto",
        help="what is seen of a picture: clip_l needs `download reward-clip-vit-l-14`, embedded knows the demo model's "
        "drawings; default: clip_l where its file is there",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=_safetensors, metavar="FILE", help="file to write; default: my_taste.safetensors in the host's folder"
    )
    parser.add_argument("--comfyui", type=Path, metavar="PATH", help="the ComfyUI that shall have it; default: the host found")


def _safetensors(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() != ".safetensors":
        raise argparse.ArgumentTypeError(f"a taste is a .safetensors file, got {text!r}; for example my_taste.safetensors.")
    return path


def check_taste(parsed: argparse.Namespace) -> None:
    """Refuses what cannot work before anything is installed.

    Raises: DemoError naming what is not there.
    """
    vote_files(parsed.votes)
    if parsed.comparison and not (parsed.comparison / KEY).is_file():
        raise DemoError(f"There is no {KEY} in {parsed.comparison}; give the folder that `compare` wrote.")
    if parsed.comfyui and not parsed.comfyui.is_dir():
        raise DemoError(f"There is no folder {parsed.comfyui}; give the ComfyUI that shall have your taste.")
