"""Which training makes the cleanest single step, and what does it cost at 2 to 8 steps? Score distillation on the digits.

One command, from the repository root, in an environment with the `train` and `quality` extras:

    python -m hyper_sd.benchmarks.one_step --seeds 3 --out benchmarks/results/one_step.json

Every arm goes on from the same student, which TSCD brought from 8 to 1 segments (arm "progressive" of distillation.py), for
the same number of steps. One step starts from noise of deviation 1 at the timestep that the arm was trained for, 2 to 8 steps
from 999. KID and energy distance are to the guided teacher's 50-step digits from other noise, class by class; detail is the
energy of what varies fast, diversity the mean distance of features within a class, both as a share of that teacher's. What is
done is kept in the work folder, and a second call goes on from there.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..evaluation.metrics import diversity
from ..samplers.timesteps import LAST_TIMESTEP
from ..training.config import Stage, TrainingConfig
from ..training.data.examples import LatentExamples
from ..training.loop import train
from ..training.plain_config import differences, to_plain
from . import digits
from .distillation_arms import COMMON, TOTAL_STEPS, Arm, Draw, arms
from .distillation_judge import Judge, student
from .measure import command_line, logger, over_seeds, processor, start_logging, write_result

RATE, FAKE_RATE, TOO_HIGH, LOW = 1.5e-3, 3e-3, 4e-3, 4e-4
TURN = 50  # steps of each side where they take turns
MIXED = (2.0, 8.0, 32.0)  # weights of the consistency that is mixed in, beside 0.5 of the score and 1 of the pairs
GOES_ON = "TSCD goes on"  # the control: as many steps more, and nothing but consistency
STARTS = (LAST_TIMESTEP, 800)
MANY = (2, 4, 8)
BARS = {"kid": 0.6, "energy": 0.1, "detail": 0.15, "many": 1.5}
ETA = 0.3


def one_step_arms(total_steps: int) -> dict[str, TrainingConfig]:
    """Returns the settings of every arm by its name."""

    def config(tscd: float, score: float, pairs: float, adversarial: float = 0.0, **changes: Any) -> TrainingConfig:
        stage = Stage(1, total_steps, tscd, adversarial, score_weight=score, pair_weight=pairs)
        scores = {"learning_rate": RATE, "fake_learning_rate": FAKE_RATE, "fake_updates": 2, "fake_warmup": 50, "pairs": 4000}
        return replace(COMMON, stages=(stage,), **scores | changes)

    return {
        "score": config(0, 1, 0),
        "pairs": config(0, 0, 1),
        "score, pairs": config(0, 0.5, 1),
        "score, pairs, data": config(0, 0.5, 1, 0.1),
        "score, pairs, from 999": config(0, 0.5, 1, start_timestep=LAST_TIMESTEP),
        "score, rate 4e-3": config(0, 1, 0, learning_rate=TOO_HIGH, fake_learning_rate=2 * TOO_HIGH),
        "pairs, from 999": config(0, 0, 1, start_timestep=LAST_TIMESTEP),
        **{f"score, pairs, {weight:g} TSCD": config(weight, 0.5, 1) for weight in MIXED},
        **{f"pairs, {weight:g} TSCD": config(weight, 0, 1) for weight in MIXED},
        "score, pairs, 8 TSCD, rate 4e-4": config(8, 0.5, 1, learning_rate=LOW, fake_learning_rate=2 * LOW),
        "pairs, 8 TSCD, rate 4e-4": config(8, 0, 1, learning_rate=LOW),
        GOES_ON: replace(COMMON, stages=(Stage(1, total_steps),), learning_rate=RATE),
        "score, pairs, TSCD in turn": alternating(config(0, 0.5, 1), total_steps),
    }


def alternating(config: TrainingConfig, total_steps: int) -> TrainingConfig:
    """Returns the settings with the one step and the consistency in turn, the consistency last."""
    turn = max(1, min(TURN, total_steps // 2))
    pair = (replace(config.stages[0], steps=turn), Stage(1, turn))
    return replace(config, stages=pair * (total_steps // (2 * turn)), fake_warmup=0)


def draws(starts: tuple[int, ...]) -> tuple[Draw, ...]:
    """Returns one step from each start, and 2 to 8 steps from 999."""
    return (*(Draw(1, start_timestep=start) for start in starts), *(Draw(n, 1, ETA) for n in MANY))


def spread_within(judge: Judge, images: torch.Tensor) -> float:
    """Returns the diversity of digits within a class, on the judge's features."""
    with torch.no_grad():
        return diversity(judge.features(images), judge.labels.tolist())


