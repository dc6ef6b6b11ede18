"""Does segmented consistency distillation work? Students of a small digit model, drawn in 1 to 8 steps, against their teacher.

One command, from the repository root, in an environment with the `train` and `quality` extras:

    python -m hyper_sd.benchmarks.distillation --seeds 3 --out benchmarks/results/distillation.json

The base is trained once and frozen; every arm trains a LoRA on it with the training package's own loop, for the same number of
steps. All draws of a seed start from the same noise and labels. The reference is the teacher's own converged picture, 50 DDIM
steps from other noise. What is done is kept in the work folder, and a second call goes on from there.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch

from ..training.data.examples import LatentExamples
from ..training.plain_config import to_plain
from . import digits
from .distillation_arms import COMMON, GUIDANCE, STEPS, TOTAL_STEPS, Arm, arms
from .distillation_judge import CONVERGED, SAMPLES, Judge, student
from .distillation_report import plot, report
from .measure import command_line, logger, processor, start_logging, write_result


def measure(arm: Arm, judge: Judge, examples: LatentExamples, folder: Path) -> dict[str, dict[str, float]]:
    """Returns the scores of every draw of an arm, by the draw's key; kept in the folder."""
    path, wanted = folder / "scores.json", to_plain(arm.config)
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    scores = kept.get("scores", {}) if kept.get("config") == wanted else {}
    if any(draw.key not in scores for draw in arm.draws):
        layers = student(arm.config, judge.base, examples, folder)
        with layers.using("student"):
            scores = {draw.key: judge.score(judge.draw(draw)) for draw in arm.draws}
        layers.detach()
        path.write_text(json.dumps({"config": wanted, "scores": scores}), encoding="utf-8")
    return scores


def run(work: Path, seeds: int, total_steps: int, only: list[str] | None = None) -> dict[str, list[dict]]:
    """Returns the scores by arm, a list over the seeds; the arm "teacher" is the base itself in N of its own steps."""
    images, labels = digits.load_digits()
    base = digits.base_model(work / "base.safetensors", images, labels)
    features = digits.feature_network(work / "classifier.safetensors", images, labels)
    nothing = base.contexts(torch.tensor([digits.CLASSES]))
    examples = LatentExamples(images, {"context": base.contexts(labels)}, {"context": nothing})
    chosen = {name: arm for name, arm in arms(total_steps).items() if only is None or name in only}
    results: dict[str, list[dict]] = {name: [] for name in ["teacher", *chosen]}
    for seed in range(seeds):
        judge = Judge(base, features, images, labels, seed)
        taught = {str(n): judge.score(judge.teach(n, seed)) for n in (*STEPS, CONVERGED)}
        results["teacher"].append(taught)
        for name, arm in chosen.items():
            from_seed = Arm(replace(arm.config, seed=seed), arm.draws)
            results[name].append(measure(from_seed, judge, examples, work / f"{name}-{seed}"))
            logger.info("%s, seed %d: %s", name, seed, {k: round(v["kid"], 4) for k, v in results[name][-1].items()})
    return results


def settings(total_steps: int) -> dict[str, dict]:
    """Returns the settings of every arm: all under "common", then what each has of its own."""
    common = to_plain(COMMON)
    plain = {name: to_plain(arm.config) for name, arm in arms(total_steps).items()}
    return {"common": common} | {arm: {k: v for k, v in own.items() if v != common[k]} for arm, own in plain.items()}


def main() -> None:
    """Trains all arms, and writes JSON and a plot."""
    parser = command_line(__doc__, out="distillation.json")
    parser.add_argument("--seeds", type=int, default=3, help="how often everything is trained; default %(default)s")
    parser.add_argument("--steps", type=int, default=TOTAL_STEPS, help="optimizer steps of every arm, a multiple of 4")
    parser.add_argument("--arms", nargs="*", help="only these")
    parser.add_argument("--work", type=Path, default=Path(".demo/distillation"), help="what is done is kept here")
    options = parser.parse_args()
    start_logging(with_time=True)
    torch.set_num_threads(1)
    scores = run(options.work, options.seeds, options.steps, options.arms)
    result = {"seeds": options.seeds, "steps": options.steps, "samples": SAMPLES, "guidance_scale": list(GUIDANCE)}
    result |= {"torch": torch.__version__, "machine": processor(), "settings": settings(options.steps)} | report(scores)
    write_result(result, options.out)
    plot(result, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
