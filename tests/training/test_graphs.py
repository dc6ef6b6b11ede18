import dataclasses
import logging

import pytest
import torch
from hyper_sd.tests.training.fakes import make_examples
from hyper_sd.tests.training.graph_double import OperatorRecorder
from hyper_sd.tests.training.runs import CONFIG, equal, run, start, weights
from hyper_sd.training.config import Stage
from hyper_sd.training.data.examples import LatentExamples
from hyper_sd.training.engine import LocalEngine
from hyper_sd.training.graphs import MOST, Graphs, make_graphs, mapped, names_of, tensors_of

ONE = Stage(1, 6, 0.5, 0.1, score_weight=0.5, pair_weight=1.0)
WAYS = {
    "distillation": {"stages": (Stage(4, 20),)},
    "with a discriminator and without": {
        "stages": (Stage(8, 4), Stage(2, 4, 1.0, 0.1), Stage(1, 4)), "train_backbone": True,
    },
    "style": {"objective": "finetune", "stages": (Stage(1, 20),)},
    "checkpointing": {"stages": (Stage(4, 6),), "gradient_checkpointing": True},
    "parts": {"stages": (Stage(4, 6),), "accumulation": 2},
    "one step": {"stages": (ONE,), "fake_warmup": 2, "pairs": 8, "pair_steps": 4},
    "bf16": {"stages": (Stage(4, 6),), "precision": "bf16"},
    "fp16": {"stages": (Stage(4, 6),), "precision": "fp16"},
}  # fmt: skip


@pytest.fixture
def recorder(monkeypatch):
    made = OperatorRecorder()
    monkeypatch.setattr("hyper_sd.training.run.make_graphs", lambda config, engine, sets: Graphs(made, sets))
    return made


def kept(layers):
    """The weights of every set, which a later run of the same network cannot change."""
    return {name: value.clone() for name, value in weights(layers).items()}


@pytest.mark.parametrize("way", WAYS)
def test_replayed_steps_give_the_same_numbers_as_plain_ones(way, request):
    config = dataclasses.replace(CONFIG, **WAYS[way])
    plain, layers = run(config)
    expected, recorder = kept(layers), request.getfixturevalue("recorder")
    replayed, layers = run(config)
    assert recorder.replayed >= config.total_steps - 2 * recorder.warmed
    assert recorder.recorded > 0
    for mine, theirs in zip(replayed, plain, strict=True):
        assert mine.losses == pytest.approx(theirs.losses, rel=1e-5, abs=1e-6)
    for name, value in kept(layers).items():
        assert torch.allclose(value, expected[name], atol=1e-6), name


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_resumed_run_is_exact_with_graphs_too(tmp_path, recorder, cut):
    whole, layers = run()
    states, _, _ = start(folder=tmp_path)
    for _ in range(cut):
        next(states)
    states.close()
    second, resumed = run(folder=tmp_path)
    assert [s.losses for s in second] == [s.losses for s in whole[cut:]]
    assert equal(weights(resumed), weights(layers))


def test_each_stage_and_size_of_picture_has_a_recording_of_its_own(recorder):
    class Sizes(LatentExamples):
        """Two buckets: the latents of the second one are half as high."""

        def __init__(self, examples):
            self.inner, self.buckets = examples, [[0, 1, 2, 3], [4, 5, 6, 7]]

        def batch(self, numbers, draw):
            batch = self.inner.batch(numbers, draw)
            return dataclasses.replace(batch, latents=batch.latents[:, :, :2]) if numbers[0] > 3 else batch

    config = dataclasses.replace(CONFIG, stages=(Stage(4, 8), Stage(2, 8)))
    run(config, examples=Sizes(make_examples(8, torch.float32)))
    assert (recorder.warmed, recorder.recorded, recorder.replayed) == (4, 4, 12)


def test_pass_that_cannot_be_recorded_is_said_once_and_the_steps_stay_plain(recorder, caplog):
    config = dataclasses.replace(CONFIG, stages=(Stage(4, 6),))
    expected = kept(run(config)[1])
    states, layers, network = start(config)
    recorder.recorded = recorder.replayed = 0
    network.conv_in.register_forward_hook(lambda module, args, output: output * float(output.sum() * 0 + 1))
    with caplog.at_level(logging.WARNING, "hyper_sd"):
        list(states)
    assert (recorder.recorded, recorder.replayed) == (1, 0)
    (line,) = [r.getMessage() for r in caplog.records if "CUDA graphs" in r.getMessage()]
    assert "off for this run" in line
    assert "not permitted when stream is capturing" in line
    assert all(torch.allclose(v, expected[k], atol=1e-6) for k, v in kept(layers).items())


def test_interrupt_while_recording_leaves_gradients_and_sets_as_they_were(recorder, monkeypatch):
    def interrupted(function):
        function()
        raise KeyboardInterrupt

    monkeypatch.setattr(recorder, "record", interrupted)
    states, layers, _ = start(dataclasses.replace(CONFIG, stages=(Stage(4, 6),)))
    next(states)
    before = kept(layers)
    with pytest.raises(KeyboardInterrupt):
        next(states)
    assert equal(kept(layers), before)
    assert layers.sets["student"].flat.grad is None


