"""How closely are the outlines followed that the demo model's ControlNet is given, and is the thing asked for still drawn?

One command, from the repository root, in an environment with the `recipe` and `quality` extras, npm and a ComfyUI folder:

    python -m hyper_sd.benchmarks.demo_controlnet --comfyui PATH --work .demo/recipe --out FILE

Everything runs through the nodes of a real ComfyUI. The base model draws the things of SHAPES in 25 steps, the host's Canny
node finds their outlines, and with each of these every prompt of PROMPTS is drawn, once per seed. "met" is the share of the
hint's pixels that the picture's own outlines meet within a pixel; most drawings fill the same middle of the picture, so without
the ControlNet it is not 0. "top1": is the nearest of all 1264 drawings one of the thing asked for. Mean and deviation are over
the seeds.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from ..evaluation.metrics import retrieval_accuracy
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

SHAPES = ("red heart", "pizza", "sailboat", "fox", "guitar", "mushroom")
PROMPTS = ("strawberry", "blue heart", "sunflower")
SEEDS, STRENGTHS, SHOWN, THRESHOLD, SIZE = (0, 1, 2), (0.0, 0.5, 0.8, 1.0), 0.8, 0.05, 128


@dataclass(frozen=True)
class Way:
    """How pictures are drawn.

    Args:
        steps: model evaluations.
        cfg: guidance; 1 for none.
        with_lora: whether the unified LoRA is on the model.
    """

    steps: int
    cfg: float
    with_lora: bool


WAYS = {"unified LoRA, 4 steps": Way(4, 1.0, True), "base, 12 steps, CFG 4": Way(12, 4.0, False)}
SOURCE = Way(25, 4.0, False)


class Painter:
    """The embedded model with its ControlNet in a ComfyUI."""

    def __init__(self) -> None:
        self.nodes = pack_nodes()
        self.base, self.clip, self.vae = self.nodes["HyperSDDemoModel"].execute().args
        self.fast = self.nodes["HyperSDLoraLoader"].execute(self.base, 4, "unified", 0.0).args[0]
        (self.control,) = self.nodes["HyperSDDemoControlNet"].execute().args

    def draw(self, prompt: str, seed: int, way: Way, hints: torch.Tensor | None = None, strength: float = 0.0) -> torch.Tensor:
        """Returns a picture for each hint, or one: float [n, 128, 128, 3], 0 to 1.

        Args:
            prompt: what to draw.
            seed: of the noise.
            way: steps, guidance and LoRA.
            hints: outlines, float [n, 128, 128, 3], 0 or 1; None for one picture without any.
            strength: of the ControlNet; 0 for pictures without it.
        """
        from nodes import ControlNetApplyAdvanced, KSampler

        model, count = self.fast if way.with_lora else self.base, 1 if hints is None else len(hints)
        prompts = [self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text)) for text in (prompt, "")]
        if strength:
            prompts = ControlNetApplyAdvanced().apply_controlnet(*prompts, self.control, hints, strength, 0.0, 1.0)
        empty = {"samples": torch.zeros(count, 4, SIZE // 8, SIZE // 8)}
        sampler, scheduler = ("hyper_sd_tcd", "hyper_sd") if way.with_lora else ("euler", "normal")
        (latent,) = KSampler().sample(model, seed, way.steps, way.cfg, sampler, scheduler, *prompts, empty)
        return self.vae.decode(latent["samples"]).float()


def outlines(pictures: torch.Tensor) -> torch.Tensor:
    """Returns what the host's Canny node finds, float [n, 128, 128, 3], 0 or 1."""
    from comfy_extras.nodes_canny import Canny

    return Canny.execute(pictures, THRESHOLD, THRESHOLD).args[0]


def met(pictures: torch.Tensor, hints: torch.Tensor) -> float:
    """Returns the share of the hints' pixels that outlines of the pictures meet within a pixel."""
    near = torch.nn.functional.max_pool2d(outlines(pictures)[:, None, :, :, 0], 3, 1, 1)[:, 0]
    return float(near[hints[..., 0] > 0.5].mean())


class Judge:
    """Tells by the drawings that the model was trained on what a picture shows."""

    def __init__(self, work: Path):
        from .embedded import Drawings

        drawings, self.features = Drawings(work), Features()
        pictures, self.shows = drawings.trained_on()
        self.names, self.known = drawings.labels, self.features(pictures)

    def hits(self, pictures: torch.Tensor, prompt: str) -> float:
        """Returns the share of pictures whose nearest drawing is one of the thing asked for."""
        found = self.features(pictures.mul(255).round().clamp(0, 255).byte().numpy())
        return retrieval_accuracy(found, self.known, [self.names.index(prompt)] * len(found), self.shows)


def run_seed(painter: Painter, judge: Judge, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """Returns "met" and "top1" by way and strength."""
    hints = torch.cat([outlines(painter.draw(shape, seed + 100, SOURCE)) for shape in SHAPES])
    scores: dict = {}
    for name, way in WAYS.items():
        for strength in STRENGTHS:
            drawn = {prompt: painter.draw(prompt, seed, way, hints, strength) for prompt in PROMPTS}
            found = {
                "met": statistics.mean(met(pictures, hints) for pictures in drawn.values()),
                "top1": statistics.mean(judge.hits(pictures, prompt) for prompt, pictures in drawn.items()),
            }
            scores.setdefault(name, {})[f"{strength:g}"] = found
            logger.info("seed %d, %s, strength %g: %s", seed, name, strength, found)
    return scores


def summary(runs: list[dict]) -> dict:
    """Returns mean and deviation over the seeds, by way, strength and metric."""
    return {
        way: {
            strength: {metric: over_seeds([run[way][strength][metric] for run in runs]) for metric in ("met", "top1")}
            for strength in runs[0][way]
        }
        for way in WAYS
    }


def sheet(painter: Painter) -> Image.Image:
    """Returns the outlines, and below them every prompt at strength SHOWN with the LoRA, from one seed."""
    hints = torch.cat([outlines(painter.draw(shape, 100, SOURCE)) for shape in SHAPES])
    way = next(iter(WAYS.values()))
    rows = [hints, *(painter.draw(prompt, 0, way, hints, SHOWN) for prompt in PROMPTS)]
    pixels = torch.cat([torch.cat(list(row), 1) for row in rows]).mul(255).round().clamp(0, 255).byte()
    return Image.fromarray(pixels.numpy())


def main() -> None:
    """Draws seed by seed, and writes JSON and a picture."""
    parser = command_line(__doc__, out="demo_controlnet.json")
    add_comfyui_option(parser)
    add_work_option(parser)
    add_machine_option(parser)
    options = parser.parse_args()
    enter_comfyui(parser, options.comfyui)
    start_logging(with_time=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        painter, judge = Painter(), Judge(options.work)
        runs = [run_seed(painter, judge, seed) for seed in SEEDS]
        sheet(painter).save(options.out.with_suffix(".png"), optimize=True)
    report = {"shapes": SHAPES, "prompts": PROMPTS, "machine": options.machine, "torch": torch.__version__, **summary(runs)}
    write_result(report, options.out)


if __name__ == "__main__":
    main()
