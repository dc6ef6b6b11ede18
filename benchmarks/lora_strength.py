"""At which strength, from which file, with which eta and from which timestep to draw in few steps, step count by step count.

One command, from the repository root, in an environment with the `recipe` and `quality` extras, for the embedded model:

    python -m hyper_sd.benchmarks.lora_strength --work .demo/recipe --out benchmarks/results/lora_strength.json

and with the `train` and `quality` extras for an SD1.5 or SDXL model of one's own, a file or a diffusers folder:

    python -m hyper_sd.benchmarks.lora_strength --checkpoint model.safetensors --lora lora.safetensors --out mine.json

The distance is KID on EfficientNet-Lite0's features to the base's own 25-step images with guidance, from other noise. Second
opinion: is the nearest drawing of the thing asked for (embedded model), or the nearest reference image of the same prompt
(one's own)? Within a seed all is drawn from the same prompts and noise, so that differences are paired. An interrupted run
goes on.

Run so far: the embedded model, also in the second way, as one file; untrained SD1.5 and SDXL folders of a few thousand
weights. Not run: a released checkpoint, a released LoRA, CUDA.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..evaluation.metrics import retrieval_accuracy
from ..models.embedded import ONE_STEP, lora_title
from ..models.families import FAMILIES
from ..samplers.schedule import NoiseSchedule
from ..samplers.tcd import sample_tcd
from ..samplers.timesteps import hyper_sd_sigmas
from ..training.export import load_lora
from ..training.lora_layers import LoraLayers
from . import lora_strength_report as sweep
from .lora_strength_report import Cell, Cells, Draw
from .measure import Features, add_machine_option, add_work_option, command_line, logger, start_logging, versions, write_result

MANY, MANY_SEED = 25, 100
SWEEPS = ("strength", "strength_eta_1", "eta", "start", "file")
PROMPTS = (
    "a red fox in the snow", "a lighthouse at sunset", "a bowl of fruit on a table", "portrait of an old fisherman",
    "a steam train on a bridge", "a cat asleep on a sofa", "a city street at night in the rain", "a field of sunflowers",
    "a glass of lemonade", "an astronaut on the moon", "a wooden cabin by a lake", "a plate of sushi", "a bicycle at a wall",
    "portrait of a young woman, freckles", "a castle on a hill, oil painting", "a robot watering plants", "a palm beach",
    "a stack of old books", "two children flying a kite", "an owl on a branch", "a vintage car in front of a diner",
    "a mountain in the fog, watercolour", "a cup of coffee from above", "a dragon made of paper", "a market stall, spices",
    "a violin on a chair", "a hot air balloon over hills", "a snail on a leaf, macro", "a clown fish", "a wedding cake",
    "a knight in armour", "a Japanese garden in autumn",
)  # fmt: skip


class DemoModel:
    """The embedded model with its LoRAs "1", "2", "4" and "8", named by their segments, and the one for a single step."""

    batch, device = 16, "cpu"

    def __init__(self, work: Path, every: int):
        from .embedded import Drawings, Painter

        self.painter, drawings = Painter(), Drawings(work)
        self.layers = self.painter.layers
        self.picks = list(range(len(drawings.labels)))[::every]
        self.prompts = [drawings.labels[i] for i in self.picks]
        self.drawings, self.classes = drawings.trained_on()

    def generate(self, prompts: list[str], draw: Draw, seed: int) -> np.ndarray:
        from ..demo.recipe.sample import generate
        from .embedded import CFG

        how: dict[str, Any] = {"cfg": CFG}
        if draw.lora:
            how = {"cfg": 1.0, "eta": draw.eta, "num_segments": draw.num_segments, "start_timestep": draw.start_timestep}
        return generate(self.painter.vae, self.painter.denoiser, prompts, steps=draw.steps, seed=seed, **how).numpy()

    def landmarks(self, features: Callable[[np.ndarray], torch.Tensor], many: torch.Tensor) -> tuple:
        """Returns the features among which the nearest is sought, their classes, and the class of each prompt."""
        return features(self.drawings), self.classes, self.picks


class OwnModel:
    """A model and a LoRA, "lora", of the user's. The pack's own sampler and its own reader of LoRA files are what is measured.

    Args:
        options: checkpoint, lora, family, config, size, cfg and prompts, as the command line explains them.
    """

    batch = 4

    def __init__(self, options: argparse.Namespace):
        from ..models.lora import read_lora
        from ..training.launch.diffusers_models import DiffusersModel, load_model

        self.options, info = options, read_lora(options.lora)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        family, precision = options.family or info.family, "fp16" if self.device == "cuda" else "fp32"
        if options.checkpoint.is_dir():
            self.model = load_model(str(options.checkpoint), precision, local=True)
        else:
            self.model = DiffusersModel(self._from_file(family, precision))
        if FAMILIES[self.model.name].is_flow:
            raise SystemExit(f"{options.checkpoint} is a model of {self.model.name}; only SD1.5 and SDXL are swept.")
        self.pipeline = self.model.pipeline.to(self.device)
        self.pipeline.vae.float()  # SDXL's turns black in half precision
        self.size = options.size or FAMILIES[self.model.name].size
        self.prompts = options.prompts.read_text(encoding="utf-8").split("\n") if options.prompts else list(PROMPTS)
        self.prompts = [prompt.strip() for prompt in self.prompts if prompt.strip()]
        self.layers = LoraLayers(self.model.network, max(info.rank) if isinstance(info.rank, tuple) else info.rank)
        load_lora(options.lora, self.layers, "lora")
        self.schedule = NoiseSchedule.from_sigmas(self.model.denoiser.diffusion.sigma / self.model.denoiser.diffusion.alpha)

    def _from_file(self, family: str | None, precision: str) -> Any:
        import diffusers

        from ..training.launch.diffusers_models import DTYPES

        kinds = {"sd15": diffusers.StableDiffusionPipeline, "sdxl": diffusers.StableDiffusionXLPipeline}
        if family not in kinds:
            raise SystemExit(f"The family is one of {', '.join(kinds)}, got {family!r}; name it with --family.")
        config = {"config": str(self.options.config)} if self.options.config else {}
        return kinds[family].from_single_file(str(self.options.checkpoint), torch_dtype=DTYPES[precision], **config)

    @torch.no_grad()
    def generate(self, prompts: list[str], draw: Draw, seed: int) -> np.ndarray:
        denoiser, vae = self.model.denoiser, self.pipeline.vae
        texts = [self.model.kind.prompts(self.pipeline, t, self.device) for t in (prompts, [""] * len(prompts))]
        cfg = torch.full((len(prompts),), 1.0 if draw.lora else self.options.cfg)

        def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            t = torch.full((len(x),), round(self.schedule.timestep(float(sigma[0]))), device=x.device)
            scaled = x / (1 + sigma[0] ** 2).sqrt()
            seen = scaled.to(self.model.network.dtype)
            predicted = denoiser.guided(seen, t, texts[0], {} if draw.lora else texts[1], cfg).float()
            return denoiser.diffusion.pred_x0(scaled, predicted, t)

        sigmas = hyper_sd_sigmas(self.schedule, draw.steps, draw.num_segments, start_timestep=draw.start_timestep)
        side = self.size // self.model.scale_factor
        shape = (len(prompts), self.model.latent_channels, side, side)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        start = (noise * (1 + sigmas[0] ** 2).sqrt()).to(self.device)
        how: dict[str, Any] = {"eta": draw.eta if draw.lora else 0.0, "num_segments": draw.num_segments}
        latents = sample_tcd(model, start, sigmas, {}, disable=True, schedule=self.schedule, **how)
        images = vae.decode(latents / vae.config.scaling_factor + (vae.config.shift_factor or 0)).sample
        small = F.interpolate(images, size=224, mode="bilinear", antialias=True)  # what the features look at
        return small.add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()

    def landmarks(self, features: Callable[[np.ndarray], torch.Tensor], many: torch.Tensor) -> tuple:
        """As DemoModel's, with the reference images for drawings."""
        classes = list(range(len(self.prompts)))
        return many, classes, classes


