import contextlib
import dataclasses
import math

import pytest
import torch
from hyper_sd.errors import TrainingError
from hyper_sd.tests.training.fakes import make_denoiser, make_examples
from hyper_sd.tests.training.runs import CONFIG, STAGES, equal, run, start, weights, with_kept_bytes
from hyper_sd.training.checkpoint import load_checkpoint, save_checkpoint
from hyper_sd.training.config import Stage
from hyper_sd.training.data.examples import Batch, LatentExamples
from hyper_sd.training.engine import LocalEngine
from hyper_sd.training.loop import train
from hyper_sd.training.lora_layers import LoraLayers
from hyper_sd.training.run import CHECKPOINT, Run


def test_states_tell_step_stage_losses_rate_and_eta():
    states, _ = run()
    assert [s.step for s in states] == [*range(1, 9)]
    assert [s.stage.num_segments for s in states] == [8, 8, 8, 2, 2, 2, 1, 1]
    assert [s.step for s in states if s.stage_finished] == [3, 6, 8]
    assert set(states[0].losses) == {"loss", "distance"}
    assert set(states[-1].losses) == {"loss", "distance", "adversarial", "discriminator"}
    assert all(s.rate > 0 and s.total_steps == 8 for s in states)
    assert states[-1].eta_seconds == 0 < states[0].eta_seconds
    assert states[0].learning_rate == pytest.approx(5e-3)
    assert states[1].learning_rate == pytest.approx(1e-2)


def test_training_changes_student_and_target_and_nothing_of_the_network():
    states, layers, network = start()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network.mid_block.requires_grad_(False)
    flags = [p.requires_grad for p in network.parameters()]
    list(states)
    assert equal(before, network.state_dict())
    assert [p.requires_grad for p in network.parameters()] == flags
    student, target = layers.sets["student"], layers.sets["target"]
    assert all(p.abs().sum() > 0 for p in student.up)
    assert not equal(student.state_dict(), target.state_dict())


def test_student_that_was_put_off_course_returns_to_the_teacher():
    # With as many segments as solver steps the goal is the teacher's own step, whatever the target has learnt.
    config = dataclasses.replace(CONFIG, stages=(Stage(50, 80),), guidance_scale=(1.0, 1.0), final_rate=0.1, distance="mse")
    denoiser, g = make_denoiser(dtype=torch.float32), torch.Generator().manual_seed(0)
    layers = LoraLayers(denoiser.network, config.rank)
    for parameter in layers.add("student").parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=g)
    losses = [s.losses["distance"] for s in train(config, denoiser, layers, make_examples(10, torch.float32))]
    assert sum(losses[-10:]) < 0.2 * sum(losses[:10])


@pytest.mark.parametrize("cut", [1, 3, 4, 7])
@pytest.mark.parametrize("backbone", [False, True])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, cut, backbone):
    config = dataclasses.replace(CONFIG, train_backbone=backbone)
    whole, layers = run(config)
    states, _, _ = start(config, tmp_path)
    first = [next(states) for _ in range(cut)]
    states.close()
    second, resumed = run(config, tmp_path)
    assert [s.losses for s in first + second] == [s.losses for s in whole]
    assert equal(weights(resumed), weights(layers))


def test_run_killed_between_checkpoints_repeats_the_lost_steps_exactly(tmp_path):
    whole, layers = run()
    states, _, _ = start(folder=tmp_path)
    for _ in range(5):
        next(states)
    saved = (tmp_path / CHECKPOINT).read_bytes()  # as if the process died here: the last checkpoint is step 4
    states.close()
    (tmp_path / CHECKPOINT).write_bytes(saved)
    second, resumed = run(folder=tmp_path)
    assert [s.step for s in second] == [5, 6, 7, 8]
    assert [s.losses for s in second] == [s.losses for s in whole[4:]]
    assert equal(weights(resumed), weights(layers))


def test_loss_that_is_not_finite_stops_with_the_step_and_keeps_the_checkpoint(tmp_path):
    class Broken(LatentExamples):
        def batch(self, numbers, draw):
            made = super().batch(numbers, draw)
            return Batch(made.latents * math.nan, made.conditioning, made.unconditional) if draw == 4 * 4 else made

    plain = make_examples(10, torch.float32)
    with pytest.raises(TrainingError, match=r"not a number any more at step 5 .*checkpoint, step 4, is kept.*learning rate"):
        run(folder=tmp_path, examples=Broken(plain.latents, plain.conditioning, plain.unconditional))
    parts, values = load_checkpoint(tmp_path / CHECKPOINT)
    assert values["step"] == 4
    assert all(t.isfinite().all() for group in parts.values() for t in group.values())


def test_gradient_that_is_not_finite_stops_before_any_weight_changes(tmp_path, monkeypatch):
    states, layers, _ = start(folder=tmp_path)
    for _ in range(3):
        next(states)
    before = {k: v.clone() for k, v in weights(layers).items()}
    original = LocalEngine.backward

    def backward(self, loss):
        original(self, loss)
        layers.sets["student"].flat.grad[0] = math.inf

    monkeypatch.setattr(LocalEngine, "backward", backward)
    with pytest.raises(TrainingError, match=r"gradient is not a number any more at step 4 .*checkpoint, step 3, is kept"):
        next(states)
    assert equal(weights(layers), before)
    assert load_checkpoint(tmp_path / CHECKPOINT)[1]["step"] == 3


