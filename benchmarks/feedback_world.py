"""The world in which human feedback is measured: the demo model with its unified LoRA, the drawings, and who judges."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

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
from ..training.lora_layers import DISTILLED, LoraLayers
from ..training.lora_tensors import DOWN, set_from_tensors
from ..training.sampling import sample_latents
from .embedded import ETA, Drawings
from .measure import Features, logger

MATCH, QUALITY = "embedded_match", "embedded_quality"
STEPS, SEEDS, EVERY, BATCH = (1, 2, 4), (0, 1, 2), 8, 32
SETTINGS = {"steps": STEPS, "start_timestep": ONE_STEP_START, "eta": ETA}
COMMON = {"objective": "feedback", "batch_size": 4, "rank": 8, "learning_rate": 5e-4, "warmup_steps": 10, "final_rate": 0.1}


class World:
    """The demo model with its unified LoRA, the drawings, and who judges.

    Args:
        work: the recipe's folder.
        further: more judges by name, pictures [count, 3, 128, 128] -> numbers [count].
    """

    def __init__(self, work: Path, further: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] | None = None):
        self.further = dict(further or {})
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
        said |= {name: look(pictures).tolist() for name, look in self.further.items()}
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


def train_feedback(
    world: World, title: str, settings: FeedbackSettings, judge: Judge, *, seed: int, steps: int, folder: Path, **more: Any
) -> LoraLayers:
    """Trains a feedback LoRA in its folder, or takes what is there, and returns the layers with the sets.

    Args:
        world: what is trained in.
        title: what the log calls it.
        settings: of the feedback.
        judge: who looks at the pictures.
        seed: of the run.
        steps: of the optimizer.
        folder: where it is kept.
        more: other settings of the training than COMMON has.
    """
    config = TrainingConfig((Stage(1, steps),), feedback=settings, seed=seed, checkpoint_every=25, **{**COMMON, **more})
    layers = world.layers(config.rank)
    for state in train(config, world.model.denoiser, layers, world.examples, folder=folder, judge=judge):
        if state.step % 10 == 0 or state.is_last:
            said = ", ".join(f"{name} {value:.3f}" for name, value in state.losses.items())
            logger.info("%s, seed %d, step %d: %s; %.0f s left", title, seed, state.step, said, state.eta_seconds)
    return layers


def kept(path: Path, make) -> Any:
    """Returns a JSON file's content, which is made where the file is not there."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(make()), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


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
        for judge in (name for name in own if name != "features"):
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