class InterruptProcessingException(Exception):
    """A host's own, which its network raises in the middle of a pass."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, InterruptProcessingException])
@pytest.mark.parametrize("moment", ["forward", "backward"])
@pytest.mark.parametrize("breaks", [False, True], ids=["", "and the recording fails to end"])
@pytest.mark.parametrize("way", ["distillation", "parts", "checkpointing"])
def test_run_that_is_interrupted_inside_a_recording_goes_on_to_the_bit(
    tmp_path, recorder, monkeypatch, way, breaks, moment, error
):
    config = dataclasses.replace(CONFIG, **WAYS[way], checkpoint_every=1)
    expected = kept(run(config)[1])
    states, layers, network = start(config, tmp_path)
    recording, inner = [], recorder.record

    def record(function):
        recording.append(True)
        try:
            return inner(function)
        except (KeyboardInterrupt, InterruptProcessingException):
            if breaks:
                raise RuntimeError("capture_end: the capture was invalidated") from None
            raise
        finally:
            recording.clear()

    def interrupt(*_):
        raise error

    def hook(module, args, output):
        if not recording or not output.requires_grad:
            return
        if moment == "forward":
            interrupt()
        output.register_hook(interrupt)

    monkeypatch.setattr(recorder, "record", record)
    handle = network.mid_block.register_forward_hook(hook)
    with pytest.raises(error):
        list(states)
    handle.remove()
    assert layers.sets["student"].flat.grad is None or way == "parts"
    monkeypatch.setattr(recorder, "record", inner)
    assert equal(kept(run(config, tmp_path)[1]), expected)


def a_sum(recorder):
    """Returns (graphs, a weight, a pass that multiplies it with x and adds up)."""
    weight = torch.nn.Parameter(torch.ones(2))

    def function(inputs):
        loss = (weight * inputs["x"]).sum()
        loss.backward()
        return {"loss": loss.detach()}

    return Graphs(recorder, list), weight, function


def test_more_kinds_than_are_kept_and_texts_of_several_lengths_take_plain_steps_and_say_so(recorder, caplog):
    caplog.set_level(logging.INFO, "hyper_sd")
    graphs, weight, function = a_sum(recorder)
    for kind in range(MOST + 2):
        for _ in range(2):
            graphs.losses((kind,), function, {"x": torch.ones(2)}, [weight])
    assert recorder.recorded == MOST
    several = {"x": torch.ones(2), "batch": [{"tokens": torch.tensor([3, 4])}]}
    for _ in range(3):
        assert graphs.losses((0,), function, several, [weight])["loss"] == 2
    assert recorder.recorded == MOST
    first, second = (record.getMessage() for record in caplog.records)  # each is said once
    assert f"more than {MOST}" in first
    assert "texts of several lengths" in second


def test_gradients_of_plain_and_replayed_passes_add_up(recorder):
    graphs, weight, function = a_sum(recorder)
    for number in range(1, 5):  # warmed, recorded and replayed, then replayed twice
        graphs.losses((), function, {"x": torch.full((2,), float(number))}, [weight])
        assert torch.equal(weight.grad, torch.full((2,), number * (number + 1) / 2))
    function({"x": torch.ones(2)})
    graphs.losses((), function, {"x": torch.ones(2)}, [weight])
    assert torch.equal(weight.grad, torch.full((2,), 12.0))
    weight.grad = None
    graphs.losses((), function, {"x": torch.ones(2)}, [weight])
    assert torch.equal(weight.grad, torch.ones(2))


def test_graphs_are_for_one_process_on_a_card_with_cuda(caplog, monkeypatch):
    engine = LocalEngine()
    assert make_graphs(CONFIG, engine, list) is None
    engine.device = torch.device("cuda")
    assert make_graphs(dataclasses.replace(CONFIG, cuda_graphs="off"), engine, list) is None
    engine.records = False
    with caplog.at_level(logging.INFO, "hyper_sd"):
        assert make_graphs(CONFIG, engine, list) is None
        engine.records = True
        monkeypatch.setattr(torch.version, "hip", "6.0")
        assert make_graphs(CONFIG, engine, list) is None
    first, second = (record.getMessage() for record in caplog.records)
    assert "accelerate runs the steps" in first
    assert "ROCm" in second


def test_inputs_are_walked_in_one_order():
    batch = make_examples(4, torch.float32).batch([0, 1], 0)
    value = {"batch": batch, "more": (torch.ones(1), "text", None)}
    assert len(tensors_of(value)) == 2 + len(batch.conditioning) + len(batch.unconditional)
    doubled = mapped(lambda tensor: tensor * 2, value)
    assert torch.equal(doubled["batch"].latents, batch.latents * 2)
    assert doubled["more"][1:] == ("text", None)
    assert {"batch", "more", "context"} <= names_of(value)
