"""Does human feedback make few-step pictures better, and by whose measure? The demo model's LoRA with a feedback LoRA on top.

One command, from the repository root, in an environment with the `recipe` and `quality` extras:

    python -m hyper_sd.benchmarks.feedback --work .demo/recipe --out benchmarks/results/feedback.json

The unified LoRA of the demo model is the student. Arms: one reward (does the picture show what was asked for), two (and how
clean is it), two with the perceptual term. Each is trained with three seeds on seven eighths of the concepts, and judged on
the labels of every eighth, which it has not seen, at 1, 2 and 4 steps, from the same noise with and without the feedback.
Judges that no arm learns from are EfficientNet-Lite0's: retrieval, the share of pictures whose nearest drawing of all shows the
thing asked for; likeness, the cosine to the nearest drawing of that thing; diversity, the mean distance between pictures of
one label. Differences are paired by picture; errors are standard errors over all pictures and seeds. An interrupted run goes
on: what was trained and judged is kept in the work folder.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..evaluation.contact_sheet import contact_sheet
from ..training.feedback.settings import FeedbackSettings
from ..training.lora_layers import DISTILLED, STUDENT, LoraLayers
from .feedback_world import (
    MATCH,
    QUALITY,
    SEEDS,
    SETTINGS,
    World,
    as_bytes,
    compared,
    judged,
    kept,
    train_feedback,
)
from .measure import add_work_option, command_line, processor, start_logging, write_result

STRENGTHS = (0.5, 1.0, 1.5)  # all but 1 for the first seed of training and of noise alone
SHOWN = 6  # prompts on the sheet
ARMS = {
    "one reward": FeedbackSettings((MATCH,), **SETTINGS),
    "two rewards": FeedbackSettings((MATCH, QUALITY), **SETTINGS),
    "two rewards, perceptual": FeedbackSettings((MATCH, QUALITY), instance_weight=5.0, **SETTINGS),
}


def train_arm(world: World, arm: str, seed: int, steps: int, folder: Path) -> LoraLayers:
    """Trains an arm in its folder, or takes what is there, and returns the layers with the sets."""
    return train_feedback(world, arm, ARMS[arm], world.judge, seed=seed, steps=steps, folder=folder)


def folder_of(arm: str, seed: int, options: argparse.Namespace) -> Path:
    """Returns where an arm and seed is kept."""
    return options.work / "feedback" / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"


def judge_arm(world: World, arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the verdicts on an arm by strength; other strengths than 1 for the first seed alone."""
    folder, layers, found = folder_of(arm, seed, options), None, {}
    for strength in STRENGTHS if seed == SEEDS[0] else (1.0,):

        def make(strength: float = strength) -> dict[str, Any]:
            nonlocal layers
            layers = layers or train_arm(world, arm, seed, options.steps, folder)
            adapters = layers.sets[STUDENT]
            adapters.scale = strength * adapters.lora_alpha / adapters.rank
            return judged(world, layers, layers.drawing, SEEDS if strength == 1 else SEEDS[:1])

        found[f"{strength:g}"] = kept(folder / f"verdicts-{strength:g}.json", make)
    if layers is not None:
        layers.detach()
    return found


def draw_sheets(world: World, arms: list[str], options: argparse.Namespace) -> None:
    """Draws pictures of unseen labels at one step, without feedback and by each arm, from the same noise."""
    prompts = [world.drawings.labels[i] for i in world.unseen[:: len(world.unseen) // SHOWN]][:SHOWN]
    images, titles = [], []
    for arm in ("without", *arms):
        layers = (
            world.layers(1) if arm == "without" else train_arm(world, arm, SEEDS[0], options.steps, folder_of(arm, 0, options))
        )
        sets = (DISTILLED,) if arm == "without" else layers.drawing
        images += [Image.fromarray(x) for x in as_bytes(world.paint(layers, sets, 1, 0, prompts))]
        titles += [prompt if arm == "without" else arm for prompt in prompts]
        layers.detach()
    contact_sheet(images, titles, SHOWN, "One step: without feedback, and with").save(options.sheet)


def main() -> None:
    """Trains, judges, and writes JSON and a sheet."""
    parser = command_line(__doc__, out="feedback.json")
    add_work_option(parser)
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of an arm; default %(default)s")
    parser.add_argument("--arm", choices=list(ARMS), action="append", help="only this arm; default all of them")
    parser.add_argument("--seed", type=int, choices=SEEDS, action="append", help="only this seed; default all of them")
    parser.add_argument("--sheet", type=Path, help="picture of the arms to write; default none")
    options = parser.parse_args()
    start_logging(with_time=True)
    world, arms, seeds = World(options.work), options.arm or list(ARMS), options.seed or list(SEEDS)
    layers = world.layers(1)
    before = kept(options.work / "feedback" / "before.json", lambda: judged(world, layers, (DISTILLED,), SEEDS))
    layers.detach()
    count, result = len(world.unseen), {}
    for arm in arms:
        by_seed = [judge_arm(world, arm, seed, options) for seed in seeds]
        sweep = {strength: compared([found], before, count) for strength, found in by_seed[0].items()}
        result[arm] = {"strength 1": compared([one["1"] for one in by_seed], before, count), "strengths": sweep}
    if options.sheet:
        draw_sheets(world, arms, options)
    told = {"prompts": count, "seeds": seeds, "steps": options.steps, "machine": processor(), "torch": torch.__version__}
    write_result(told | {"arms": result}, options.out)


if __name__ == "__main__":
    main()
