"""The recipe of the demo model's ControlNet, for a few steps on random latents."""

from itertools import islice

import pytest
import torch

pytest.importorskip("diffusers", reason="the recipe's classes need diffusers: pip install -e .[recipe]")

from hyper_sd.demo.recipe import train_control
from hyper_sd.demo.recipe.export import load_checkpoint
from hyper_sd.models.embedded import CHECKPOINT
from safetensors.torch import load_file

COUNT, STEPS = 4, 4


@pytest.fixture(scope="module")
def denoiser():
    return load_checkpoint(CHECKPOINT)[1]


@pytest.fixture
def trained(denoiser, monkeypatch):
    """Trains to a step, saving at each second one; returns the losses and what is trained."""
    monkeypatch.setattr(train_control, "BATCH", 2)
    monkeypatch.setattr(train_control, "SAVE_EVERY", 2)
    monkeypatch.setattr(train_control, "WARMUP", 2)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(COUNT, 4, 16, 16, generator=generator)
    lines = (torch.rand(COUNT, 128, 128, generator=generator) > 0.9).byte()

    def run(checkpoint, until=STEPS):
        states = train_control.train(latents, lines, _caption, denoiser, checkpoint, steps=STEPS)
        _, losses, models = zip(*islice(states, until), strict=True)
        return losses, {name: tensor.detach().clone() for name, tensor in models[-1].trained().items()}

    return run


def _caption(number, rng):
    return rng.choice(["red heart", "sailboat", "fox", "pizza"])


def test_untrained_control_predicts_what_the_bare_unet_predicts(denoiser):
    generator = torch.Generator().manual_seed(2)
    x, context = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 77, 192, generator=generator)
    timestep, hint = torch.tensor([999, 300]), torch.rand(2, 3, 128, 128, generator=generator)
    with torch.no_grad():
        expected = denoiser.unet(x, timestep, context).sample
        assert torch.equal(train_control.OutlineControl(denoiser.unet)(x, timestep, context, hint), expected)


def test_resumed_training_equals_an_uninterrupted_one_bit_for_bit(trained, tmp_path):
    losses, whole = trained(tmp_path / "whole.pt")
    trained(tmp_path / "parts.pt", until=3)  # the last checkpoint before is that of step 2
    rest, resumed = trained(tmp_path / "parts.pt")

    assert rest == losses[2:]
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_finished_training_gives_its_network_again(trained, tmp_path):
    _, made = trained(tmp_path / "control.pt")
    _, again = trained(tmp_path / "control.pt")
    assert all(torch.equal(tensor, again[name]) for name, tensor in made.items())


def test_training_changes_every_part_and_leaves_the_unet_alone(denoiser, trained, tmp_path):
    before = {name: tensor.clone() for name, tensor in denoiser.unet.state_dict().items()}
    torch.manual_seed(2)  # as the training begins
    start = {name: tensor.detach().clone() for name, tensor in train_control.OutlineControl(denoiser.unet).trained().items()}
    _, after = trained(tmp_path / "control.pt")

    unchanged = [name for name, tensor in after.items() if torch.equal(tensor, start[name])]
    assert not unchanged
    for name, tensor in denoiser.unet.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_saved_file_holds_what_was_trained_with_its_outputs_raised(denoiser, tmp_path):
    model = train_control.OutlineControl(denoiser.unet)
    for tensor in model.trained().values():
        tensor.data = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3))
    train_control.save_control(model, tmp_path / "control.safetensors")
    saved = load_file(tmp_path / "control.safetensors")

    assert saved.pop("lora_controlnet").numel() == 0  # the mark of a control LoRA
    assert saved.keys() == model.trained().keys()
    raised = {name for name, tensor in model.trained().items() if not torch.equal(saved[name], tensor.half())}
    assert raised == {name for name in saved if name.startswith(("zero_convs", "middle_block_out"))}
    for name in raised:
        assert torch.equal(saved[name], (model.trained()[name] * train_control.GAIN).half())
    assert [path.name for path in tmp_path.iterdir()] == ["control.safetensors"]