def scores_of(judge: Judge, ways: tuple[Draw, ...]) -> dict[str, dict[str, float]]:
    """Returns the scores of what the active adapters draw, by the draw's key."""
    taught, found = spread_within(judge, judge.reference), {}
    for how in ways:
        images = judge.draw(how)
        found[how.key] = judge.score(images) | {"diversity": spread_within(judge, images) / taught}
    return found


def measure(config: TrainingConfig, first: Arm, judge: Judge, examples: LatentExamples, folder: Path, start: Path) -> dict:
    """Returns an arm's scores, kept in its folder.

    Args:
        config: of the arm.
        first: the arm that it goes on from.
        judge: of the seed.
        examples: what both train on.
        folder: of the arm.
        start: the folder of the first arm, which is trained there where it is not yet.
    """
    path, wanted = folder / "scores.json", to_plain(config)
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if not differences(config, kept["config"]):
            return kept["scores"]
    layers = student(first.config, judge.base, examples, start)
    try:
        for state in train(config, digits.denoiser_of(judge.base), layers, examples, folder=folder):
            if state.stage_finished:
                logger.info("%s: %s", folder.name, {k: round(v, 4) for k, v in state.losses.items()})
        with layers.using("student"):
            scores = scores_of(judge, draws((config.start_timestep,)))
    finally:
        layers.detach()
    path.write_text(json.dumps({"config": wanted, "scores": scores}), encoding="utf-8")
    return scores


def run(work: Path, seeds: int, total_steps: int, only: list[str] | None) -> dict[str, list[dict]]:
    """Returns the scores by arm, a list over the seeds; "TSCD" is the student that all go on from."""
    images, labels = digits.load_digits()
    base = digits.base_model(work / "base.safetensors", images, labels)
    features = digits.feature_network(work / "classifier.safetensors", images, labels)
    examples = LatentExamples(
        images, {"context": base.contexts(labels)}, {"context": base.contexts(torch.tensor([digits.CLASSES]))}
    )
    chosen = {name: config for name, config in one_step_arms(total_steps).items() if only is None or name in only}
    results: dict[str, list[dict]] = {name: [] for name in ("TSCD", *chosen)}
    for seed in range(seeds):
        judge = Judge(base, features, images, labels, seed)
        progressive = arms()["progressive"]
        first, start = Arm(replace(progressive.config, seed=seed), progressive.draws), work / f"progressive-{seed}"
        layers = student(first.config, base, examples, start)
        with layers.using("student"):
            results["TSCD"].append(scores_of(judge, draws(STARTS)))
        layers.detach()
        for name, config in chosen.items():
            folder = work / f"{name.replace(', ', '_').replace(' ', '-')}-{seed}"
            results[name].append(measure(replace(config, seed=seed), first, judge, examples, folder, start))
            logger.info("%s, seed %d: %s", name, seed, {k: round(v["kid"], 3) for k, v in results[name][-1].items()})
    return results


def spread(results: dict[str, list[dict]]) -> dict[str, dict]:
    """Returns mean and deviation over the seeds by arm, draw and metric."""
    return {
        arm: {key: {metric: over_seeds([one[key][metric] for one in seeds]) for metric in seeds[0][key]} for key in seeds[0]}
        for arm, seeds in results.items()
    }


def one_step_key(scores: dict[str, dict]) -> str:
    """Returns the key of an arm's one step, the last one where it has several."""
    return [key for key in scores if key.startswith("1 steps")][-1]


