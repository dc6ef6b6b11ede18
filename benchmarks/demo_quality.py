"""How good is the embedded model? KID and retrieval on a frozen EfficientNet-Lite0, and a contact sheet of 20 prompts.

One command, from the repository root, in an environment with the `recipe` and `quality` extras:

    python -m hyper_sd.benchmarks.demo_quality --work .demo/recipe --out benchmarks/results/demo_quality.json

The training concepts are drawn from their plain labels in three thirds, each with its own seed; mean and deviation are over the
thirds. The reference is both vendors' drawings. Two anchors frame the scores: the autoencoder's rendition of those drawings
(the ceiling of this model) and one vendor's drawings against the other's (another style, same things).
"""

import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..demo.recipe.export import load_checkpoint
from ..evaluation.contact_sheet import contact_sheet
from ..evaluation.metrics import kid, retrieval_accuracy
from ..models.embedded import CHECKPOINT, FOLDER
from .embedded import BATCH, CFG, Drawings, generate_all
from .measure import Features, add_work_option, command_line, over_seeds, processor, write_result

PROMPTS = (
    "red apple", "a picture of a penguin", "sunflower", "pizza", "a hamburger", "red heart", "rocket", "sailboat", "bicycle",
    "guitar", "an umbrella", "snowman", "octopus", "strawberry", "birthday cake", "ghost", "rainbow", "a cactus", "dog face",
    "soccer ball",
)  # fmt: skip
STEPS, SEEDS = (1, 2, 4, 8, 25), (0, 1, 2)


@torch.no_grad()
def reconstruct(vae, images: np.ndarray) -> np.ndarray:
    """Returns the autoencoder's uint8 rendition of uint8 images."""
    restored = []
    for part in torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1).split(BATCH):
        restored.append(vae.decode(vae.encode(part).latent_dist.mode()).sample)
    pixels = torch.cat(restored).add(1).mul(127.5).round().clamp(0, 255).byte()
    return pixels.permute(0, 2, 3, 1).numpy()


def score(found: torch.Tensor, targets: list[int], reference: torch.Tensor, classes: list[int]) -> dict[str, float]:
    """Returns KID and retrieval of pictures.

    Args:
        found: their features [m, d].
        targets: the number of the thing that each was asked to show.
        reference: features of drawings [n, d].
        classes: the number of the thing that each drawing shows.
    """
    return {
        "kid": kid(found, reference),
        "retrieval_top1": retrieval_accuracy(found, reference, targets, classes),
        "retrieval_top5": retrieval_accuracy(found, reference, targets, classes, k=5),
    }


def measure(vae, denoiser, drawings: Drawings) -> dict[str, dict]:
    """Returns the scores of the model at every number of steps, and those of the two anchors."""
    features = Features()
    pictures, classes = drawings.trained_on()
    reference, every = features(pictures), list(range(len(drawings.labels)))
    noto, fluent = reference.split(len(every))

    def third(steps: int, seed: int) -> dict[str, float]:
        picks = every[seed :: len(SEEDS)]
        drawn = generate_all(vae, denoiser, [drawings.labels[i] for i in picks], steps=steps, cfg=CFG, seed=seed)
        return score(features(drawn), picks, reference, classes)

    scores = {steps: [third(steps, seed) for seed in SEEDS] for steps in STEPS}
    return {
        "reconstruction": score(features(reconstruct(vae, pictures)), classes, reference, classes),
        "other_vendor": score(noto, every, fluent, every),
        "steps": {
            steps: {metric: over_seeds([score[metric] for score in thirds]) for metric in thirds[0]}
            for steps, thirds in scores.items()
        },
    }


def main() -> None:
    """Draws the contact sheet, measures, and writes JSON."""
    parser = command_line(__doc__, out="demo_quality.json")
    add_work_option(parser)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="the model; default the embedded one")
    parser.add_argument(
        "--sheet", type=Path, default=FOLDER / "prompts.png", help="picture of the prompts; default %(default)s"
    )
    parser.add_argument("--sheet-only", action="store_true", help="only the contact sheet, no scores")
    options = parser.parse_args()
    vae, denoiser = load_checkpoint(options.checkpoint)
    drawn = generate_all(vae, denoiser, list(PROMPTS), steps=25, cfg=CFG, seed=0)
    sheet = contact_sheet([Image.fromarray(d) for d in drawn], list(PROMPTS), columns=5, title="Demo model, 25 steps, CFG 4")
    sheet.save(options.sheet)
    if options.sheet_only:
        return
    drawings, began = Drawings(options.work), time.monotonic()
    result = {
        "concepts": len(drawings.labels), "cfg": CFG, "seeds": list(SEEDS), "machine": processor(),
        "torch": torch.__version__, "threads": torch.get_num_threads(), **measure(vae, denoiser, drawings),
        "seconds": round(time.monotonic() - began),
    }  # fmt: skip
    write_result(result, options.out)


if __name__ == "__main__":
    main()
