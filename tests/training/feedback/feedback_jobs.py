"""Jobs of human feedback on the tiny network, and scorers that can be followed with the eye."""

import dataclasses

import torch
from hyper_sd.rewards.scorer import Scorer
from hyper_sd.tests.training.fakes import make_examples
from hyper_sd.tests.training.jobs import make_job
from hyper_sd.training.feedback.judge import Judge
from hyper_sd.training.lora_layers import STUDENT, LoraLayers
from hyper_sd.training.lora_tensors import lora_state_dict
from hyper_sd.training.request import StartingLora
from torch import nn

BRIGHT, DARK = "clip", "aesthetic"  # ids that a request may name
SETTINGS = {
    "objective": "human feedback", "reward": BRIGHT, "second_reward": "none", "held_out_reward": "none", "batch_size": 2,
    "learning_rate": 3e-2,
}  # fmt: skip


class Bright(Scorer):
    """How bright a picture is, or how dark, with a negative factor."""

    def __init__(self, factor: float = 1.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.prompts: list[str] = []

    def rate(self, images, prompts):
        self.prompts += prompts
        return self.factor * images.mean((1, 2, 3))


class Decoder(nn.Module):
    """Latents [batch, 2, h, w] -> pictures [batch, 3, 4h, 4w] inside 0 to 1."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(8)
        self.up = nn.ConvTranspose2d(2, 3, 4, stride=4).requires_grad_(False)
        self.up.weight.mul_(10)  # so that a picture follows its latents

    def forward(self, latents):
        return torch.sigmoid(self.up(latents))


def make_judge(**scorers) -> Judge:
    """Returns who looks, by default the one who likes it bright."""
    decoder = Decoder()
    return Judge(decoder, scorers or {BRIGHT: Bright().freeze(), DARK: Bright(-1.0).freeze()}, decoder=decoder)


def distilled_lora(trainee, rank: int = 3) -> StartingLora:
    """Returns a LoRA of random weights for every layer of the network."""
    layers = trainee.layers(rank, None, ())
    torch.manual_seed(5)
    for parameter in layers.add(STUDENT).parameters():
        nn.init.normal_(parameter, std=0.1)
    tensors = lora_state_dict(layers, STUDENT, torch.float32, trainee.lora_name)
    layers.detach()
    return StartingLora(tensors, is_distilled=True, changed=frozenset(layers.layers))


def feedback_job(root, *, judge=None, start=None, brake_weight=1.0, **settings):
    """Returns the job of a request for human feedback that looks often, and at few steps."""
    given = {**SETTINGS, **settings}
    job = make_job(root, start=start, judge=judge or make_judge(), examples=make_examples(6, torch.float32), **given)
    (phase,) = job.phases
    quick = {"steps": (1, 2), "check_every": 2, "check_prompts": 4, "patience": 2, "brake_weight": brake_weight}
    feedback = dataclasses.replace(phase.config.feedback, **quick)
    return dataclasses.replace(job, phases=(phase.changed(feedback=feedback),))


def drawn(job, sets: dict[str, dict[str, torch.Tensor]], x: torch.Tensor) -> torch.Tensor:
    """Returns what the network predicts with LoRAs by name, all at strength 1."""
    from hyper_sd.training.lora_tensors import rank_of, set_from_tensors

    rank = max(map(rank_of, sets.values()))
    layers = LoraLayers(job.trainee.denoiser.network, rank, None, job.excluded)
    try:
        for name, tensors in sets.items():
            set_from_tensors(tensors, layers, name, rename=job.trainee.lora_name)
        batch = job.examples.batch(range(len(x)), 0)
        with torch.no_grad(), layers.using(*sets):
            return job.trainee.denoiser.predict(x, torch.full((len(x),), 600), batch.conditioning)
    finally:
        layers.detach()