Model = DemoModel | OwnModel


def paint(model: Model, draw: Draw, seed: int) -> Iterator[np.ndarray]:
    """Yields the images of all prompts, batch by batch. One seed is the same noise for every draw, also while sampling."""
    with model.layers.using(draw.lora):
        if draw.lora:
            model.layers.sets[draw.lora].scale = draw.strength  # its lora_alpha is its rank: at strength 1 the scale is 1
        for number, first in enumerate(range(0, len(model.prompts), model.batch)):
            torch.manual_seed(1000 * seed + number)  # a sampler without a seed of its own asks here
            yield model.generate(model.prompts[first : first + model.batch], draw, 1000 * seed + number)


class Judge:
    """Scores draws against the base's own images in many steps."""

    def __init__(self, model: Model):
        self.model, self.features = model, Features()
        self.features.net.to(memory_format=torch.channels_last)  # half the time on a CPU
        self.many = self._seen(Draw(None, MANY), MANY_SEED)
        self.landmarks, self.classes, self.targets = model.landmarks(self.features, self.many)

    def _seen(self, draw: Draw, seed: int) -> torch.Tensor:
        return torch.cat([self.features(images) for images in paint(self.model, draw, seed)])

    def __call__(self, draw: Draw, seed: int) -> Cell:
        found = self._seen(draw, seed)

        def top1(keep: list[int]) -> float:
            return retrieval_accuracy(found[keep], self.landmarks, [self.targets[i] for i in keep], self.classes)

        scores = {"kid": lambda keep: sweep.paired_kid(found[keep], self.many[keep]), "top1": top1}
        return {name: sweep.replicates(score, len(found)) for name, score in scores.items()}


