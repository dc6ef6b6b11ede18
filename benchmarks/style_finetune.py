"""Does a style learnt from 20 pictures reach 4 steps, and is it better distilled than stacked on the Hyper-SD LoRA?

One command, from the repository root, in an environment with the `recipe` and `quality` extras, npm and a ComfyUI folder:

    python -m hyper_sd.benchmarks.style_finetune --comfyui PATH --work .demo/recipe --out benchmarks/results/style_finetune.json

Everything runs through the pack's nodes in a real ComfyUI, on the embedded model. The style is Fluent's high-contrast set,
black drawings that the model has never seen; each seed takes 20 other concepts of it, with their plain labels as captions. The
arms have the same rank and are asked for concepts that were not among the 20:

    none       the Hyper-SD LoRA alone
    stacked    a plain finetune, on top of the Hyper-SD LoRA at the strength its node takes
    briefly    the same with as many steps as the style phase of the next one: what that one starts from
    distilled  "style, then distil", started from the Hyper-SD LoRA: one LoRA with both, in as many steps as "stacked"; as the
               node comes, with a discriminator that knows the 20 drawings

The distance, "style", is KID on EfficientNet-Lite0's features to the vendor's own drawings of the concepts asked for; "away" is
the same to the two vendors that the base was trained on; "teacher" is the same to what the arm's own plain finetune draws of
these concepts at 25 steps with guidance, from other noise: what few steps are meant to reach. "top1": is the nearest of the
vendor's drawings the thing asked for. Anchors: the autoencoder's rendition of the drawings; the finetunes at 25 steps.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..evaluation.contact_sheet import contact_sheet
from ..evaluation.metrics import kid, retrieval_accuracy
from ..training.presets import STYLE_SHARE
from ..training.words import STYLE, STYLE_THEN_DISTIL
from .embedded import CFG, ETA, TRAINED_ON, Drawings
from .measure import (
    Features,
    add_machine_option,
    add_work_option,
    command_line,
    logger,
    over_seeds,
    start_logging,
    write_result,
)
from .with_comfyui import add_comfyui_option, enter_comfyui, pack_nodes

VENDOR = "@iconify-json/fluent-emoji-high-contrast"
TAUGHT, ASKED, BATCH, SIZE = 20, 120, 40, 128
STEPS, MANY, MANY_SEED = (1, 2, 4), 25, 100
ARMS = {"stacked": STYLE, "briefly": STYLE, "distilled": STYLE_THEN_DISTIL}
SHOWN = ("hamburger", "penguin", "guitar", "rocket")
UNIFIED = "Hyper-SD unified"


class Studio:
    """The embedded model in a ComfyUI, and the pack's nodes by id."""

    def __init__(self) -> None:
        self.nodes = pack_nodes()
        self.model, self.clip, self.vae = self.nodes["HyperSDDemoModel"].execute().args
        self.negative = self.encode([""])

    def encode(self, captions: list[str]) -> list:
        """Returns one CONDITIONING entry for each caption."""
        made = (self.clip.encode_from_tokens_scheduled(self.clip.tokenize(caption)) for caption in captions)
        return [entry for caption in made for entry in caption]

    def latents(self, drawings: np.ndarray) -> dict:
        """Returns the LATENT of uint8 drawings [n, 128, 128, 3]."""
        return {"samples": self.vae.encode(torch.from_numpy(drawings).float() / 255)}

    def train(
        self, objective: str, steps: int, drawings: np.ndarray, captions: list[str], options: argparse.Namespace, seed: int
    ) -> Any:
        """Returns the output of HyperSDTrainLora: MODEL, LORA_MODEL, LOSS_MAP, steps, sheet, one-step LORA_MODEL."""
        start = "none" if objective == STYLE else UNIFIED
        values = {
            "model": self.model, "latents": self.latents(drawings), "positive": self.encode(captions), "objective": objective,
            "preset": "Small", "steps": steps, "rank": options.rank, "learning_rate": options.learning_rate,
            "name": f"style_finetune_{seed}", "negative": self.negative, "vae": None, "start_from": start, "stages": "auto",
            "batch_size": options.batch_size, "teacher_cfg": CFG, "preview_every": steps, "seed": seed,
        }  # fmt: skip
        return self.nodes["HyperSDTrainLora"].execute(**{name: [value] for name, value in values.items() if value is not None})

    def with_unified(self, model: Any) -> Any:
        """Returns a MODEL with the embedded model's unified LoRA as well."""
        return self.nodes["HyperSDLoraLoader"].execute(model, 1, "unified", 0.0).args[0]

    def draw(self, model: Any, captions: list[str], steps: int, seed: int, cfg: float = 1.0) -> np.ndarray:
        """Returns a picture of each caption, uint8 [n, 128, 128, 3]."""
        from comfy_extras.nodes_custom_sampler import SamplerCustom

        (sampler,) = self.nodes["HyperSDSampler"].execute(ETA if cfg == 1 else 0.0, 1).args
        (sigmas,) = self.nodes["HyperSDScheduler"].execute(model, steps, 1, 1.0).args
        pictures = []
        for first in range(0, len(captions), BATCH):
            entries = self.encode(captions[first : first + BATCH])
            positive = [[torch.cat([states for states, _ in entries]), {}]]
            empty = {"samples": torch.zeros(len(entries), 4, SIZE // 8, SIZE // 8)}
            how = (seed * 1000 + first, cfg, positive, self.negative, sampler, sigmas, empty)
            latents = SamplerCustom.execute(model, True, *how).args[0]["samples"]
            pictures.append(self.vae.decode(latents).mul(255).round().clamp(0, 255).byte().cpu().numpy())
        return np.concatenate(pictures)


class Style:
    """The style's drawings of all concepts, split anew for every seed, and the scores of pictures."""

    def __init__(self, work: Path):
        everyone = Drawings(work, {VENDOR: "1.2.6"})
        self.concepts, self.drawings, self.features = everyone.labels, everyone.by(VENDOR), Features()
        self.style = self.features(self.drawings)
        self.others = [self.features(everyone.by(vendor)) for vendor in TRAINED_ON]

    def split(self, seed: int) -> tuple[list[int], list[int]]:
        """Returns the concepts taught and those asked for."""
        order = list(range(len(self.concepts)))
        random.Random(seed).shuffle(order)
        return order[:TAUGHT], order[TAUGHT : TAUGHT + ASKED]

    def labels(self, picks: list[int]) -> list[str]:
        """Returns the names of concepts."""
        return [self.concepts[i] for i in picks]

    def score(self, pictures: np.ndarray, asked: list[int], teacher: torch.Tensor | None = None) -> dict[str, float]:
        """Returns the distances of pictures of the concepts `asked`, and how many show what was asked for.

        Args:
            pictures: uint8 [n, 128, 128, 3].
            asked: the concept that each picture was asked to show.
            teacher: features of what a plain finetune draws of them in many steps.
        """
        found, every = self.features(pictures), list(range(len(self.concepts)))
        scores = {
            "style": kid(found, self.style[asked]),
            "away": kid(found, torch.cat([other[asked] for other in self.others])),
            "top1": retrieval_accuracy(found, self.style, asked, every),
        }
        return scores if teacher is None else scores | {"teacher": kid(found, teacher)}


def run_seed(studio: Studio, style: Style, options: argparse.Namespace, seed: int) -> tuple[dict, dict[str, Any]]:
    """Returns the scores of one seed by arm and number of steps, and the models."""
    taught, asked = style.split(seed)
    rebuilt = studio.vae.decode(studio.latents(style.drawings[asked])["samples"]).mul(255).round().byte().cpu().numpy()
    scores: dict[str, Any] = {"autoencoder": style.score(rebuilt, asked)}
    models, seconds, teachers = {"none": studio.with_unified(studio.model)}, {}, {}
    for arm, objective in ARMS.items():
        began = time.monotonic()
        steps = round(STYLE_SHARE * options.steps) if arm == "briefly" else options.steps
        trained = studio.train(objective, steps, style.drawings[taught], style.labels(taught), options, seed).args[0]
        seconds[arm] = round(time.monotonic() - began, 1)
        models[arm] = studio.with_unified(trained) if objective == STYLE else trained
        if objective == STYLE:
            many = studio.draw(trained, style.labels(asked), MANY, seed + MANY_SEED, CFG)
            teachers[arm] = style.features(many)
            scores[f"{arm}, without Hyper-SD, {MANY} steps"] = style.score(many, asked)
    teachers |= {"none": teachers["briefly"], "distilled": teachers["briefly"]}
    for arm, model in models.items():
        drawn = {steps: studio.draw(model, style.labels(asked), steps, seed) for steps in STEPS}
        scores[arm] = {str(steps): style.score(pictures, asked, teachers[arm]) for steps, pictures in drawn.items()}
        found = {steps: (round(score["style"], 4), round(score["teacher"], 4)) for steps, score in scores[arm].items()}
        logger.info("seed %d, %s, distance to style and teacher: %s", seed, arm, found)
    return scores | {"seconds": seconds}, models


def summary(runs: list[dict]) -> dict:
    """Returns mean and deviation over the seeds, and every seed's distance beside that of the stacked arm."""

    def each(scores: list[dict[str, float]]) -> dict[str, dict[str, float]]:
        return {metric: over_seeds([score[metric] for score in scores]) for metric in scores[0]}

    counts = [str(steps) for steps in STEPS]
    table = {arm: {steps: each([run[arm][steps] for run in runs]) for steps in counts} for arm in ("none", *ARMS)}
    anchors = {name: each([run[name] for run in runs]) for name in runs[0] if name not in (*table, "seconds")}
    ratios = {
        arm: {steps: [run[arm][steps]["style"] / run["stacked"][steps]["style"] for run in runs] for steps in counts}
        for arm in ("none", "briefly", "distilled")
    }  # of the style alone: the distance to the teacher comes near 0
    return {"arms": table, "anchors": anchors, "style_distance_beside_stacked": ratios}


def sheet(studio: Studio, models: dict[str, Any]) -> Image.Image:
    """Returns every arm's pictures at 1, 2 and 4 steps from the same noise."""
    images, labels = [], []
    for caption in SHOWN[:2]:
        for arm, model in models.items():
            for steps in STEPS:
                images.append(Image.fromarray(studio.draw(model, [caption], steps, 0)[0]))
                labels.append(f"{arm}, {steps} step{'s' if steps > 1 else ''}")
    return contact_sheet(images, labels, columns=6, title="A style from 20 drawings, at few steps")


def report(options: argparse.Namespace, runs: list[dict]) -> dict[str, Any]:
    """Returns what is kept of the seeds so far."""
    return {
        "style": VENDOR, "taught": TAUGHT, "asked": ASKED, "steps": options.steps, "rank": options.rank,
        "batch_size": options.batch_size, "learning_rate": options.learning_rate or "preset", "eta": ETA,
        "machine": options.machine, "torch": torch.__version__, **summary(runs), "runs": runs,
    }  # fmt: skip


def main() -> None:
    """Trains and draws seed by seed, and writes JSON and a picture."""
    parser = command_line(__doc__, out="style_finetune.json")
    add_comfyui_option(parser)
    add_work_option(parser)
    add_machine_option(parser)
    parser.add_argument("--seeds", type=int, default=10, help="how often everything is trained; default %(default)s")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of an arm; default %(default)s")
    parser.add_argument("--rank", type=int, default=16, help="of the LoRAs; default %(default)s")
    parser.add_argument("--batch-size", type=int, default=8, help="examples in a step; default %(default)s")
    parser.add_argument("--learning-rate", type=float, default=0.0, help="0: the preset's")
    options = parser.parse_args()
    enter_comfyui(parser, options.comfyui)
    start_logging(with_time=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    import folder_paths

    # A folder of its own: a training that an earlier run left would be taken up, and its time not be measured.
    with tempfile.TemporaryDirectory() as kept, torch.inference_mode():
        folder_paths.set_output_directory(kept)
        studio, style, runs = Studio(), Style(options.work), []
        for seed in range(options.seeds):
            scores, models = run_seed(studio, style, options, seed)
            runs.append(scores)
            if not seed:
                sheet(studio, models).save(options.out.with_suffix(".png"))
            write_result(report(options, runs), options.out)  # a run that is stopped keeps these


if __name__ == "__main__":
    main()
