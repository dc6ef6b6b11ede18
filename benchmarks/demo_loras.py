"""What the demo model's Hyper-SD LoRAs are worth: few steps with them against as many without, and against many without.

One command, from the repository root, in an environment with the `recipe` and `quality` extras:

    python -m hyper_sd.benchmarks.demo_loras --work .demo/recipe --out benchmarks/results/demo_loras.json

It also draws demo/model/hyper_sd.png, the unified LoRA beside the base.

Every second training concept is drawn from its label, once per seed; base and LoRA start from the same noise. The distance is
KID on EfficientNet-Lite0's features to the base model's own 25-step images (other noise); retrieval asks whether the nearest of
all 1264 drawings shows the thing asked for. Mean and deviation are over the seeds.
"""

import argparse
import json
import platform
import statistics
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from ..demo.recipe import emoji
from ..demo.recipe.distill import FILES
from ..demo.recipe.export import load_checkpoint
from ..demo.recipe.sample import generate
from ..evaluation.contact_sheet import contact_sheet
from ..evaluation.metrics import kid, retrieval_accuracy
from ..training.export import load_lora
from ..training.launch.embedded_model import MODEL_FOLDER
from ..training.lora_layers import LoraLayers
from .demo_quality import BATCH, CFG, Features

SHOWN = ("a hamburger", "strawberry")
SEEDS, STEPS, MANY, ETA = (0, 1, 2), (1, 2, 4, 8), 25, 0.3


class Painter:
    """The demo model with its LoRAs as adapter sets."""

    def __init__(self) -> None:
        self.vae, self.denoiser = load_checkpoint(MODEL_FOLDER / "hyper_sd_demo.safetensors")
        paths = {k: MODEL_FOLDER / f"{name}.safetensors" for k, name in FILES.items()}
        with safe_open(paths[1], "pt") as file:
            self.layers = LoraLayers(self.denoiser.unet, int(file.metadata()["ss_network_dim"]))
        for segments, path in paths.items():
            load_lora(path, self.layers, str(segments))

    def paint(self, labels: list[str], steps: int, seed: int, lora: int | None = None) -> np.ndarray:
        """Returns uint8 images [n, 128, 128, 3]. Args: lora: the number of segments it was distilled on, None for the base."""
        settings = {"cfg": CFG} if lora is None else {"cfg": 1.0, "num_segments": lora, "eta": ETA}
        parts = [labels[i : i + BATCH] for i in range(0, len(labels), BATCH)]
        with nullcontext() if lora is None else self.layers.using(str(lora)):
            drawn = [
                generate(self.vae, self.denoiser, part, steps=steps, seed=1000 * seed + i, **settings)
                for i, part in enumerate(parts)
            ]
        return torch.cat(drawn).numpy()


def draw_sheet(painter: Painter) -> Image.Image:
    """Returns the base and the unified LoRA at 1, 2, 4 and 8 steps from the same noise, two rows for each prompt."""
    images, labels = [], []
    for prompt in SHOWN:
        for name, lora in (("base", None), ("Hyper-SD", 1)):
            images += [Image.fromarray(painter.paint([prompt], steps, 0, lora)[0]) for steps in STEPS]
            labels += [f"{name}, {steps} step{'s' if steps > 1 else ''}" for steps in STEPS]
    return contact_sheet(images, labels, columns=len(STEPS), title="Demo model: base at CFG 4, with its Hyper-SD LoRA at CFG 1")


def summary(values: list[float]) -> dict[str, float]:
    """Returns mean and standard deviation."""
    return {"mean": statistics.mean(values), "deviation": statistics.stdev(values)}


def arms() -> dict[str, tuple[int, int | None]]:
    """Returns name -> (steps, LoRA's segments or None)."""
    base = {f"base, {n} steps": (n, None) for n in STEPS}
    unified = {f"unified LoRA, {n} steps": (n, 1) for n in STEPS}
    return base | unified | {f"{n}-step LoRA": (n, n) for n in STEPS if n > 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(".demo/recipe"), help="where the recipe keeps its emoji")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/demo_loras.json"))
    parser.add_argument("--sheet", type=Path, default=MODEL_FOLDER / "hyper_sd.png")
    parser.add_argument("--sheet-only", action="store_true", help="only the picture, no scores")
    options = parser.parse_args()
    began, painter = time.monotonic(), Painter()
    draw_sheet(painter).save(options.sheet)
    if options.sheet_only:
        return
    features = Features()
    concepts = emoji.load_concepts(emoji.fetch(options.work))
    picks = list(range(len(concepts)))[::2]
    labels = [concepts[i].label for i in picks]
    drawings = [features(np.stack([emoji.render(c.svg[v]) for c in concepts])) for v in (emoji.NOTO, emoji.FLUENT)]
    drawn, classes = torch.cat(drawings), 2 * list(range(len(concepts)))
    many = features(painter.paint(labels, MANY, seed=100))
    scores: dict[str, dict[str, list[float]]] = {}
    for name, (steps, lora) in arms().items():
        found = [features(painter.paint(labels, steps, seed, lora)) for seed in SEEDS]
        scores[name] = {
            "kid_to_teacher": [kid(f, many) for f in found],
            "kid_to_drawings": [kid(f, drawn) for f in found],
            "retrieval_top1": [retrieval_accuracy(f, drawn, picks, classes) for f in found],
        }
    teacher = {"kid_to_drawings": kid(many, drawn), "retrieval_top1": retrieval_accuracy(many, drawn, picks, classes)}
    result = {
        "concepts": len(picks), "cfg_base": CFG, "cfg_lora": 1.0, "eta_lora": ETA, "seeds": list(SEEDS),
        "machine": platform.processor() or platform.machine(), "torch": torch.__version__,
        "teacher_25_steps": teacher,
        "scores": {name: {key: summary(values) for key, values in score.items()} for name, score in scores.items()},
        "seconds": round(time.monotonic() - began),
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
