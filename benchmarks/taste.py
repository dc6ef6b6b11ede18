"""Can a taste be learnt from a hundred votes, and does a LoRA that learns from it draw what that voter likes?

One command, from the repository root, in an environment with the `recipe` and `quality` extras:

    python -m hyper_sd.benchmarks.taste --work .demo/recipe --out benchmarks/results/taste.json

The demo model with its unified LoRA draws each of its labels twice in four steps. A voter who likes red is simulated: the
redness of a picture is the mean of R - (G + B) / 2 over its coloured pixels, and of two pictures the redder one is chosen with
a probability that rises with the difference, so that the same pair gets the same answer in 75 % of the cases. From 100 and 300
votes on pairs of one prompt, of seven eighths of the labels, a taste is learnt as `python install.py taste VOTES` learns it,
with three seeds of pairs and answers. It is tried on the pairs of all other labels: against which picture is redder, and
against votes of the same voter. Then a feedback LoRA learns from each taste of 300 votes, with the match score as the reward
that nothing is learnt from, and draws the labels of every eighth, which neither has seen, at 1, 2 and 4 steps, from the same
noise with and without the feedback. Differences are paired; errors are standard errors over the labels. An interrupted run
goes on.
"""

import argparse
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..evaluation.comparison import Comparison, plan_comparison
from ..evaluation.taste import FILE, Taste, learn_taste, report, write_taste
from ..evaluation.vote_file import Ballot, Vote
from ..rewards.scorer import score_all
from ..rewards.sights import EMBEDDED
from ..rewards.table import MY_TASTE, load
from ..training.feedback.settings import FeedbackSettings
from ..training.lora_layers import DISTILLED, STUDENT
from .embedded import Drawings, Painter, Way
from .feedback_world import EVERY, MATCH, SEEDS, SETTINGS, World, compared, judged, kept, train_feedback
from .measure import add_work_option, command_line, logger, over_seeds, processor, start_logging, write_result

VOTES = (100, 300)
MOST = max(VOTES)
STRENGTHS = (0.3, 1.0)  # at which a LoRA is judged, all but 0.3 for the first seed alone
# A taste knows nothing of what was asked for: a LoRA learns from it at a lower rate than from the match score, and with a
# stronger brake.
FEEDBACK = FeedbackSettings((MY_TASTE,), MATCH, brake_weight=20.0, **SETTINGS)
RATE = 2e-4
ARMS = ("one", "other")  # two drawings of each label, from other noise
NOISE = 100  # the seed of the first arm's noise
SAME_AGAIN = 0.75  # how often the voter answers alike when a pair comes again
COLOURED, FEWEST = 0.15, 50  # from which difference of its channels on a pixel has a colour; pixels that count at least
REDNESS = "redness"


def redness(pictures: torch.Tensor) -> torch.Tensor:
    """Returns the mean of R - (G + B) / 2 over the coloured pixels of pictures [count, 3, height, width], [count]."""
    coloured = (pictures.amax(1) - pictures.amin(1) > COLOURED).float()
    red = pictures[:, 0] - (pictures[:, 1] + pictures[:, 2]) / 2
    return (red * coloured).sum((1, 2)) / coloured.sum((1, 2)).clamp(min=FEWEST)


def read_pictures(paths: Sequence[Path]) -> torch.Tensor:
    """Returns pictures [count, 3, height, width] from 0 to 1."""
    images = (torch.frombuffer(bytearray(Image.open(path).tobytes()), dtype=torch.uint8) for path in paths)
    return torch.stack([image.view(128, 128, 3) for image in images]).permute(0, 3, 1, 2) / 255


def draw_pairs(work: Path, folder: Path) -> None:
    """Draws every label twice, where that has not been done: those to vote on below "seen", the others below "unseen"."""
    labels = Drawings(work).labels
    painter = None
    for number, arm in enumerate(ARMS):
        if (folder / f"{arm}.drawn").is_file():
            continue
        painter = painter or Painter()
        for place, pixels in enumerate(painter.paint(labels, Way(4, "1"), NOISE + number)):
            path = folder / ("seen" if place % EVERY else "unseen") / arm / f"{place:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        (folder / f"{arm}.drawn").touch()


class Voter:
    """Likes red, and does not always answer alike.

    Args:
        folder: of the drawn pairs.
    """

    def __init__(self, folder: Path):
        pairs = sorted(path for part in ("seen", "unseen") for path in (folder / part / ARMS[0]).glob("*.png"))
        self.names = [path.stem for path in pairs]
        self.pictures = [read_pictures([path.parents[1] / arm / path.name for path in pairs]) for arm in ARMS]
        first, other = (redness(pictures) for pictures in self.pictures)
        self.lead = dict(zip(self.names, (first - other).tolist(), strict=True))  # of the first arm's picture
        low, high = 0.0, 1e4
        for _ in range(60):
            self.sharpness = (low + high) / 2
            sure = [self.chance(name) for name in self.names]
            alike = sum(p * p + (1 - p) ** 2 for p in sure) / len(sure)
            low, high = (self.sharpness, high) if alike < SAME_AGAIN else (low, self.sharpness)

    def chance(self, name: str) -> float:
        """Returns the probability with which the first arm's picture is chosen."""
        return 1 / (1 + math.exp(-max(-50.0, min(50.0, self.sharpness * self.lead[name]))))

    def ballot(self, comparison: Comparison, seed: int) -> Ballot:
        """Returns the voter's answers to all pairs of a comparison."""
        draw, votes = random.Random(seed), []
        for number, pair in enumerate(comparison.pairs):
            left = comparison.pictures[pair.left]
            is_first = draw.random() < self.chance(left.name)
            votes.append(Vote(number, "left" if is_first == (left.arm == ARMS[0]) else "right", 1.0))
        return Ballot(comparison.id, f"{seed:08x}", tuple(votes))

    def tried(self, taste: Any, voted: set[str], seed: int) -> dict[str, float]:
        """Returns how well a scorer foresees pairs that were not voted on.

        Args:
            taste: the scorer.
            voted: names that it has learnt from.
            seed: of the votes that it is compared with.
        """
        draw, rows = random.Random(1000 + seed), [i for i, name in enumerate(self.names) if name not in voted]
        first, other = (score_all(taste, pictures[rows], [""] * len(rows), 64) for pictures in self.pictures)
        names = [self.names[row] for row in rows]
        foreseen = (first > other).tolist()
        redder = [foresees == (self.lead[name] > 0) for name, foresees in zip(names, foreseen, strict=True)]
        voter = [foresees == (draw.random() < self.chance(name)) for name, foresees in zip(names, foreseen, strict=True)]
        best = [max(self.chance(name), 1 - self.chance(name)) for name in names]
        count = len(names)
        return {"pairs": count, "redder": sum(redder) / count, "votes": sum(voter) / count, "best": sum(best) / count}


