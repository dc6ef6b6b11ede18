"""Runs of the tiny network of a few steps: how they are started, stopped and compared."""

import torch
from hyper_sd.tests.training.fakes import make_denoiser, make_examples
from hyper_sd.training.config import Stage, TrainingConfig
from hyper_sd.training.loop import train
from hyper_sd.training.lora_layers import LoraLayers

STAGES = (Stage(8, 3), Stage(2, 3, 1.0, 0.1), Stage(1, 2, 0.5, 0.2))
CONFIG = TrainingConfig(stages=STAGES, batch_size=4, learning_rate=1e-2, warmup_steps=2, rank=2, seed=3, checkpoint_every=2)


class Interrupted(Exception):
    """What a test raises in the middle of a run."""


def start(config=CONFIG, folder=None, stop=lambda: False, examples=None):
    """Returns (the generator of a run, its adapter layers, the network)."""
    denoiser = make_denoiser(dtype=torch.float32)
    layers = LoraLayers(denoiser.network, config.rank)
    examples = examples or make_examples(10, torch.float32)
    return train(config, denoiser, layers, examples, folder=folder, stop=stop), layers, denoiser.network


def run(config=CONFIG, folder=None, **options):
    """Runs to the end, and returns (the states of all steps, the adapter layers)."""
    states, layers, _ = start(config, folder, **options)
    return list(states), layers


def weights(layers):
    """Returns the tensors of every adapter set by name."""
    return {f"{name}.{key}": v for name, made in layers.sets.items() for key, v in made.state_dict().items()}


def equal(a, b):
    """Whether two dicts have the same names and, to the bit, the same tensors."""
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def with_kept_bytes(call):
    """Returns (what a call returns, the bytes of all that was kept during it for a backward pass)."""
    sizes = []

    def keep(tensor):
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        return call(), sum(sizes)
