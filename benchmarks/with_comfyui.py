"""How a benchmark gets a ComfyUI to import from: the same command once more, with the host on the path."""

import argparse
import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def add_comfyui_option(parser: argparse.ArgumentParser) -> None:
    """Adds --comfyui to a parser; COMFYUI_PATH is its default."""
    parser.add_argument("--comfyui", type=Path, default=os.environ.get("COMFYUI_PATH"), help="folder of a ComfyUI")


def enter_comfyui(parser: argparse.ArgumentParser, folder: Path | None) -> None:
    """Returns when the host can be imported, without a graphics card too; ends the program with the second run's exit code
    where it could not."""
    if not folder or not (Path(folder) / "main.py").is_file():
        parser.error(f"--comfyui or COMFYUI_PATH must name a ComfyUI folder, got {folder}")
    comfyui = str(Path(folder).resolve())
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if comfyui not in paths:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([comfyui, *filter(None, paths)])}
        raise SystemExit(subprocess.run(sys.orig_argv, env=environment, check=False).returncode)
    import comfy.options  # noqa: F401 - keeps the host from reading this command's arguments
    import utils.extra_config  # noqa: F401 - before nodes.py hides it
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()


def pack_nodes() -> dict[str, Any]:
    """Returns the pack's nodes by id; the host must be on the path."""
    from ..nodes.extension import HyperSDExtension

    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(HyperSDExtension().get_node_list())}
