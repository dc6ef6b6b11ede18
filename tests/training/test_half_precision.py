import dataclasses

import pytest
import torch
from hyper_sd.tests.training.fakes import make_denoiser, make_examples
from hyper_sd.tests.training.runs import CONFIG
from hyper_sd.training.config import Stage
from hyper_sd.training.denoiser import half_dtype
from hyper_sd.training.engine import LocalEngine
from hyper_sd.training.loop import train
from hyper_sd.training.lora_layers import LoraLayers
from torch import nn

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
STAGES = (Stage(4, 3), Stage(1, 3, 1.0, 0.1))


def trained(denoiser, precision):
    """Returns the losses of a run, and what its layers saw: (whether autocast was on, the dtype of their input)."""
    seen, layers = set(), LoraLayers(denoiser.network, 2)

    def look(module, args):
        seen.add((torch.is_autocast_enabled("cpu"), args[0].dtype))

    for module in denoiser.network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_pre_hook(look)
    config = dataclasses.replace(CONFIG, stages=STAGES, precision=precision)
    states = train(config, denoiser, layers, make_examples(10, torch.float32), engine=LocalEngine("cpu", precision))
    return [state.losses for state in states], seen


@pytest.mark.parametrize("precision", HALVES)
def test_network_in_half_precision_runs_in_it_without_autocast(precision):
    dtype = HALVES[precision]
    denoiser = make_denoiser(dtype=dtype)
    assert half_dtype(denoiser.network) == dtype
    losses, seen = trained(dataclasses.replace(denoiser, half_dtype=dtype), precision)
    assert seen == {(False, dtype)}
    exact, _ = trained(make_denoiser(dtype=torch.float32), "fp32")
    for rough, fine in zip(losses, exact, strict=True):
        assert rough == pytest.approx(fine, rel=0.1, abs=0.02)


def test_network_in_float32_is_cast_by_autocast():
    denoiser = make_denoiser(dtype=torch.float32)
    assert half_dtype(denoiser.network) is None
    _, seen = trained(denoiser, "bf16")
    assert {autocast for autocast, _ in seen} == {True}


def test_matrices_of_several_dtypes_are_no_half_precision():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).half())
    assert half_dtype(network) is None
    assert half_dtype(network[1]) == torch.float16