def measure(
    judge: Callable[[], Callable[[Draw, int], Cell]], draws: list[Draw], seeds: list[int], kept: Path, what: str
) -> Cells:
    """Returns every draw's cell for every seed. What `kept` holds of the same `what` is not drawn again.

    Args:
        judge: makes the judge, which costs time; it is not called when nothing is left to do.
        draws: what is drawn.
        seeds: for each of which everything is drawn.
        kept: the file of finished cells.
        what: the model in words, which tells this run's file from another's.
    """
    record = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {"what": what, "cells": {}}
    if record["what"] != what:
        raise SystemExit(f"{kept} belongs to another run ({record['what']}, now {what}); give another --kept.")
    cells: Cells = record["cells"]
    left = [(draw, seed) for seed in seeds for draw in draws if str(seed) not in cells.get(draw.key, {})]
    score = judge() if left else None
    for number, (draw, seed) in enumerate(left, 1):
        cells.setdefault(draw.key, {})[str(seed)] = cell = score(draw, seed)
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(".part")
        part.write_text(json.dumps(record), encoding="utf-8")
        part.replace(kept)
        said = f"{number} of {len(left)}, seed {seed}, {draw.key}"
        logger.info("%s: kid %.4f, top 1 %.3f", said, cell["kid"][0], cell["top1"][0])
    return {draw.key: {str(seed): cells[draw.key][str(seed)] for seed in seeds} for draw in draws}


