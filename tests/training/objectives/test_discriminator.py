import pytest
import torch
from hyper_sd.tests.training.world import ADVERSARIAL, World, check_gradients
from hyper_sd.training.lora_layers import BACKBONE
from hyper_sd.training.objectives.discriminator import Features, discriminator_loss, encoder_stages, generator_loss
from hyper_sd.training.objectives.draws import distance
from torch import nn


@pytest.mark.parametrize("backbone", [False, True])
def test_gradient_reaches_the_student_and_the_judges_only(backbone):
    w = World(stage=ADVERSARIAL, backbone=backbone)
    w.losses()["loss"].backward()
    sets = w.layers.sets
    assert all(p.grad is not None for p in sets["student"].parameters())
    assert any(p.grad.abs().sum() > 0 for p in sets["student"].parameters())
    assert all(p.grad is None for p in sets["target"].parameters())
    assert all(p.grad is None for p in w.denoiser.network.parameters())
    assert all(p.grad is not None for p in w.heads.parameters())
    if backbone:
        # The decoder's adapters take no part in the features.
        reached = [p.grad is not None and p.grad.abs().sum() > 0 for p in sets[BACKBONE].parameters()]
        assert any(reached)


@pytest.mark.parametrize("backbone", [False, True])
def test_student_and_judges_follow_their_own_loss_alone(backbone):
    w = World(stage=ADVERSARIAL, backbone=backbone)
    students, judges = list(w.layers.sets["student"].parameters()), list(w.heads.parameters())
    if backbone:
        judges += list(w.layers.sets[BACKBONE].parameters())
    found = torch.autograd.grad(w.losses()["loss"], students + judges, allow_unused=True)

    x_n = w.denoiser.diffusion.add_noise(w.batch.latents, w.draws.noise, w.draws.t_n)
    wanted = w.objective.target_point(x_n, w.batch, w.draws)
    jumped = w.denoiser.diffusion.jump(x_n, w.predict("student", x_n, w.draws.t_n), w.draws.t_n, w.draws.t_end)
    look = Features(w.denoiser, w.layers, BACKBONE if backbone else None)
    context = w.batch.conditioning

    def logits(x):
        return w.heads(look(x, w.draws.t_end, context), look(x_n, w.draws.t_n, context))

    generator = distance(jumped, wanted, "mse", 0) + 0.3 * generator_loss(logits(jumped))
    hinge = discriminator_loss(logits(wanted), logits(jumped.detach()))
    expected = [
        *torch.autograd.grad(generator, students, retain_graph=True),
        *torch.autograd.grad(hinge, judges, allow_unused=True),
    ]
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.allclose(mine, theirs, atol=1e-12)


@pytest.mark.parametrize("group", ["student", "heads", BACKBONE])
def test_adversarial_gradients_equal_finite_differences(group):
    w = World(stage=ADVERSARIAL, backbone=True)
    parameters = list(w.heads.parameters() if group == "heads" else w.layers.sets[group].parameters())
    # The total mixes what the student minimises with what its judges do; each gradient must be that of its own part.
    part = {"student": lambda losses: losses["distance"] + 0.3 * losses["adversarial"]}
    assert check_gradients(w, parameters, part.get(group, lambda losses: losses["discriminator"])) >= 3


def test_real_can_be_the_noised_data():
    w = World(stage=ADVERSARIAL, adversarial_real="data")
    seen = []
    w.heads.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    w.losses()
    real = w.denoiser.diffusion.add_noise(w.batch.latents, w.draws.noise, w.draws.t_end)
    expected = Features(w.denoiser, w.layers)(real, w.draws.t_end, w.batch.conditioning)
    assert any(all(torch.equal(a, b) for a, b in zip(inputs, expected, strict=True)) for inputs in seen)


def test_features_are_the_encoder_and_middle_and_end_the_pass_there():
    w = World()
    ran = []
    w.denoiser.network.up.register_forward_hook(lambda *_: ran.append("decoder"))
    found = Features(w.denoiser, w.layers)(w.batch.latents, w.draws.t_n, w.batch.conditioning)
    assert encoder_stages(w.denoiser.network) == ["down_blocks.0", "down_blocks.1", "mid_block"]
    assert [tuple(f.shape[1:]) for f in found] == [(4, 4, 4), (8, 2, 2), (8, 2, 2)]
    assert not ran
    assert not w.denoiser.network.mid_block._forward_hooks


def test_hinge_losses_by_hand():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert float(discriminator_loss(real, fake)) == pytest.approx((0 + 0.5) / 2 + (0 + 1) / 2)
    assert float(generator_loss(fake)) == pytest.approx(1.5)


def test_middle_of_a_host_unet_is_found_by_its_layers():
    class Downsample(nn.Conv2d):
        pass

    host = nn.Module()
    host.input_blocks = nn.ModuleList(
        [
            nn.Sequential(nn.Identity()),
            nn.Sequential(nn.Identity(), nn.Identity()),
            nn.Sequential(Downsample(1, 1, 1)),
            nn.Sequential(nn.Identity()),
        ]
    )
    host.middle_block = nn.Sequential(nn.Identity(), nn.Identity(), nn.Identity())
    assert encoder_stages(host) == ["input_blocks.2.0", "input_blocks.3.0", "middle_block.2"]
