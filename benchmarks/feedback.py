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
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from ..evaluation.contact_sheet import contact_sheet
from ..evaluation.metrics import diversity
from ..models.embedded import SCORERS, lora_file
from ..rewards.instances import load_instances
from ..rewards.table import load
from ..samplers.timesteps import LAST_TIMESTEP, ONE_STEP_START
from ..training.config import Stage, TrainingConfig
from ..training.data.examples import LatentExamples
from ..training.feedback.judge import Judge
from ..training.feedback.settings import FeedbackSettings
from ..training.launch.diffusers_models import encode_images
from ..training.launch.embedded_model import load_embedded_model
from ..training.loop import train
from ..training.lora_layers import DISTILLED, STUDENT, LoraLayers
from ..training.lora_tensors import DOWN, set_from_tensors
from ..training.sampling import sample_latents
from .embedded import ETA, Drawings
from .measure import Features, add_work_option, command_line, logger, processor, start_logging, write_result

MATCH, QUALITY = "embedded_match", "embedded_quality"
STEPS, SEEDS, EVERY, BATCH = (1, 2, 4), (0, 1, 2), 8, 32
STRENGTHS = (0.5, 1.0, 1.5)  # all but 1 for the first seed of training and of noise alone
SHOWN = 6  # prompts on the sheet
SETTINGS = {"steps": STEPS, "start_timestep": ONE_STEP_START, "eta": ETA}
ARMS = {
    "one reward": FeedbackSettings((MATCH,), **SETTINGS),
    "two rewards": FeedbackSettings((MATCH, QUALITY), **SETTINGS),
    "two rewards, perceptual": FeedbackSettings((MATCH, QUALITY), instance_weight=5.0, **SETTINGS),
}
COMMON = {"objective": "feedback", "batch_size": 4, "rank": 8, "learning_rate": 5e-4, "warmup_steps": 10, "final_rate": 0.1}


