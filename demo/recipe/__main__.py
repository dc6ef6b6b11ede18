"""Trains the demo model from nothing: `python -m hyper_sd.demo.recipe`. Stops and resumes at any point.

Stages: emoji -> tokenizer -> autoencoder -> latents -> text encoder -> UNet -> demo/model/hyper_sd_demo.safetensors -> its five
Hyper-SD LoRAs -> its ControlNet -> the scorers of its world. With --loras, --one-step, --control or --scorers only that, on the
model that is there.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ...disk import whole_file
from ...models.embedded import CHECKPOINT, CONTROLNET, SCORERS, TOKENIZER
from ...training.launch.embedded_model import load_config
from . import distill, emoji, train_control, train_denoiser, train_scorers, train_text, train_vae
from .export import load_checkpoint, save_checkpoint
from .sample import encode_images
from .scorer_data import load_world
from .tokenizer import load_tokenizer, train_tokenizer

STYLED = 0.3  # share of captions that name the drawing's style; the others leave the choice to the model
Caption = Callable[[int, random.Random], str]


def _cached(path: Path, make) -> np.ndarray:
    if not path.exists():
        array = make()
        with whole_file(path) as partial, partial.open("wb") as file:
            np.save(file, array)
    return np.load(path)


def _images(concepts: list[emoji.Concept]) -> np.ndarray:
    drawings = [concept.svg[vendor] for vendor in (emoji.NOTO, emoji.FLUENT) for concept in concepts]
    return np.stack([emoji.render(svg) for svg in tqdm(drawings, desc="render")])


def _train_autoencoder(images: np.ndarray, checkpoint: Path):
    """Trains stage 1 and returns (autoencoder with unit latents, scaled latents [count, 4, 16, 16])."""
    with tqdm(total=train_vae.STEPS, desc="autoencoder") as bar:
        for step, loss in train_vae.train(images, checkpoint):
            bar.update(step - bar.n)
            bar.set_postfix(loss=f"{loss:.3f}")
    vae = train_vae.load_trained(checkpoint)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    latents = train_vae.normalise_latents(vae, pixels) * vae.config.scaling_factor
    return vae, latents


def _train_text(latents: torch.Tensor, caption: Caption, path: Path) -> dict[str, torch.Tensor]:
    """Trains stage 2 once and returns its weights under the denoiser's names."""
    if not path.exists():
        with tqdm(total=train_text.STEPS, desc="text encoder") as bar:
            for step, loss, right in train_text.train(latents, caption, load_tokenizer(TOKENIZER), path):
                bar.update(step - bar.n)
                bar.set_postfix(loss=f"{loss:.3f}", named=f"{right:.0%}")
    return {f"text.{k}": v for k, v in torch.load(path, weights_only=True).items()}


def _train_phase(phase: train_denoiser.Phase, latents, caption: Caption, start_from: dict, checkpoint: Path) -> dict:
    """Trains a phase of stage 3 and returns its averaged weights."""
    tokenizer = load_tokenizer(TOKENIZER)
    with tqdm(total=phase.steps, desc=checkpoint.stem) as bar:
        for step, loss in train_denoiser.train(phase, latents, caption, tokenizer, start_from, checkpoint):
            bar.update(step - bar.n)
            bar.set_postfix(loss=f"{loss:.3f}")
    return train_denoiser.averaged_weights(checkpoint)


def _captions(concepts: list[emoji.Concept]) -> Caption:
    """Returns the function that draws a caption of drawing i; the drawings are both vendors', in the order of the concepts."""
    aliases, count = emoji.unique_aliases(concepts), len(concepts)
    return lambda index, rng: concepts[index % count].caption(rng, aliases)


def _distill(images: np.ndarray, concepts: list[emoji.Concept], work: Path, one_step: bool) -> None:
    """Trains the Hyper-SD LoRAs of the checkpoint in demo/model, or the one-step LoRA alone."""
    vae, denoiser = load_checkpoint(CHECKPOINT)
    latents = encode_images(vae, images)
    train, steps = distill.distill, distill.TOTAL_STEPS
    if one_step:
        train, steps = distill.distill_one_step, distill.SCORED.total_steps
    with tqdm(total=steps, desc="Hyper-SD LoRAs") as bar:
        for state in train(latents, _captions(concepts), denoiser, work / "distill"):
            bar.update()
            bar.set_postfix(segments=state.stage.num_segments, **{k: f"{v:.3f}" for k, v in state.losses.items()})


