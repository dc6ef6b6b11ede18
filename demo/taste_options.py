"""The command line of `python install.py taste`. Standard library only."""

import argparse
from pathlib import Path

FEATURES = ("auto", "clip_l", "embedded")


def _existing(what: str):
    """Returns an argparse type for a path that has to be there."""

    def parse(text: str) -> Path:
        path = Path(text)
        if not path.exists():
            raise argparse.ArgumentTypeError(f"there is no {what} {text}; give one that is there.")
        return path

    return parse


def _safetensors(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() != ".safetensors":
        raise argparse.ArgumentTypeError(f"a taste is a .safetensors file, got {text!r}; for example my_taste.safetensors.")
    return path


def add_taste_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `taste` to a parser."""
    parser.add_argument(
        "votes", nargs="+", type=_existing("file of votes"), metavar="VOTES", help="files that the page of `compare` saved"
    )
    parser.add_argument(
        "--comparison", required=True, type=_existing("comparison"), metavar="FOLDER", help="the folder that `compare` wrote"
    )
    parser.add_argument(
        "--features", choices=FEATURES, default="auto",
        help="what is seen of a picture: clip_l needs `download reward-clip-vit-l-14`, embedded knows the demo model's "
        "drawings; default: clip_l where its file is there",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=_safetensors, metavar="FILE", help="file to write; default: my_taste.safetensors in the host's folder"
    )
    parser.add_argument(
        "--comfyui", type=_existing("folder"), metavar="PATH", help="the ComfyUI that shall have it; default: the host found"
    )
