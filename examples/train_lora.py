"""A first look at training in Python: the small model that ships with the pack learns from 20 drawings to need fewer steps.

    pip install -e .[train]
    python examples/train_lora.py

It takes half a minute on two processor cores that do nothing else, and writes two LoRA files and a picture of what changed.
That is enough to see the direction, not to be done. Started again with the same settings, it goes on where it was.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from hyper_sd.evaluation.contact_sheet import contact_sheet
from hyper_sd.samplers.schedule import NoiseSchedule
from hyper_sd.training.config import Stage, TrainingConfig
from hyper_sd.training.data.examples import LatentExamples
from hyper_sd.training.denoiser import Denoiser
from hyper_sd.training.diffusion import Diffusion
from hyper_sd.training.export import save_lora
from hyper_sd.training.launch.diffusers_models import DiffusersModel
from hyper_sd.training.launch.embedded_model import load_embedded_model
from hyper_sd.training.loop import train
from hyper_sd.training.lora_layers import STUDENT, LoraLayers
from hyper_sd.training.sampling import sample_latents
from PIL import Image

DRAWINGS = Path(__file__).resolve().parents[1] / "demo" / "style"
PROMPTS = ["red apple", "fish", "sailboat", "penguin", "pizza"]


def read_examples(folder: Path, model: DiffusersModel) -> LatentExamples:
    """Returns the folder's PNG files and their captions as the network sees them."""
    encoders, files = model.encoders_on(torch.device("cpu")), sorted(folder.glob("*.png"))
    images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    captions = [file.with_suffix(".txt").read_text(encoding="utf-8").strip() for file in files]
    with torch.no_grad():
        return LatentExamples(encoders.images(pixels), encoders.prompts(captions), encoders.prompts([""]))


def distil(denoiser: Denoiser, layers: LoraLayers, examples: LatentExamples, steps: int, folder: Path) -> None:
    """Trains on 4 segments, then on 1, and writes a LoRA file at the end of each stage."""
    config = TrainingConfig(
        stages=(Stage(num_segments=4, steps=steps), Stage(num_segments=1, steps=steps)),
        batch_size=8,
        learning_rate=1.5e-3,
        warmup_steps=5,
        guidance_scale=(3.0, 5.0),
        rank=layers.rank,
    )
    for state in train(config, denoiser, layers, examples, folder=folder):
        print(f"step {state.step} of {state.total_steps}, loss {state.losses['loss']:.4f}, {state.eta_seconds:.0f} s left")
        if state.stage_finished:
            segments = state.stage.num_segments
            save_lora(folder / f"segments-{segments}.safetensors", layers, metadata={"num_segments": str(segments)})


@torch.no_grad()
def pictures(denoiser: Denoiser, model: DiffusersModel) -> list[Image.Image]:
    """Returns one picture for each of PROMPTS in 2 steps, drawn with the adapters that are active."""
    texts = model.encoders_on(torch.device("cpu")).prompts(PROMPTS)
    return model.decode(sample_latents(denoiser, texts, {}, (len(PROMPTS), 4, 16, 16), steps=2, seed=3))


def main() -> None:
    """Reads the command line, trains, and shows what changed."""
    parser = argparse.ArgumentParser(description="Distils the demo model on 20 drawings.")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of each of the two stages; default %(default)s")
    parser.add_argument("--out", type=Path, default=Path("trained-example"), help="folder of the results; default %(default)s")
    options = parser.parse_args()

    model = load_embedded_model("fp32")
    denoiser = Denoiser(model.network, Diffusion.from_schedule(NoiseSchedule.from_betas()))
    layers = LoraLayers(model.network, rank=8)
    before = pictures(denoiser, model)
    distil(denoiser, layers, read_examples(DRAWINGS, model), options.steps, options.out)
    with layers.using(STUDENT):
        after = pictures(denoiser, model)
    labels = [f"{prompt}, {what}" for what in ("as it was", "with the LoRA") for prompt in PROMPTS]
    contact_sheet(before + after, labels, columns=len(PROMPTS)).save(options.out / "before-and-after.png")
    print(f"Two LoRA files and before-and-after.png, drawn in 2 steps each, are in {options.out}")


if __name__ == "__main__":
    main()