def learnt(voter: Voter, pictures: Path, votes: int, seed: int, folder: Path) -> dict[str, Any]:
    """Learns a taste, writes it into a folder, and returns what it is worth."""
    arms = {arm: pictures / "seen" / arm for arm in ARMS}
    comparison = plan_comparison(arms, votes, random.Random(seed))
    taste: Taste = learn_taste(comparison, [voter.ballot(comparison, seed)], EMBEDDED)
    write_taste(taste, folder / FILE)
    logger.info("%d votes, seed %d:\n%s", votes, seed, report(taste))
    tried = voter.tried(load(MY_TASTE, [folder]), {comparison.pictures[pair.left].name for pair in comparison.pairs}, seed)
    about = taste.about
    told = {"accuracy": about.accuracy, "low": about.low, "high": about.high, "same again": about.ceiling}
    return {"told": told | {"is sure": about.is_sure}, "held out": tried}


def judge_taste(world: World, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    """Trains a LoRA on the taste of a folder, and returns the verdicts on what it draws by strength."""
    layers, found = None, {}
    for strength in STRENGTHS if seed == SEEDS[0] else STRENGTHS[:1]:

        def make(strength: float = strength) -> dict[str, Any]:
            nonlocal layers
            if layers is None:
                judge = replace(world.judge, scorers={MY_TASTE: load(MY_TASTE, [folder]), **world.scorers})
                run = {"seed": seed, "steps": steps, "folder": folder / "run", "learning_rate": RATE}
                layers = train_feedback(world, folder.name, FEEDBACK, judge, **run)
            adapters = layers.sets[STUDENT]
            adapters.scale = strength * adapters.lora_alpha / adapters.rank
            return judged(world, layers, layers.drawing, SEEDS)

        found[f"{strength:g}"] = kept(folder / f"verdicts-{strength:g}.json", make)
    if layers is not None:
        layers.detach()
    return found


def over(told: Sequence[dict[str, Any]], path: tuple[str, str]) -> dict[str, float]:
    """Returns mean and deviation over the seeds of a number in what was told."""
    part, name = path
    return over_seeds([float(one[part][name]) for one in told])


def main() -> None:
    """Draws, votes, learns, trains, judges, and writes JSON."""
    parser = command_line(__doc__, out="taste.json")
    add_work_option(parser)
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of a LoRA; default %(default)s")
    parser.add_argument("--votes", type=int, choices=VOTES, action="append", help="only so many; default all of them")
    parser.add_argument("--seed", type=int, choices=SEEDS, action="append", help="only this seed; default all of them")
    parser.add_argument("--no-lora", action="store_true", help="learn tastes alone, and train no LoRA")
    options = parser.parse_args()
    start_logging(with_time=True)
    write_result(measured(options), options.out)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the whole result."""
    folder, seeds = options.work / "taste", options.seed or list(SEEDS)
    draw_pairs(options.work, folder / "pictures")
    voter, result = Voter(folder / "pictures"), {}
    for votes in options.votes or sorted(VOTES, reverse=True):
        told = []
        for seed in seeds:
            own = folder / f"{votes}-{seed}"
            told.append(kept(own / "learnt.json", lambda o=own, s=seed, v=votes: learnt(voter, folder / "pictures", v, s, o)))
        paths = [("told", name) for name in told[0]["told"]] + [("held out", name) for name in told[0]["held out"]]
        result[str(votes)] = {"learnt": {", ".join(path): over(told, path) for path in paths}, "by_seed": told}
    if not options.no_lora:
        add_loras(result, options, seeds, folder)
    return {"seeds": seeds, "steps": options.steps, "machine": processor(), "torch": torch.__version__, "votes": result}


def add_loras(result: dict[str, Any], options: argparse.Namespace, seeds: Sequence[int], folder: Path) -> None:
    """Trains a LoRA on each taste of the most votes, and adds what they draw to a result."""
    world = World(options.work, {REDNESS: redness})
    layers = world.layers(1)
    before = kept(folder / "before.json", lambda: judged(world, layers, (DISTILLED,), SEEDS))
    layers.detach()
    if str(MOST) in result:
        runs = [judge_taste(world, seed, options.steps, folder / f"{MOST}-{seed}") for seed in seeds]
        result[str(MOST)]["lora"] = {
            name: compared([run[name] for run in runs if name in run], before, len(world.unseen)) for name in runs[0]
        }


if __name__ == "__main__":
    main()
