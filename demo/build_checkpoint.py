"""`python install.py bake` and `build`: a LoRA into a checkpoint, or the lone SDXL UNet with a checkpoint's other parts."""

import argparse
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path

from ..models.files import index_folders
from .console import StatusLine, say
from .errors import DemoError
from .fetch_models import model_folders

PRECISIONS = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
AS_IT_IS = "as-it-is"
MOST_NAMED = 20  # layers without a place that are named, each on a line


def _strength(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"strength must be a number, got {text!r}; 1 is as the LoRA was made.")
    return value


def add_bake_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `bake` to a parser."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="an SD1.5 or SDXL checkpoint: a path, or a name in the host's")
    parser.add_argument("lora", metavar="LORA", help="a path, or a name in the host's folder of LoRAs")
    parser.add_argument("--strength", type=_strength, default=1.0, metavar="S", help="of the LoRA, as a host takes it")
    parser.add_argument("--text-strength", type=_strength, metavar="S", help="in the text encoders; default: as --strength")
    parser.add_argument("--precision", choices=[AS_IT_IS, *PRECISIONS], default=AS_IT_IS, help="of the new file's weights")
    _add_out(parser)


def add_build_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `build` to a parser."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a full SDXL checkpoint, for its text encoders and its VAE")
    parser.add_argument("unet", metavar="UNET", help="a file with only an SDXL UNet: a path, or a name in the host's folders")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp16", help="of the new file's weights")
    _add_out(parser)


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="NAME", help="the new file; a name alone goes beside CHECKPOINT")


def run_bake(options: argparse.Namespace) -> int:
    """Bakes a LoRA into a checkpoint, says which of its layers found no place, and returns the exit code.

    Raises: DemoError for files that are not there; what models.bake raises.
    """
    _require("torch", "safetensors", "filelock")
    from ..models.bake import bake

    base = find_file(options.checkpoint, "checkpoints")
    lora = find_file(options.lora, "loras")
    target = _target(options.out, base)
    given = {"strength": options.strength, "text_strength": options.text_strength, "dtype": _dtype(options.precision)}
    baked = _shown(target, lambda progress: bake(base, lora, target, progress=progress, **given))
    say(f"{baked.match}.")
    without = baked.match.left_out
    for name in without[:MOST_NAMED]:
        say(f"  not in the new checkpoint: {name}")
    if len(without) > MOST_NAMED:
        say(f"  and {len(without) - MOST_NAMED} more")
    if baked.note:
        say(baked.note)
    return 0


def run_build(options: argparse.Namespace) -> int:
    """Joins a lone UNet with a checkpoint's text encoders and VAE, and returns the exit code.

    Raises: DemoError for files that are not there; what models.merge raises.
    """
    _require("torch", "safetensors", "filelock")
    from ..models.merge import merge

    base = find_file(options.checkpoint, "checkpoints")
    unet = find_file(options.unet, "diffusion_models")
    target = _target(options.out, base)
    _shown(target, lambda progress: merge(base, unet, target, dtype=_dtype(options.precision), progress=progress))
    return 0


def find_file(given: str, kind: str) -> Path:
    """Returns a file that was given by its path, or by its name in the host's folders.

    Args:
        given: what the person wrote.
        kind: a key of HOST_FOLDERS' tables, such as "loras".
    Raises: DemoError for one that is not there, and for a name that several files have.
    """
    path = Path(given).expanduser()
    if path.is_file():
        return path
    folders = model_folders(kind)
    found = index_folders(folders).get(path.name.lower(), []) if path.name == given else []
    if len(found) == 1:
        return found[0]
    if found:
        raise DemoError(f"{given} is there {len(found)} times; give the path: {' or '.join(map(str, found))}.")
    where = f"neither here nor below {' or '.join(map(str, folders))}" if folders else "not here"
    raise DemoError(f"{given} is {where}; give the path of a .safetensors file.")


def _target(out: str, base: Path) -> Path:
    path = Path(out).expanduser()
    path = path if path.suffix.lower() == ".safetensors" else path.with_name(f"{path.name}.safetensors")
    return base.parent / path if path.name == str(path) else path


def _require(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise DemoError(f"This Python has no {' and no '.join(missing)}. Use the host's own Python for this command.")


def _dtype(precision: str):
    import torch

    return getattr(torch, PRECISIONS[precision]) if precision in PRECISIONS else None


def _shown(target: Path, build: Callable):
    """Runs a build with a line that says how far it is, and returns its result."""
    from ..models.new_file import BuildClock

    line, clock = StatusLine(), BuildClock()
    try:
        result = build(lambda *step: line.update(f"{target.name}: {clock.text(*step)}"))
    except BaseException as error:
        line.close("")
        if isinstance(error, OSError):
            raise DemoError(f"{target.name} was not built: {error}.") from error
        raise
    line.close(f"{target}: built and read back.")
    return result
