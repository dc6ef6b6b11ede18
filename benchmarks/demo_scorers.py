"""What the scorers of the demo model's world are worth: whether they know what is drawn, and what keeping the best of 16 gives.

One command, from the repository root, in an environment with the `recipe` and `quality` extras:

    python -m hyper_sd.benchmarks.demo_scorers --work .demo/recipe --out benchmarks/results/demo_scorers.json

Accuracy: the share of pictures whose own label is the best of all 632 for the match score: of the drawings that it has learnt
from, and of what the base draws in 25 steps. Best of 16: every eighth concept is drawn 16 times from its label, and the best
four by a score are kept, beside the first four, which are as good as any. Kept pictures are judged by what had no part in the
choice: retrieval on EfficientNet-Lite0's features among all 1264 drawings, and the other score. Mean and deviation over three
seeds.
"""

import numpy as np
import torch

from ..evaluation.metrics import retrieval_accuracy
from ..models.embedded import ONE_STEP, SCORERS, lora_title
from ..rewards.scorer import Scorer, score_all
from ..rewards.table import load
from ..samplers.timesteps import ONE_STEP_START
from .embedded import Drawings, Painter, Way
from .measure import Features, add_work_option, command_line, over_seeds, processor, write_result

DRAWN, KEPT, EVERY, SEEDS = 16, 4, 8, (0, 1, 2)
WAYS = {"1 step": Way(1, lora_title(ONE_STEP), ONE_STEP_START), "4 steps": Way(4, "1")}
LADDER = {"1 step": Way(1), "2 steps": Way(2), "4 steps": Way(4), "8 steps": Way(8), "25 steps": Way(25)}
BATCH = 64


def pixels(pictures: np.ndarray) -> torch.Tensor:
    """Returns uint8 pictures [n, height, width, 3] as [n, 3, height, width] from 0 to 1."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2) / 255


@torch.no_grad()
def named_right(match: Scorer, pictures: np.ndarray, targets: list[int], labels: list[str]) -> dict[str, float]:
    """Returns the share of pictures whose own label is the best, or among the best five, of all labels."""
    seen = torch.cat([match.pictures(part) for part in pixels(pictures).split(BATCH)])
    order = (seen @ match.words(labels).mT).topk(5).indices
    own = torch.tensor(targets)[:, None]
    return {f"top{k}": float((order[:, :k] == own).any(1).double().mean()) for k in (1, 5)}


def best_of_many(painter: Painter, drawings: Drawings, features: Features, scorers: dict[str, Scorer]) -> dict[str, dict]:
    """Returns, by the way of drawing and by what chose, retrieval and both scores of the kept pictures."""
    picks = list(range(len(drawings.labels)))[::EVERY]
    known_pictures, classes = drawings.trained_on()
    known, result = features(known_pictures), {}
    for title, way in WAYS.items():
        found: dict[str, dict[str, list[float]]] = {}
        for seed in SEEDS:
            prompts = [drawings.labels[pick] for pick in picks for _ in range(DRAWN)]
            painted = painter.paint(prompts, way, seed)
            images, vectors = pixels(painted), features(painted)
            scores = {name: score_all(scorer, images, prompts, BATCH).view(-1, DRAWN) for name, scorer in scorers.items()}
            first = torch.arange(DRAWN).flip(0).float().expand(len(picks), -1)
            for chooser, values in {"the first": first, **scores}.items():
                rows = values.topk(KEPT).indices + DRAWN * torch.arange(len(picks))[:, None]
                targets = [pick for pick in picks for _ in range(KEPT)]
                kept = found.setdefault(chooser, {})
                right = retrieval_accuracy(vectors[rows.flatten()], known, targets, classes)
                kept.setdefault("retrieval_top1", []).append(right)
                for name, own in scores.items():
                    kept.setdefault(name, []).append(float(own.flatten()[rows].mean()))
        result[title] = {chooser: {k: over_seeds(v) for k, v in kept.items()} for chooser, kept in found.items()}
    return result


def main() -> None:
    """Measures, and writes JSON."""
    parser = command_line(__doc__, out="demo_scorers.json")
    add_work_option(parser)
    options = parser.parse_args()
    painter, drawings = Painter(), Drawings(options.work)
    scorers = {name: load(name, []) for name in ("embedded_match", "embedded_quality")}
    learnt, classes = drawings.trained_on()
    picks = list(range(len(drawings.labels)))[:: EVERY // 2]
    labels = [drawings.labels[pick] for pick in picks]
    ladder = {title: painter.paint(labels, way, 100) for title, way in LADDER.items()}
    result = {
        "concepts": len(drawings.labels), "drawn": DRAWN, "kept": KEPT, "every": EVERY, "seeds": list(SEEDS),
        "bytes": SCORERS.stat().st_size,
        "accuracy": {
            "drawings it has learnt from": named_right(scorers["embedded_match"], learnt, classes, drawings.labels),
            "base, 25 steps": named_right(scorers["embedded_match"], ladder["25 steps"], picks, drawings.labels),
        },
        "mean_scores_of_base": {
            title: {name: float(score_all(s, pixels(x), labels, BATCH).mean()) for name, s in scorers.items()}
            for title, x in ladder.items()
        },
        "best_of_16": best_of_many(painter, drawings, Features(), scorers),
        "machine": processor(), "torch": torch.__version__,
    }  # fmt: skip
    write_result(result, options.out)


if __name__ == "__main__":
    main()
