"""What the scorers of the demo model's world are worth: whether they know what is drawn, and what keeping the best of 16 gives.

One command, from the repository root, in an environment with the `recipe` and `quality` extras:

    python -m hyper_sd.benchmarks.demo_scorers --work .demo/recipe --out benchmarks/results/demo_scorers.json

Everything is drawn from the labels of every eighth concept, of which the quality score has seen nothing. Mean scores: of what
the base and its LoRAs draw in few steps and many, and of both vendors' drawings. Told apart: the share of concepts of which a
score finds the picture of 25 steps of the base better than that of fewer steps from the same noise, and so on. Accuracy: the
share of pictures whose own label is the best of all 632 for the match score: of the drawings, all of which it has learnt from,
and of what the base draws in 25 steps. Best of 16: half of these concepts are drawn 16 times, and the best four by a score are
kept, beside the first four, which are as good as any. Kept pictures are judged by what had no part in the choice: retrieval on
EfficientNet-Lite0's features among all 1264 drawings, and the other score. Mean and deviation over three seeds.
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

DRAWN, KEPT, SEEDS = 16, 4, (0, 1, 2)
EVERY, EVERY_DRAWN_OFTEN = 8, 16  # which of the concepts are drawn, and which of them 16 times
WAYS = {"1 step": Way(1, lora_title(ONE_STEP), ONE_STEP_START), "4 steps": Way(4, "1")}
LADDER = {
    **{f"base, {steps} steps": Way(steps) for steps in (1, 2, 4, 8, 25)},
    **{f"unified LoRA, {steps} steps": Way(steps, "1") for steps in (1, 2, 4, 8)},
    "unified LoRA, 1 step from 800": Way(1, "1", ONE_STEP_START),
    "one-step LoRA": Way(1, lora_title(ONE_STEP), ONE_STEP_START),
}
DRAWINGS = "drawings"
TOLD_APART = {  # what is better -> what is worse, from the same noise
    "base, 25 steps": tuple(f"base, {steps} steps" for steps in (1, 2, 4, 8)),
    "unified LoRA, 8 steps": tuple(f"unified LoRA, {steps} steps" for steps in (1, 2, 4)),
    DRAWINGS: ("base, 25 steps", "unified LoRA, 8 steps", "one-step LoRA"),
}
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


def scores_of_ladder(
    painted: dict[str, list[np.ndarray]], drawn: np.ndarray, labels: list[str], scorers: dict[str, Scorer]
) -> tuple[dict[str, dict], dict[str, dict]]:
    """Returns the mean scores by way and scorer, and the shares of pairs that are told apart, by scorer.

    Args:
        painted: pictures of the labels by the ways of LADDER, uint8 [n, 128, 128, 3] for each seed.
        drawn: drawings of the same things, uint8 [m * n, 128, 128, 3], one vendor's after another's.
        labels: of the n things.
        scorers: by name.
    """
    means, shares = {title: {} for title in (*painted, DRAWINGS)}, {}
    for name, scorer in scorers.items():
        found = {title: [score_all(scorer, pixels(x), labels, BATCH) for x in seeds] for title, seeds in painted.items()}
        prompts = labels * (len(drawn) // len(labels))
        of_drawings = score_all(scorer, pixels(drawn), prompts, BATCH).view(-1, len(labels)).mean(0)
        found[DRAWINGS] = [of_drawings] * len(next(iter(painted.values())))
        for title, scores in found.items():
            means[title][name] = over_seeds([float(score.mean()) for score in scores])
        shares[name] = {
            f"{better} above {worse}": over_seeds(
                [float((high > low).double().mean()) for high, low in zip(found[better], found[worse], strict=True)]
            )
            for better, others in TOLD_APART.items()
            for worse in others
        }
    return means, shares


def best_of_many(painter: Painter, drawings: Drawings, features: Features, scorers: dict[str, Scorer]) -> dict[str, dict]:
    """Returns, by the way of drawing and by what chose, retrieval and both scores of the kept pictures."""
    picks = list(range(len(drawings.labels)))[::EVERY_DRAWN_OFTEN]
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
    picks = list(range(len(drawings.labels)))[::EVERY]
    labels = [drawings.labels[pick] for pick in picks]
    painted = {title: [painter.paint(labels, way, seed) for seed in SEEDS] for title, way in LADDER.items()}
    drawn = learnt[[number for number in range(len(learnt)) if classes[number] in set(picks)]]
    means, shares = scores_of_ladder(painted, drawn, labels, scorers)
    many = np.concatenate(painted["base, 25 steps"])
    result = {
        "concepts": len(drawings.labels), "drawn": DRAWN, "kept": KEPT, "every": EVERY, "every_drawn_often": EVERY_DRAWN_OFTEN,
        "seeds": list(SEEDS),
        "bytes": SCORERS.stat().st_size,
        "accuracy": {
            "drawings it has learnt from": named_right(scorers["embedded_match"], learnt, classes, drawings.labels),
            "base, 25 steps": named_right(scorers["embedded_match"], many, picks * len(SEEDS), drawings.labels),
        },
        "mean_scores": means,
        "told_apart": shares,
        "best_of_16": best_of_many(painter, drawings, Features(), scorers),
        "machine": processor(), "torch": torch.__version__,
    }  # fmt: skip
    write_result(result, options.out)


if __name__ == "__main__":
    main()