class World:
    """The demo model with its unified LoRA, the drawings, and who judges.

    Args:
        work: the recipe's folder.
    """

    def __init__(self, work: Path):
        self.model, self.drawings, self.features = load_embedded_model("fp32"), Drawings(work), Features()
        pictures, self.classes = self.drawings.trained_on()
        labels = self.drawings.labels
        self.unseen = list(range(len(labels)))[::EVERY]
        seen = [row for row, thing in enumerate(self.classes) if thing % EVERY]
        vae = self.model.pipeline.vae
        with torch.no_grad():
            pixels = torch.from_numpy(pictures[seen]).permute(0, 3, 1, 2).float().div(127.5).sub(1)
            latents = torch.cat([encode_images(vae, part) for part in pixels.split(BATCH)])
            prompts = [labels[self.classes[row]] for row in seen]
            self.examples = LatentExamples(latents, {"context": self.encoded(prompts)}, prompts=prompts)
        self.scorers = {name: load(name, []) for name in (MATCH, QUALITY)}
        self.judge = Judge(self.decode, self.scorers, load_instances(SCORERS))
        self.known = torch.nn.functional.normalize(self.features(pictures), dim=1)
        self.distilled = load_file(lora_file("unified", 1))

    @torch.no_grad()
    def encoded(self, prompts: list[str]) -> torch.Tensor:
        """Returns the states of prompts, [count, 77, width]."""
        parts = [prompts[i : i + BATCH] for i in range(0, len(prompts), BATCH)]
        prompt = self.model.kind.prompts
        return torch.cat([prompt(self.model.pipeline, part, torch.device("cpu"))["context"] for part in parts])

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Returns pictures [batch, 3, 128, 128] of about 0 to 1."""
        vae = self.model.pipeline.vae
        return vae.decode(latents / vae.config.scaling_factor).sample.add(1).div(2)

    def layers(self, rank: int) -> LoraLayers:
        """Returns layers with the unified LoRA as the set "distilled"."""
        layers = LoraLayers(self.model.network, rank)
        own = max(len(tensor) for name, tensor in self.distilled.items() if name.endswith(DOWN))
        set_from_tensors(self.distilled, layers, DISTILLED, rank=own, partial=True)
        return layers

    @torch.no_grad()
    def paint(self, layers: LoraLayers, sets: tuple[str, ...], steps: int, seed: int, prompts: list[str]) -> torch.Tensor:
        """Returns pictures [count, 3, 128, 128] from 0 to 1, in 256 levels, of each prompt."""
        painted = []
        for first in range(0, len(prompts), BATCH):
            context = self.encoded(prompts[first : first + BATCH])
            with layers.using(*sets):
                latents = sample_latents(
                    self.model.denoiser, {"context": context}, {}, (len(context), 4, 16, 16), steps=steps, eta=ETA,
                    seed=1000 * seed + first, start_timestep=ONE_STEP_START if steps == 1 else LAST_TIMESTEP,
                )  # fmt: skip
            painted += [self.decode(part).clamp(0, 1).mul(255).round().div(255) for part in latents.split(8)]
        return torch.cat(painted)

    def verdicts(self, pictures: torch.Tensor, prompts: list[str], things: list[int]) -> dict[str, list[float]]:
        """Returns what each judge says of each picture, and the features of all."""
        found = torch.nn.functional.normalize(self.features(as_bytes(pictures)), dim=1)
        alike = found @ self.known.T
        own = torch.tensor(self.classes)[None] == torch.tensor(things)[:, None]
        said = {name: scorer.score(pictures, prompts).tolist() for name, scorer in self.scorers.items()}
        said["retrieval"] = own.gather(1, alike.argmax(1, keepdim=True))[:, 0].float().tolist()
        said["likeness"] = alike.masked_fill(~own, -1).amax(1).tolist()
        return said | {"features": found.tolist()}


def as_bytes(pictures: torch.Tensor) -> np.ndarray:
    """Returns pictures [count, 3, height, width] from 0 to 1 as uint8 [count, height, width, 3]."""
    return pictures.mul(255).round().byte().permute(0, 2, 3, 1).numpy()


def judged(world: World, layers: LoraLayers, sets: tuple[str, ...], seeds: tuple[int, ...]) -> dict[str, Any]:
    """Returns the verdicts on the unseen labels by the number of steps, the pictures of all seeds one after another."""
    prompts, result = [world.drawings.labels[i] for i in world.unseen], {}
    for steps in STEPS:
        parts = [world.verdicts(world.paint(layers, sets, steps, s, prompts), prompts, world.unseen) for s in seeds]
        result[str(steps)] = {name: [value for part in parts for value in part[name]] for name in parts[0]}
    return result


def spread_out(verdicts: dict[str, list], count: int) -> float:
    """Returns the diversity of pictures of several seeds, `count` of each."""
    features = torch.tensor(verdicts["features"])
    return diversity(features, list(range(count)) * (len(features) // count))


def train_arm(world: World, arm: str, seed: int, steps: int, folder: Path) -> LoraLayers:
    """Trains an arm in its folder, or takes what is there, and returns the layers with the sets."""
    config = TrainingConfig((Stage(1, steps),), feedback=ARMS[arm], seed=seed, checkpoint_every=25, **COMMON)
    layers = world.layers(config.rank)
    for state in train(config, world.model.denoiser, layers, world.examples, folder=folder, judge=world.judge):
        if state.step % 10 == 0 or state.is_last:
            said = ", ".join(f"{name} {value:.3f}" for name, value in state.losses.items())
            logger.info("%s, seed %d, step %d: %s; %.0f s left", arm, seed, state.step, said, state.eta_seconds)
    return layers


def folder_of(arm: str, seed: int, options: argparse.Namespace) -> Path:
    """Returns where an arm and seed is kept."""
    return options.work / "feedback" / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"


def kept(path: Path, make) -> Any:
    """Returns a JSON file's content, which is made where the file is not there."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(make()), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


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


def compared(arm: list[dict], before: dict, count: int) -> dict[str, dict]:
    """Returns, by the number of steps and the judge, means before and after, and the paired difference with its error.

    Args:
        arm: verdicts, one for each seed of training.
        before: verdicts on the same prompts and noise without feedback.
        count: of the prompts.
    """
    result: dict[str, dict] = {}
    for steps, own in before.items():
        rows = result.setdefault(steps, {})
        for judge in (MATCH, QUALITY, "retrieval", "likeness"):
            found = np.array([one[steps][judge] for one in arm])
            first = np.array(own[judge][: found.shape[1]])
            changes = found - first
            by_prompt = changes.reshape(len(arm), -1, count).mean((0, 1))  # pictures of one prompt are not independent
            error = float(by_prompt.std(ddof=1) / count**0.5)
            seeds = changes.mean(1)
            rows[judge] = {
                "before": float(first.mean()), "after": float(first.mean() + changes.mean()), "change": float(changes.mean()),
                "error": error, "by_seed": seeds.tolist(),
            }  # fmt: skip
        if len(arm[0][steps][MATCH]) == count:  # one picture of each prompt tells nothing of diversity
            continue
        apart = spread_out(own, count)
        rows["diversity"] = {"before": apart, "ratios": [spread_out(one[steps], count) / apart for one in arm]}
    return result


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
