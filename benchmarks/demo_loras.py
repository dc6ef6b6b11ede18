"""What the demo model's Hyper-SD LoRAs are worth: few steps with them against as many without, and against many without.

One command, from the repository root, in an environment with the `recipe` and `quality` extras:

    python -m hyper_sd.benchmarks.demo_loras --work .demo/recipe --out benchmarks/results/demo_loras.json

It also draws demo/model/hyper_sd.png, the LoRAs that the nodes choose beside the base.

Every second training concept is drawn from its label, once per seed; base and LoRA start from the same noise. The distance is
KID on EfficientNet-Lite0's features to the base model's own 25-step images (other noise); retrieval asks whether the nearest of
all 1264 drawings shows the thing asked for. Diversity is the mean distance of these features between two seeds of one prompt,
and fine energy that of what varies faster than a quarter of a cycle per pixel; both are given relative to the 25-step images'.
Mean and deviation are over the seeds, of diversity over the pairs of seeds.
"""

import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..evaluation.contact_sheet import contact_sheet
from ..evaluation.metrics import diversity, fine_energy, kid, retrieval_accuracy
from ..models.embedded import FOLDER, ONE_STEP, lora_title
from ..samplers.timesteps import LAST_TIMESTEP, ONE_STEP_START
from .embedded import CFG, ETA, Drawings, Painter, Way
from .measure import Features, add_work_option, command_line, over_seeds, processor, write_result

SHOWN = ("a hamburger", "strawberry")
SEEDS, STEPS = (0, 1, 2), (1, 2, 4, 8)
MANY, MANY_SEEDS = Way(25), (100, 101, 102)
UNIFIED = "1"  # its name in the Painter
ONE = Way(1, lora_title(ONE_STEP), ONE_STEP_START)


def draw_sheet(painter: Painter) -> Image.Image:
    """Returns the base and the LoRAs at 1, 2, 4 and 8 steps from the same noise, two rows for each prompt."""
    images, labels = [], []
    for prompt in SHOWN:
        for name, lora in (("base", None), ("Hyper-SD", UNIFIED)):
            ways = [ONE if lora and steps == 1 else Way(steps, lora) for steps in STEPS]
            images += [Image.fromarray(painter.paint([prompt], way, 0)[0]) for way in ways]
            labels += [f"{name}, {steps} step{'s' if steps > 1 else ''}" for steps in STEPS]
    return contact_sheet(images, labels, columns=len(STEPS), title="Demo model: base at CFG 4, with its Hyper-SD LoRA at CFG 1")


def arms() -> dict[str, Way]:
    """Returns the ways to draw by name."""
    base = {f"base, {n} steps": Way(n) for n in STEPS}
    one = {f"unified LoRA, 1 step from {t}": Way(1, UNIFIED, t) for t in (ONE_STEP_START, LAST_TIMESTEP)}
    unified = {f"unified LoRA, {n} steps": Way(n, UNIFIED) for n in STEPS if n > 1}
    return (
        base
        | {f"one-step LoRA from {ONE_STEP_START}": ONE}
        | one
        | unified
        | {f"{n}-step LoRA": Way(n, str(n)) for n in (2, 4, 8)}
    )


def pixels(pictures: np.ndarray) -> torch.Tensor:
    """Returns uint8 pictures [n, height, width, 3] as [n, 3, height, width] from 0 to 1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255


def diversities(features: Sequence[torch.Tensor]) -> list[float]:
    """Returns the diversity of every two seeds.

    Args:
        features: those of the same prompts, [n, d], for each seed.
    """
    groups = list(range(len(features[0])))
    return [diversity(torch.cat(pair), groups * 2) for pair in combinations(features, 2)]


def measure(painter: Painter, drawings: Drawings, features: Features) -> dict[str, dict]:
    """Returns the scores of the base at 25 steps and, over the seeds, those of every arm."""
    picks = list(range(len(drawings.labels)))[::2]
    labels = [drawings.labels[i] for i in picks]
    pictures, classes = drawings.trained_on()
    known = features(pictures)

    def drawn(way: Way, seeds: Sequence[int]) -> tuple[list[torch.Tensor], list[float], list[float]]:
        """Returns features by seed, diversity by pair of seeds, and fine energy by seed."""
        painted = [painter.paint(labels, way, seed) for seed in seeds]
        found = [features(each) for each in painted]
        return found, diversities(found), [fine_energy(pixels(each)) for each in painted]

    (many, *_), *many_scores = drawn(MANY, MANY_SEEDS)
    usual, fine = (over_seeds(values)["mean"] for values in many_scores)
    scores = {}
    for name, way in arms().items():
        found, apart, energies = drawn(way, SEEDS)
        scores[name] = {
            "kid_to_teacher": over_seeds([kid(f, many) for f in found]),
            "kid_to_drawings": over_seeds([kid(f, known) for f in found]),
            "retrieval_top1": over_seeds([retrieval_accuracy(f, known, picks, classes) for f in found]),
            "diversity": over_seeds([value / usual for value in apart]),
            "fine_energy": over_seeds([value / fine for value in energies]),
        }
    teacher = {"kid_to_drawings": kid(many, known), "retrieval_top1": retrieval_accuracy(many, known, picks, classes)}
    return {"teacher_25_steps": teacher | {"diversity": usual, "fine_energy": fine}, "scores": scores}


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
        "machine": processor(), "torch": torch.__version__, **measure(painter, drawings, Features()),
        "seconds": round(time.monotonic() - began),
    }  # fmt: skip
    write_result(result, options.out)


if __name__ == "__main__":
    main()
