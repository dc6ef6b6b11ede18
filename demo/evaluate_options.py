"""The command line of `python install.py evaluate`, checked before anything is installed or started."""

import argparse
import os
from pathlib import Path

from ..models.embedded import CHECKPOINT
from .errors import DemoError
from .options import CFG_CHECKPOINT, CFG_DEMO_MODEL, _number, _steps
from .requirements import ROOT

COMFYUI, DIFFUSERS = "comfyui", "diffusers"
OWN_LORAS = ("unified", "n-step")  # the demo model's, in place of a file
OUT = ROOT / "evaluated"
PROMPTS, SEEDS, BASE_STEPS, SHOWN = 24, 2, 25, 6


def add_evaluate_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `evaluate` to a parser."""
    _add_what(parser)
    _add_where(parser)


def _add_what(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what is compared; without an option the demo model with its own LoRAs, in minutes")
    what.add_argument(
        "--model",
        type=Path,
        metavar="PATH",
        help="an SD1.5 or SDXL .safetensors file; through diffusers a folder of its layout",
    )
    what.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE",
        help="a LoRA, as often as there are some; FILE+FILE*0.5 puts a second one on the first, at half strength. Of the demo "
        f"model also {' and '.join(OWN_LORAS)}",
    )
    what.add_argument("--steps", type=_steps, metavar="N,N,...", help="of every LoRA; default: what each was made for")
    default = ",".join(map(str, (1, 2, 4, 8, BASE_STEPS)))
    what.add_argument(
        "--base-steps",
        type=_steps,
        metavar="N,N,...",
        help=f"without a LoRA; default {BASE_STEPS}, of the demo model {default}",
    )
    cfg = _number(float, 1, 100, "cfg", "use 1 for none, 7 for a full checkpoint")
    what.add_argument(
        "--cfg",
        type=cfg,
        metavar="X",
        help=f"guidance without a LoRA; default {CFG_CHECKPOINT:g}, of the demo model {CFG_DEMO_MODEL:g}",
    )
    what.add_argument(
        "--prompts", type=Path, metavar="FILE", help="COCO's captions_val2017.json, or a text file with a prompt a line"
    )
    many = _number(int, 1, 10**6, "limit", "leave it out for all prompts")
    what.add_argument("--limit", type=many, metavar="N", help=f"so many prompts; default all, of the demo model {PROMPTS}")
    seeds = _number(int, 1, 1000, "seeds", "2 or more also measure diversity")
    what.add_argument("--seeds", type=seeds, default=SEEDS, metavar="N", help="pictures of each prompt; default %(default)s")
    what.add_argument("--metric", action="append", default=[], metavar="ID", help="a score, as often as wanted; default all")


def _add_where(parser: argparse.ArgumentParser) -> None:
    where = parser.add_argument_group("what runs it, and where the results go")
    where.add_argument("--through", choices=(COMFYUI, DIFFUSERS), default=COMFYUI, help="default %(default)s")
    batch = _number(int, 1, 1024, "batch", "take less where the memory is full")
    where.add_argument(
        "--batch", type=batch, metavar="N", help="through diffusers: pictures at a time; default 1, of the demo model 24"
    )
    where.add_argument("--comfyui", type=Path, metavar="PATH", help="your own ComfyUI; default: one found, else a pinned copy")
    port = _number(int, 1, 65535, "port", "leave it out for a free one")
    where.add_argument("--port", type=port, metavar="N", help="default: a free one")
    where.add_argument("--scorers", type=Path, metavar="DIR", help="the scores' files; default: where the host keeps them")
    where.add_argument("--machine", metavar="TEXT", help="this machine's name in the table; default: its processor or card")
    where.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="default: evaluated in this folder")
    where.add_argument("--again", action="store_true", help="draw anew what is there and was drawn otherwise")


def check_evaluate(parsed: argparse.Namespace) -> None:
    """Refuses what cannot work before minutes are spent on it.

    Raises: DemoError.
    """
    if parsed.model is None and not CHECKPOINT.is_file():
        raise DemoError(
            f"The demo model {CHECKPOINT} is missing; get the pack again, or give an SD1.5 or SDXL model with --model."
        )
    _check_model(parsed)
    for lora in parsed.lora:
        for part in [lora] if Path(lora).is_file() else lora.split("+"):
            name = part.partition("*")[0]
            if not (Path(name).expanduser().is_file() or (parsed.model is None and name in OWN_LORAS)):
                own = f", or {' or '.join(OWN_LORAS)}" if parsed.model is None else ""
                raise DemoError(f"--lora {lora}: there is no file {name}; give the path of a .safetensors LoRA{own}.")
    if parsed.prompts and not parsed.prompts.expanduser().is_file():
        raise DemoError(f"--prompts {parsed.prompts} does not exist; give a text file, or COCO's captions_val2017.json.")
    if parsed.scorers and not parsed.scorers.expanduser().is_dir():
        raise DemoError(f"--scorers {parsed.scorers} is no folder; give the one with the scores' files.")
    _check_out(parsed.out)


def _check_model(parsed: argparse.Namespace) -> None:
    if parsed.model is None:
        return
    model = parsed.model.expanduser()
    if parsed.through == DIFFUSERS and not (model / "model_index.json").is_file():
        raise DemoError(f"--model {model} holds no model_index.json; through diffusers give a folder in diffusers' layout.")
    if parsed.through == COMFYUI and not model.is_file():
        remedy = "For a folder in diffusers' layout add --through diffusers" if model.is_dir() else "Give the path of a file"
        raise DemoError(f"--model {model} is no .safetensors file. {remedy}.")
    if parsed.prompts is None:
        raise DemoError("--model needs --prompts: COCO's captions_val2017.json, or a text file with a prompt a line.")


def _check_out(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(f"--out {out} cannot be made ({error.strerror}); give a folder that can be written.") from error
    if not os.access(out, os.W_OK):
        raise DemoError(f"--out {out} cannot be written; give a folder that can be.")
