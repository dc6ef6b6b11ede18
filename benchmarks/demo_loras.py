"""What the demo model's Hyper-SD LoRAs are worth: few steps with them against as many without, and against many without.

One command, from the repository root, in an environment with the `recipe` and `quality` extras:

    python -m hyper_sd.benchmarks.demo_loras --work .demo/recipe --out benchmarks/results/demo_loras.json

It also draws demo/model/hyper_sd.png, the unified LoRA beside the base.

Every second training concept is drawn from its label, once per seed; base and LoRA start from the same noise. The distance is
KID on EfficientNet-Lite0's features to the base model's own 25-step images (other noise); retrieval asks whether the nearest of
all 1264 drawings shows the thing asked for. Mean and deviation are over the seeds.
"""

import time
from pathlib import Path

import torch
from PIL import Image

from ..evaluation.contact_sheet import contact_sheet
from ..evaluation.metrics import kid, retrieval_accuracy
from ..models.embedded import FOLDER
from .embedded import CFG, ETA, Drawings, Painter
from .measure import Features, add_work_option, command_line, over_seeds, processor, write_result

SHOWN = ("a hamburger", "strawberry")
SEEDS, STEPS, MANY = (0, 1, 2), (1, 2, 4, 8), 25


def draw_sheet(painter: Painter) -> Image.Image:
    """Returns the base and the unified LoRA at 1, 2, 4 and 8 steps from the same noise, two rows for each prompt."""
    images, labels = [], []
    for prompt in SHOWN:
        for name, lora in (("base", None), ("Hyper-SD", 1)):
            images += [Image.fromarray(painter.paint([prompt], steps, 0, lora)[0]) for steps in STEPS]
            labels += [f"{name}, {steps} step{'s' if steps > 1 else ''}" for steps in STEPS]
    return contact_sheet(images, labels, columns=len(STEPS), title="Demo model: base at CFG 4, with its Hyper-SD LoRA at CFG 1")


def arms() -> dict[str, tuple[int, int | None]]:
    """Returns name -> (steps, LoRA's segments or None)."""
    base = {f"base, {n} steps": (n, None) for n in STEPS}
    unified = {f"unified LoRA, {n} steps": (n, 1) for n in STEPS}
    return base | unified | {f"{n}-step LoRA": (n, n) for n in STEPS if n > 1}


def measure(painter: Painter, drawings: Drawings) -> dict[str, dict]:
    """Returns the scores of the base at 25 steps and, over the seeds, those of every arm."""
    features, picks = Features(), list(range(len(drawings.labels)))[::2]
    labels = [drawings.labels[i] for i in picks]
    pictures, classes = drawings.trained_on()
    known, many = features(pictures), features(painter.paint(labels, MANY, seed=100))
    scores = {}
    for name, (steps, lora) in arms().items():
        found = [features(painter.paint(labels, steps, seed, lora)) for seed in SEEDS]
        scores[name] = {
            "kid_to_teacher": over_seeds([kid(f, many) for f in found]),
            "kid_to_drawings": over_seeds([kid(f, known) for f in found]),
            "retrieval_top1": over_seeds([retrieval_accuracy(f, known, picks, classes) for f in found]),
        }
    teacher = {"kid_to_drawings": kid(many, known), "retrieval_top1": retrieval_accuracy(many, known, picks, classes)}
    return {"teacher_25_steps": teacher, "scores": scores}


def main() -> None:
    """Draws the sheet, measures, and writes JSON."""
    parser = command_line(__doc__, out="demo_loras.json")
    add_work_option(parser)
    parser.add_argument("--sheet", type=Path, default=FOLDER / "hyper_sd.png", help="picture of the LoRA; default %(default)s")
    parser.add_argument("--sheet-only", action="store_true", help="only the picture, no scores")
    options = parser.parse_args()
    began, painter = time.monotonic(), Painter()
    draw_sheet(painter).save(options.sheet)
    if options.sheet_only:
        return
    drawings = Drawings(options.work)
    result = {
        "concepts": len(drawings.labels[::2]), "cfg_base": CFG, "cfg_lora": 1.0, "eta_lora": ETA, "seeds": list(SEEDS),
        "machine": processor(), "torch": torch.__version__, **measure(painter, drawings),
        "seconds": round(time.monotonic() - began),
    }  # fmt: skip
    write_result(result, options.out)


if __name__ == "__main__":
    main()
