import dataclasses
import gc
import weakref

import pytest
import torch
from hyper_sd.errors import TrainingError
from hyper_sd.tests.training.runs import CONFIG, equal, run, start, weights
from hyper_sd.training.checkpoint import flatten_optimizer, load_checkpoint, restore_optimizer, save_checkpoint
from hyper_sd.training.config import TrainingConfig
from hyper_sd.training.optimizers import make_optimizer, require_optimizer
from hyper_sd.training.plain_config import differences, from_plain, to_plain

IN_8_BITS = dataclasses.replace(CONFIG, optimizer="adamw8bit")
COUNT = 5000  # bitsandbytes keeps tensors below 4096 values in 32 bits


def groups(value=0.0):
    return [{"params": [torch.nn.Parameter(torch.full((n,), value)) for n in (COUNT, 7)], "lr": 0.01}]


@pytest.mark.parametrize(("device", "is_there", "words"), [
    ("cpu", True, r"bitsandbytes is installed, and the training runs on cpu; train on a card, or use optimizer \"adamw\""),
    ("cpu", False, "bitsandbytes is not installed, and the training runs on cpu; train on a card"),
    ("cuda", False, "bitsandbytes is not installed, and the training runs on cuda; run `pip install bitsandbytes`, or use"),
])  # fmt: skip
def test_optimizer_that_is_not_there_is_refused_with_what_to_do(monkeypatch, device, is_there, words):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: is_there or None)
    with pytest.raises(TrainingError, match=f'"adamw8bit" needs a graphics card.*{words}'):
        require_optimizer(IN_8_BITS, torch.device(device))


def test_optimizer_that_is_there_is_taken(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    require_optimizer(IN_8_BITS, torch.device("cuda"))
    require_optimizer(CONFIG, torch.device("cpu"))


def test_a_run_is_refused_before_it_starts(tmp_path):
    states, layers, _ = start(IN_8_BITS, tmp_path)
    with pytest.raises(TrainingError, match="adamw8bit"):
        next(states)
    assert not layers.sets
    assert not list(tmp_path.iterdir())


def test_optimizer_decides_what_is_learnt_and_runs_begun_before_it_go_on():
    assert "optimizer" not in to_plain(CONFIG)
    assert from_plain(to_plain(IN_8_BITS)) == IN_8_BITS
    assert differences(CONFIG, to_plain(CONFIG)) == []
    assert differences(IN_8_BITS, to_plain(CONFIG)) == ["optimizer: adamw then, adamw8bit now"]
    assert differences(CONFIG, to_plain(IN_8_BITS)) == ["optimizer: adamw8bit then, adamw now"]
    with pytest.raises(TrainingError, match="optimizer must be one of adamw, adamw8bit"):
        TrainingConfig(CONFIG.stages, optimizer="sgd")


def step(optimizer, number):
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    optimizer.step()


@pytest.mark.parametrize("config", [CONFIG, IN_8_BITS], ids=["adamw", "adamw8bit"])
def test_state_of_an_optimizer_goes_through_a_checkpoint(tmp_path, config):
    if config is IN_8_BITS:
        pytest.importorskip("bitsandbytes")
    whole = make_optimizer(groups(), config)
    for number in range(3):
        step(whole, number)
    save_checkpoint(tmp_path / "a", {"optimizer": flatten_optimizer(whole)}, {})
    saved = load_checkpoint(tmp_path / "a")[0]["optimizer"]
    if config is IN_8_BITS:
        assert saved["0.state1"].dtype == saved["0.state2"].dtype == torch.uint8
        assert sum(tensor.nbytes for name, tensor in saved.items() if name.startswith("0.")) < 3 * COUNT
    again = make_optimizer(groups(), config)
    for mine, theirs in zip(again.param_groups[0]["params"], whole.param_groups[0]["params"], strict=True):
        mine.data.copy_(theirs)
    restore_optimizer(again, saved)
    for number in range(3, 6):
        step(whole, number)
        step(again, number)
    for mine, theirs in zip(again.param_groups[0]["params"], whole.param_groups[0]["params"], strict=True):
        assert mine.any()
        assert torch.equal(mine, theirs)


def test_resumed_run_in_8_bits_is_the_whole_one(tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr("hyper_sd.training.loop.require_optimizer", lambda *_: None)
    config = dataclasses.replace(IN_8_BITS, rank=32)
    _, whole = run(config)
    assert whole.sets["student"].flat.numel() > COUNT
    states, _, _ = start(config, tmp_path)
    for _ in range(3):
        next(states)
    states.close()
    _, resumed = run(config, tmp_path)
    assert equal(weights(resumed), weights(whole))


def test_what_a_run_holds_is_free_as_soon_as_it_ends():
    states = start()[0]
    next(states)
    running = states.gi_frame.f_locals["run"]
    optimizer = weakref.ref(running.optimizer)
    del running
    gc.disable()
    try:
        states.close()
        del states
        assert optimizer() is None
    finally:
        gc.enable()
