"""Does segmented consistency distillation work? Students of a small digit model, drawn in 1 to 8 steps, against their teacher.

One command, from the repository root, in an environment with the `train` and `quality` extras:

    python -m hyper_sd.benchmarks.distillation --seeds 3 --out benchmarks/results/distillation.json

The base is trained once and frozen; every arm trains a LoRA on it with the training package's own loop, for the same number of
steps. All draws of a seed start from the same noise and labels. The reference is the teacher's own converged picture, 50 DDIM
steps from other noise. What is done is kept in the work folder, and a second call goes on from there.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ..evaluation.metrics import kid
from ..training.config import TrainingConfig, to_plain
from ..training.data.examples import LatentExamples
from ..training.loop import train
from ..training.lora_layers import LoraLayers
from . import digits
from .distillation_arms import COMMON, GUIDANCE, STEPS, TOTAL_STEPS, Arm, Draw, arms
from .distillation_report import plot, report
from .measure import command_line, logger, processor, start_logging, write_result

SAMPLES, CONVERGED = 2000, 50
Measure = Callable[[torch.Tensor, torch.Tensor], float]


def energy_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Returns the unbiased energy distance 2 E|a - b| - E|a - a'| - E|b - b'| of two sets of images.

    Source: Szekely and Rizzo, "Energy statistics", 2013.

    Args:
        a: images [m, ...].
        b: images [n, ...].
    """
    a, b = a.flatten(1).double(), b.flatten(1).double()

    def inside(x: torch.Tensor) -> torch.Tensor:
        return torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))

    return float(2 * torch.cdist(a, b).mean() - inside(a) - inside(b))


def fine_energy(images: torch.Tensor) -> float:
    """Returns the mean energy per pixel of what varies faster than a quarter of a cycle per pixel.

    Args:
        images: [n, 1, height, width].
    """
    height, width = images.shape[-2:]
    fast = torch.fft.fftfreq(height)[:, None].square() + torch.fft.fftfreq(width).square() > 0.25**2
    return float(torch.fft.fft2(images, norm="ortho").abs().square()[..., fast].sum((-2, -1)).mean() / (height * width))


class Judge:
    """Scores samples of one seed against the converged teacher and the real digits, class by class.

    Args:
        base: the teacher.
        features: from images [n, 1, 8, 8] to features [n, d].
        real: digits [n, 1, 8, 8].
        real_labels: their classes [n].
        seed: of the noise that all samples start from.
    """

    def __init__(
        self,
        base: digits.DigitNet,
        features: Callable[[torch.Tensor], torch.Tensor],
        real: torch.Tensor,
        real_labels: torch.Tensor,
        seed: int,
    ):
        self.base, self.features, self.seed = base, features, seed
        self.labels = torch.arange(SAMPLES) % digits.CLASSES
        self.reference = self.teach(CONVERGED, 1000 + seed)
        self.real, self.real_labels, self.taught = self._see(real), real_labels, self._see(self.reference)

    @torch.no_grad()
    def _see(self, images: torch.Tensor) -> torch.Tensor:
        return self.features(images)

    def _apart(self, measure: Measure, found: torch.Tensor, reference: torch.Tensor, labels: torch.Tensor) -> float:
        """Returns the distance within a class, its mean over the classes."""
        classes = range(digits.CLASSES)
        return sum(measure(found[self.labels == c], reference[labels == c]) for c in classes) / digits.CLASSES

    def teach(self, steps: int, seed: int) -> torch.Tensor:
        """Returns the teacher's own samples in `steps` DDIM steps, guided with the mean of the training's range."""
        return digits.sample(self.base, self.labels, steps, seed, num_segments=steps, guidance_scale=sum(GUIDANCE) / 2)

    def score(self, images: torch.Tensor) -> dict[str, float]:
        """Returns the distances of samples drawn with this seed's noise."""
        seen = self._see(images)
        return {
            "kid": self._apart(kid, seen, self.taught, self.labels),
            "energy": self._apart(energy_distance, images, self.reference, self.labels),
            "kid_real": self._apart(kid, seen, self.real, self.real_labels),
            "detail": fine_energy(images) / fine_energy(self.reference),
        }

    def draw(self, how: Draw) -> torch.Tensor:
        """Returns samples of the base with whatever adapters are active."""
        settings = {"num_segments": how.num_segments, "eta": how.eta, "start_timestep": how.start_timestep}
        return digits.sample(self.base, self.labels, how.steps, self.seed, **settings)


def student(config: TrainingConfig, base: digits.DigitNet, examples: LatentExamples, folder: Path) -> LoraLayers:
    """Returns the adapters of an arm, trained, or read from the folder where that is done."""
    layers = LoraLayers(base, config.rank, config.lora_alpha)
    for state in train(config, digits.denoiser_of(base), layers, examples, folder=folder):
        if state.stage_finished:
            logger.info("%s: step %d, distance %.4f", folder.name, state.step, state.losses["distance"])
    return layers


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
