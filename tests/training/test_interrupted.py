"""Runs that are stopped in the middle, and what goes on from there."""

import contextlib
import dataclasses

import pytest
import torch
from hyper_sd.tests.training.fakes import make_denoiser, make_examples
from hyper_sd.tests.training.runs import CONFIG, Interrupted, equal, run, start, weights
from hyper_sd.training.checkpoint import load_checkpoint
from hyper_sd.training.data.examples import LatentExamples
from hyper_sd.training.engine import LocalEngine
from hyper_sd.training.loop import train
from hyper_sd.training.lora_layers import LoraLayers
from hyper_sd.training.run import CHECKPOINT


def test_host_interrupt_in_the_consumer_saves_the_step(tmp_path):
    def node():
        with contextlib.closing(start(folder=tmp_path)[0]) as states:
            for state in states:
                if state.step == 5:
                    raise Interrupted

    with pytest.raises(Interrupted):
        node()
    assert load_checkpoint(tmp_path / CHECKPOINT)[1]["step"] == 5


def test_stop_is_asked_after_every_step_and_saves(tmp_path):
    asked = []
    states, _ = run(folder=tmp_path, stop=lambda: asked.append(1) or len(asked) > 3)
    assert [s.step for s in states] == [1, 2, 3]
    assert load_checkpoint(tmp_path / CHECKPOINT)[1]["step"] == 3


def test_ctrl_c_inside_a_step_saves_the_last_whole_one(tmp_path):
    class Interrupting(LatentExamples):
        def batch(self, numbers, draw):
            if draw == 4 * 3:
                raise KeyboardInterrupt
            return super().batch(numbers, draw)

    plain = make_examples(10, torch.float32)
    examples = Interrupting(plain.latents, plain.conditioning, plain.unconditional)
    with pytest.raises(KeyboardInterrupt):
        run(folder=tmp_path, examples=examples)
    assert load_checkpoint(tmp_path / CHECKPOINT)[1]["step"] == 3
    whole, layers = run()
    second, resumed = run(folder=tmp_path)
    assert [s.losses for s in second] == [s.losses for s in whole[3:]]
    assert equal(weights(resumed), weights(layers))


@pytest.mark.parametrize("where", ["second part of a step", "after the optimizer's step"])
def test_run_goes_on_with_layers_that_an_interrupted_one_left_a_gradient_in(where, tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, accumulation=2, checkpoint_every=1)
    whole = weights(run(config)[1])
    denoiser, examples = make_denoiser(dtype=torch.float32), make_examples(10, torch.float32)
    layers = LoraLayers(denoiser.network, config.rank)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    states = train(config, denoiser, layers, examples, folder=tmp_path)
    next(states)
    with monkeypatch.context() as patch:
        if where == "second part of a step":
            draws = iter([examples.batch, interrupted])
            patch.setattr(LatentExamples, "batch", lambda self, *asked: next(draws)(*asked))
        else:
            patch.setattr(torch.optim.AdamW, "zero_grad", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(states)
    assert layers.sets["student"].flat.grad is not None
    for _ in train(config, denoiser, layers, examples, folder=tmp_path):
        pass
    assert equal(weights(layers), whole)


def test_interrupted_update_leaves_no_copy_of_older_weights(monkeypatch):
    states, layers, _ = start()
    next(states)
    student = layers.sets["student"]
    student.ready(torch.bfloat16, False)

    def update(self, optimizer, max_grad_norm, original=LocalEngine.update):
        original(self, optimizer, max_grad_norm)
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalEngine, "update", update)
    with pytest.raises(KeyboardInterrupt):
        next(states)
    assert torch.equal(student.ready(torch.bfloat16, False)[0].down, student.down[0].bfloat16())


def test_ctrl_c_inside_an_update_keeps_the_older_checkpoint(tmp_path, monkeypatch):
    calls = []

    def update(self, optimizer, max_grad_norm, original=LocalEngine.update):
        stepped = original(self, optimizer, max_grad_norm)
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return stepped

    monkeypatch.setattr(LocalEngine, "update", update)
    with pytest.raises(KeyboardInterrupt):
        run(folder=tmp_path)
    assert load_checkpoint(tmp_path / CHECKPOINT)[1]["step"] == 3