def _train_control(images: np.ndarray, concepts: list[emoji.Concept], work: Path) -> None:
    """Trains the ControlNet of the checkpoint in demo/model."""
    vae, denoiser = load_checkpoint(CHECKPOINT)
    latents, lines = encode_images(vae, images), train_control.outlines(images)
    with tqdm(total=train_control.STEPS, desc="ControlNet") as bar:
        for step, loss, model in train_control.train(latents, lines, _captions(concepts), denoiser, work / "control.pt"):
            bar.update(step - bar.n)
            bar.set_postfix(loss=f"{loss:.3f}")
            if step == train_control.STEPS:
                train_control.save_control(model, CONTROLNET)


def _train_scorers(images: np.ndarray, concepts: list[emoji.Concept], work: Path) -> None:
    """Trains the scorers of the embedded model's world."""
    vae, denoiser = load_checkpoint(CHECKPOINT)
    world = load_world(images, concepts, vae, denoiser, encode_images(vae, images), work)
    with tqdm(total=train_scorers.TOTAL_STEPS, desc="scorers") as bar:
        for which, loss in train_scorers.train(world, _captions(concepts), work, SCORERS):
            bar.update()
            bar.set_postfix(which=which, loss=f"{loss:.3f}")


def _train_denoiser(latents: torch.Tensor, concepts: list[emoji.Concept], work: Path) -> Path:
    """Trains stages 2 and 3 on latents of both vendors' drawings, Noto's first; returns the last checkpoint."""
    caption, count = _captions(concepts), len(concepts)

    def caption_of_both(index: int, rng: random.Random) -> str:
        text = caption(index % count, rng)
        style = emoji.STYLES[emoji.NOTO if index < count else emoji.FLUENT]
        return f"{text}, {style}" if rng.random() < STYLED else text

    text = _train_text(latents[count:], caption, work / "text.pt")
    one = _train_phase(train_denoiser.ONE_VENDOR, latents[count:], caption, text, work / "denoiser.pt")
    _train_phase(train_denoiser.BOTH_VENDORS, latents, caption_of_both, one, work / "denoiser_both.pt")
    return work / "denoiser_both.pt"


def main() -> None:
    parser = argparse.ArgumentParser(prog="hyper_sd.demo.recipe", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(".demo/recipe"), help="folder of the data and checkpoints")
    parser.add_argument("--loras", action="store_true", help="only the Hyper-SD LoRAs, on the model that is there")
    parser.add_argument("--one-step", action="store_true", help="only the one-step LoRA, on the unified one that is there")
    parser.add_argument("--control", action="store_true", help="only the ControlNet, on the model that is there")
    parser.add_argument("--scorers", action="store_true", help="only the scorers of pictures, on the model that is there")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; default all")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    random.seed(0)
    modules = emoji.fetch(options.work)
    concepts = emoji.load_concepts(modules)
    if not (TOKENIZER / "vocab.json").exists():  # its ties break differently each time: never retrain it
        train_tokenizer(emoji.corpus(modules), load_config()["text"]["vocab_size"], TOKENIZER)
    captions = [{"label": c.label, "tags": c.tags, "hexcode": c.hexcode} for c in concepts]
    (options.work / "concepts.json").write_text(json.dumps(captions, ensure_ascii=False, indent=1), encoding="utf-8")
    images = _cached(options.work / "images.npy", lambda: _images(concepts))
    everything = not (options.loras or options.one_step or options.control or options.scorers)
    if everything:
        vae, latents = _train_autoencoder(images, options.work / "vae.pt")
        denoiser = train_denoiser.load_trained(_train_denoiser(latents, concepts, options.work))
        save_checkpoint(vae, denoiser, CHECKPOINT)
    if everything or options.loras or options.one_step:
        _distill(images, concepts, options.work, options.one_step)
    if everything or options.control:
        _train_control(images, concepts, options.work)
    if everything or options.scorers:
        _train_scorers(images, concepts, options.work)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Stopped. The same command goes on from the last checkpoint.")