def worst_share(scores: dict[str, dict], reference: dict[str, dict]) -> float:
    """Returns the largest ratio of KID and of energy at 2 to 8 steps to those of a reference."""
    keys = [how.key for how in draws(())]
    return max(scores[key][metric]["mean"] / reference[key][metric]["mean"] for key in keys for metric in ("kid", "energy"))


def bars(found: dict[str, dict]) -> dict[str, dict]:
    """Returns for every arm which bars its one step meets, and how far TSCD's scores at 2 to 8 steps are kept.

    The second is told twice: beside the student that all arms go on from, and beside the one that goes on with TSCD alone
    for as many steps, where that was trained; "many" is held to the latter.
    """
    table, longer = {}, found.get(GOES_ON)
    for arm, scores in found.items():
        one, share = scores[one_step_key(scores)], worst_share(scores, longer) if longer else math.inf
        table[arm] = {
            "kid": one["kid"]["mean"] <= BARS["kid"], "energy": one["energy"]["mean"] <= BARS["energy"],
            "detail": abs(one["detail"]["mean"] - 1) <= BARS["detail"], "many": share <= BARS["many"],
            "worst_share_at_2_to_8": worst_share(scores, found["TSCD"]),
            "worst_share_beside_tscd_that_goes_on": share if longer else None,
        }  # fmt: skip
    return table


def curve(found: dict[str, dict], base: str = "pairs") -> dict[str, list[float | None]]:
    """Returns what mixing consistency in costs: KID at each number of steps by the weight, TSCD that goes on (None) at the end.

    Args:
        found: as spread() returns it.
        base: the arm without consistency, "pairs" or "score, pairs".
    """
    names = {0.0: base, **{weight: f"{base}, {weight:g} TSCD" for weight in MIXED}, None: GOES_ON}
    there = {weight: found[name] for weight, name in names.items() if name in found}
    ways = {"1": one_step_key, **{str(how.steps): lambda scores, key=how.key: key for how in draws(())}}
    kids = {steps: [scores[key(scores)]["kid"]["mean"] for scores in there.values()] for steps, key in ways.items()}
    return {"weight": list(there), **kids}


def plot(found: dict[str, dict], path: Path) -> None:
    """Draws both curves into a PNG, with the score as dashes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 4))
    for base, style in (("score, pairs", "--"), ("pairs", "-")):
        values = curve(found, base)
        weights = values.pop("weight")
        for number, (steps, kids) in enumerate(values.items()):
            label = f"{steps} step{'s' * (steps != '1')}{', with the score' * (style == '--')}"
            heights = [max(kid, 1e-3) for kid in kids]
            axis.plot(range(len(weights)), heights, style, color=f"C{number}", marker="o", label=label)
    axis.set_xticks(range(len(weights)), ["TSCD alone" if weight is None else f"{weight:g}" for weight in weights])
    axis.set_yscale("log")
    axis.set_xlabel("weight of the consistency that is mixed in")
    axis.set_ylabel("KID to the guided teacher")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Trains all arms, and writes JSON and a plot."""
    parser = command_line(__doc__, out="one_step.json")
    parser.add_argument("--seeds", type=int, default=3, help="how often everything is trained; default %(default)s")
    parser.add_argument("--steps", type=int, default=TOTAL_STEPS, help="optimizer steps of every arm")
    parser.add_argument("--arms", nargs="*", help="only these")
    parser.add_argument("--work", type=Path, default=Path(".demo/distillation"), help="what is done is kept here")
    options = parser.parse_args()
    start_logging(with_time=True)
    torch.set_num_threads(1)
    found = spread(run(options.work, options.seeds, options.steps, options.arms))
    settings = {name: to_plain(config) for name, config in one_step_arms(options.steps).items()}
    result = {"seeds": options.seeds, "steps": options.steps, "torch": torch.__version__, "machine": processor()}
    result |= {
        "bars": BARS,
        "met": bars(found),
        "curve": {base: curve(found, base) for base in ("pairs", "score, pairs")},
        "scores": found,
        "settings": settings,
    }
    write_result(result, options.out)
    plot(found, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
