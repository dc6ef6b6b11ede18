"""The demo's command line, checked before anything is installed or started."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from .requirements import ROOT

MAX_STEPS = 50  # the size of the distillation grid; more steps gain nothing
DEFAULT_STEPS = (1, 2, 4, 8, 25)
CFG_DEMO_MODEL, CFG_CHECKPOINT = 4.0, 7.0
OUT = ROOT / "demo-images"


@dataclass(frozen=True)
class DemoOptions:
    """What one demo run makes; cfg None means the model's own default."""

    prompt: str
    negative: str
    steps: tuple[int, ...]
    seed: int
    cfg: float | None
    eta: float
    out: Path
    checkpoint: Path | None
    comfyui: Path | None
    port: int | None
    ui: bool


def _number(kind, low: float, high: float, name: str, remedy: str):
    """Returns an argparse type for a number of an interval, with an error that says what to do."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{name} must be a number from {low:g} to {high:g}, got {text!r}; {remedy}.")
        return value

    return parse


def _steps(text: str) -> tuple[int, ...]:
    try:
        steps = tuple(int(part) for part in text.split(","))
    except ValueError:
        steps = ()
    if not steps or not all(1 <= count <= MAX_STEPS for count in steps):
        raise argparse.ArgumentTypeError(
            f"steps must be whole numbers from 1 to {MAX_STEPS} with commas between, got {text!r}; for example 1,2,4,8,25."
        )
    return tuple(dict.fromkeys(steps))


def add_demo_options(parser: argparse.ArgumentParser) -> None:
    """Adds the demo's options to a parser."""
    what = parser.add_argument_group("what is drawn")
    what.add_argument("--prompt", default="red apple", help="default: %(default)s; the demo model knows what emoji show")
    what.add_argument("--negative", default="", help="what to keep out of the image")
    steps = ",".join(map(str, DEFAULT_STEPS))
    what.add_argument("--steps", type=_steps, default=DEFAULT_STEPS, metavar="N,N,...", help=f"one image each; default {steps}")
    seed = _number(int, 0, 2**64 - 1, "seed", "any whole number will do, for example 0")
    what.add_argument("--seed", type=seed, default=0, metavar="N", help="the same seed gives the same image; default 0")
    cfg = _number(float, 1, 100, "cfg", "use 1 for none, 4 for the demo model, 7 for a full checkpoint")
    what.add_argument(
        "--cfg",
        type=cfg,
        metavar="X",
        help=f"guidance without LoRA; default {CFG_DEMO_MODEL:g}, of a checkpoint {CFG_CHECKPOINT:g}",
    )
    eta = _number(float, 0, 1, "eta", "use 0 for deterministic sampling")
    what.add_argument("--eta", type=eta, default=0.3, metavar="X", help="fresh noise per step, 0 to 1; default %(default)s")
    where = parser.add_argument_group("what it runs on, and where the images go")
    where.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="an SD1.5 or SDXL .safetensors file instead of the demo model"
    )
    where.add_argument("--comfyui", type=Path, metavar="PATH", help="your own ComfyUI; default: one found, else a pinned copy")
    port = _number(int, 1, 65535, "port", "leave it out for a free one")
    where.add_argument("--port", type=port, metavar="N", help="default: a free one")
    where.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="default: demo-images in this folder")
    where.add_argument("--ui", action="store_true", help="keep ComfyUI open in the browser afterwards, until Ctrl-C")


def read_demo_options(parsed: argparse.Namespace) -> DemoOptions:
    """Returns the parsed command line as DemoOptions."""
    return DemoOptions(**{name: getattr(parsed, name) for name in DemoOptions.__dataclass_fields__})