def options() -> argparse.Namespace:
    """Reads the command line."""
    parser = command_line(__doc__, out="lora_strength.json")
    add_work_option(parser)
    add_machine_option(parser)
    parser.add_argument("--kept", type=Path, help="finished cells of an interrupted run; default beside --work or --out")
    parser.add_argument("--seeds", type=int, default=3, help="how often everything is drawn; default %(default)s")
    parser.add_argument("--every", type=int, default=10, help="embedded model: every n-th of its 632 concepts")
    parser.add_argument("--steps", type=int, nargs="+", default=list(sweep.STEPS))
    parser.add_argument("--strengths", type=float, nargs="+", default=list(sweep.STRENGTHS))
    parser.add_argument("--starts", type=int, nargs="+", default=list(sweep.STARTS), help="timesteps of a single step")
    parser.add_argument("--only", nargs="+", choices=SWEEPS, help="only these sweeps; default all")
    own = parser.add_argument_group("a model of one's own")
    own.add_argument("--checkpoint", type=Path, help="a .safetensors file or a diffusers folder")
    own.add_argument("--lora", type=Path, help="a LoRA file in kohya's names, such as the released ones")
    own.add_argument("--family", choices=("sd15", "sdxl"), help="default: what the LoRA was made for")
    own.add_argument("--config", type=Path, help="diffusers folder that describes the file; without it diffusers fetches one")
    own.add_argument("--num-segments", type=int, default=1, help="1 for the unified LoRA, n for an n-step LoRA")
    own.add_argument("--cfg", type=float, default=7.5, help="guidance of the 25-step reference")
    own.add_argument("--size", type=int, help="pixels; default 512, SDXL 1024")
    own.add_argument("--prompts", type=Path, help="a text file, one prompt a line; default 32 of the pack's")
    given = parser.parse_args()
    if (given.checkpoint is None) != (given.lora is None):
        parser.error("--checkpoint and --lora belong together.")
    return given


def sweeps_of(given: argparse.Namespace) -> dict[str, sweep.Sweep]:
    """Returns the sweeps that the command line asks for, by name.

    Args:
        given: the command line.
    """
    lora, segments = ("lora", given.num_segments) if given.lora else ("1", 1)
    few = [n for n in given.steps if segments < n <= 4]  # where a high eta may be the better one, as the eta sweep tells
    loras = {"LoRA": lora} if given.lora else {"unified": lora, "one-step file": lora_title(ONE_STEP)}
    sweeps = {
        "strength": sweep.strength_sweep(lora, given.steps, given.strengths, segments),
        "strength_eta_1": sweep.strength_sweep(lora, few, given.strengths, segments, eta=1.0),
        "eta": sweep.eta_sweep(lora, given.steps, sweep.ETAS, segments),
    }
    sweeps |= {"start": sweep.start_sweep(loras, given.starts)} if segments == 1 else {}
    sweeps |= {} if given.lora else {"file": sweep.file_sweep()}
    return {name: rows for name, rows in sweeps.items() if not given.only or name in given.only}


def main() -> None:
    """Reads the command line, draws what is left to draw, and writes JSON and a plot."""
    import diffusers

    given = options()
    start_logging(with_time=True)
    sweeps = sweeps_of(given)
    what = f"the embedded model, every {given.every}th concept"
    if given.lora:
        shown = given.prompts.name if given.prompts else "the pack's prompts"
        what = f"{given.checkpoint.name} with {given.lora.name}, {shown}, reference at CFG {given.cfg:g}"
    kept = given.kept or (given.out.with_suffix(".kept.json") if given.lora else given.work / "lora_strength.kept.json")
    base, seeds = Draw(None, MANY), list(range(given.seeds))

    def judge() -> Judge:
        return Judge(OwnModel(given) if given.lora else DemoModel(given.work, given.every))

    cells = measure(judge, [base, *sweep.draws_of(sweeps)], seeds, kept, what)
    found = sweep.report(sweeps, cells)
    result = {
        "model": what, "seeds": seeds, "groups": sweep.GROUPS, "doubt": sweep.DOUBT, "default_eta": sweep.DEFAULT_ETA,
        "machine": given.machine, **versions(diffusers=diffusers.__version__),
        "base_25_steps": {m: [row[0] for row in sweep.scores_of(base, cells, m)] for m in sweep.METRICS},
        **found,
    }  # fmt: skip
    write_result(result, given.out)
    if "strength" in found:
        sweep.plot(found["strength"], given.out.with_suffix(".png"), f"LoRA strength, {what}, eta {sweep.DEFAULT_ETA:g}")
    for name, rows in found.items():
        table = sweep.strength_table if name.startswith("strength") else sweep.option_table
        logger.info("%s\n%s", name, table(rows))


if __name__ == "__main__":
    main()