@pytest.mark.parametrize("message", ["[enforce fail] DefaultCPUAllocator: can't allocate memory: wanted 4 GB", ""])
def test_running_out_of_memory_says_what_to_lower(message):
    class Greedy(LatentExamples):
        def batch(self, numbers, draw):
            raise RuntimeError(message) if message else MemoryError

    plain = make_examples(10, torch.float32)
    config = dataclasses.replace(CONFIG, stages=STAGES[:1])
    with pytest.raises(TrainingError, match=r"gradient_checkpointing; raise accumulation \(now 1, 4 .*lower rank \(now 2\)"):
        run(config, examples=Greedy(plain.latents, plain.conditioning))


@pytest.mark.parametrize("graphs", ["auto", "off"])
def test_card_out_of_memory_is_told_that_graphs_take_some_too(graphs):
    class Greedy(LatentExamples):
        def batch(self, numbers, draw):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    plain = make_examples(10, torch.float32)
    for stages in (STAGES, STAGES[:1]):  # with a discriminator, whose making needs examples before the first step, and without
        config = dataclasses.replace(CONFIG, stages=stages, cuda_graphs=graphs)
        with pytest.raises(TrainingError, match=r"or lower batch_size; .*lower rank") as caught:
            run(config, examples=Greedy(plain.latents, plain.conditioning))
        assert ('set cuda_graphs to "off"' in str(caught.value)) == (graphs == "auto")


def test_other_errors_pass_through():
    class Bad(LatentExamples):
        def batch(self, numbers, draw):
            raise RuntimeError("something else")

    plain = make_examples(10, torch.float32)
    with pytest.raises(RuntimeError, match="something else"):
        run(dataclasses.replace(CONFIG, stages=STAGES[:1]), examples=Bad(plain.latents, plain.conditioning))


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulated_parts_equal_the_whole_batch(accumulation):
    _, whole = run()
    states, parts = run(dataclasses.replace(CONFIG, accumulation=accumulation))
    assert len(states) == 8
    for key, value in weights(whole).items():
        assert torch.allclose(weights(parts)[key], value, atol=2e-5), key


def test_gradient_checkpointing_changes_nothing_but_memory():
    (_, plain), whole = with_kept_bytes(run)
    (_, recomputed), less = with_kept_bytes(lambda: run(dataclasses.replace(CONFIG, gradient_checkpointing=True)))
    assert all(torch.allclose(v, weights(recomputed)[k], atol=1e-6) for k, v in weights(plain).items())
    assert less < 0.8 * whole


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains_and_resumes_bit_for_bit(tmp_path, precision):
    config = dataclasses.replace(CONFIG, precision=precision)
    whole, layers = run(config)
    states, _, _ = start(config, tmp_path)
    for _ in range(3):
        next(states)
    states.close()
    second, resumed = run(config, tmp_path)
    assert [s.losses for s in second] == [s.losses for s in whole[3:]]
    assert equal(weights(resumed), weights(layers))
    assert all(p.dtype == torch.float32 for p in layers.sets["student"].parameters())


def test_fp16_scaler_is_part_of_the_checkpoint(tmp_path):
    run(dataclasses.replace(CONFIG, precision="fp16"), tmp_path)
    assert load_checkpoint(tmp_path / CHECKPOINT)[1]["scaler"]["scale"] > 1


def test_finetune_is_another_objective_of_the_same_loop(tmp_path):
    config = dataclasses.replace(CONFIG, objective="finetune", stages=(Stage(1, 60),), final_rate=0.1, batch_size=10)
    states, _ = run(config, tmp_path)
    assert sum(s.losses["loss"] for s in states[-10:]) < sum(s.losses["loss"] for s in states[:10])


def test_finetune_keeps_no_target_and_goes_on_from_a_checkpoint_that_has_one(tmp_path):
    config = dataclasses.replace(CONFIG, objective="finetune", stages=(Stage(1, 4),))
    whole = run(config)[1]
    states, layers, _ = start(config, tmp_path)
    with contextlib.closing(states):
        next(states), next(states)
    parts, values = load_checkpoint(tmp_path / CHECKPOINT)
    assert set(parts) == {"student", "optimizer"} == {*layers.sets, "optimizer"}
    save_checkpoint(tmp_path / CHECKPOINT, {**parts, "target": parts["student"]}, values)
    rest, resumed = run(config, tmp_path)
    assert [state.step for state in rest] == [3, 4]
    assert equal(weights(resumed), weights(whole))


def test_training_goes_on_from_a_set_that_is_there():
    denoiser = make_denoiser(dtype=torch.float32)
    layers = LoraLayers(denoiser.network, 2)
    student = layers.add("student")
    torch.nn.init.constant_(student.up[0], 0.25)
    kept = student.up[0].detach().clone()
    Run(CONFIG, denoiser, layers, make_examples(10, torch.float32), LocalEngine(), None)
    assert torch.equal(layers.sets["student"].up[0], kept)
    assert torch.equal(layers.sets["target"].up[0], kept)


def test_batch_that_cannot_be_split_is_refused():
    with pytest.raises(TrainingError, match="use a multiple of 3"):
        run(dataclasses.replace(CONFIG, accumulation=3))
