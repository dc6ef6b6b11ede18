import pytest
import torch
from diffusers import UNet2DConditionModel
from hyper_sd.errors import TrainingError
from hyper_sd.tests.training.fakes import SDXL, TOKENS, WIDTH, TinyUNet
from hyper_sd.training.lora_layers import LoraLayers, adaptable_layers
from hyper_sd.training.recompute import recomputing
from torch import nn


def inputs(batch=3, dtype=torch.float64):
    g = torch.Generator().manual_seed(2)
    x = torch.randn(batch, 2, 4, 4, generator=g, dtype=dtype)
    return x, torch.tensor([900, 500, 20][:batch]), torch.randn(batch, TOKENS, WIDTH, generator=g, dtype=dtype)


def tiny(dtype=torch.float64):
    torch.manual_seed(0)
    return TinyUNet().to(dtype)


def fill(made, seed=5):
    torch.manual_seed(seed)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)


@pytest.mark.parametrize(
    ("settings", "count"), [({"cross_attention_dim": 768}, 278), (SDXL, 788)], ids=["SD1.5", "SDXL"]
)  # fmt: skip
def test_adapted_layers_are_those_of_the_released_loras(settings, count):
    with torch.device("meta"):
        network = UNet2DConditionModel(**settings)
    names = adaptable_layers(network)
    assert len(names) == count
    assert not {"conv_in", "conv_out", "time_embedding.linear_1"} & names.keys()


def test_new_set_changes_nothing():
    network, (x, t, c) = tiny(), inputs()
    plain = network(x, t, c)
    layers = LoraLayers(network, rank=2, dtype=torch.float64)
    layers.add("student")
    with layers.using("student"):
        assert torch.equal(network(x, t, c), plain)


@pytest.mark.parametrize("layer", [
    nn.Linear(5, 7), nn.Conv2d(5, 7, 3, stride=2, padding=1), nn.Conv2d(5, 7, 1), nn.Conv2d(5, 7, 3, padding=2, dilation=2),
    nn.Conv2d(5, 7, 3, padding="same"), nn.Conv2d(5, 7, 3, padding=1, padding_mode="circular"),
])  # fmt: skip
def test_bypass_equals_the_merged_weight(layer):
    network = nn.Sequential(layer.double())
    layers = LoraLayers(network, rank=3, lora_alpha=1.5, excluded=(), dtype=torch.float64)
    made = layers.add("student")
    fill(made)
    x = (
        torch.randn(2, 5, 6, 6, dtype=torch.float64)
        if isinstance(layer, nn.Conv2d)
        else torch.randn(2, 4, 5, dtype=torch.float64)
    )
    with layers.using("student"):
        bypass = network(x)
    layers.detach()
    with torch.no_grad():
        layer.weight += 0.5 * torch.einsum("or...,ri...->oi...", made.up[0].flatten(1), made.down[0])
    assert torch.allclose(bypass, network(x), atol=1e-12)


def test_grouped_convolutions_are_left_alone():
    network = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Linear(4, 4))
    assert list(adaptable_layers(network, ())) == ["1"]


def test_network_is_untouched_during_training_and_after_detach():
    network, (x, t, c) = tiny(), inputs()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    plain, modules = network(x, t, c), [id(m) for m in network.modules()]
    layers = LoraLayers(network, rank=2, dtype=torch.float64)
    fill(layers.add("student"))
    with layers.using("student"):
        assert not torch.allclose(network(x, t, c), plain)
    assert torch.equal(network(x, t, c), plain)
    layers.detach()
    assert [id(m) for m in network.modules()] == modules
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not any(m._forward_hooks for m in network.modules())


def test_sets_are_switched_and_restored_also_after_an_error():
    network, (x, t, c) = tiny(), inputs()
    layers = LoraLayers(network, rank=2, dtype=torch.float64)
    fill(layers.add("student"), 1)
    fill(layers.add("target"), 2)
    with layers.using("student"):
        student = network(x, t, c)
        with pytest.raises(ZeroDivisionError), layers.using(None, frozen=True):
            1 / 0  # noqa: B018
        assert (layers.active, layers.frozen) == (("student",), False)
        with layers.using("target"):
            assert not torch.allclose(network(x, t, c), student)
        assert torch.equal(network(x, t, c), student)
    assert layers.active == ()


def test_frozen_set_passes_gradients_on_and_gets_none():
    network, (x, t, c) = tiny(), inputs()
    network.requires_grad_(False)
    layers = LoraLayers(network, rank=2, dtype=torch.float64)
    made = layers.add("student")
    fill(made)
    x.requires_grad_(True)
    with layers.using("student", frozen=True):
        network(x, t, c).sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in made.parameters())
    with layers.using("student"):
        network(x, t, c).sum().backward()
    assert all(p.grad is not None for p in made.parameters())
    assert all(p.grad is None for p in network.parameters())


def test_moving_average_follows_its_formula():
    layers = LoraLayers(tiny(), rank=2, dtype=torch.float64)
    fill(layers.add("student"), 1)
    fill(layers.add("target"), 2)
    student, target = layers.sets["student"], layers.sets["target"]
    wanted = [0.9 * t + 0.1 * s for t, s in zip(target.parameters(), student.parameters(), strict=True)]
    target.move_towards(student, 0.9)
    assert all(torch.allclose(t, w, atol=1e-15) for t, w in zip(target.parameters(), wanted, strict=True))


def test_copy_is_equal_and_independent():
    layers = LoraLayers(tiny(), rank=2)
    fill(layers.add("student"))
    target = layers.add("target", copy_of="student")
    pairs = list(zip(layers.sets["student"].parameters(), target.parameters(), strict=True))
    assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_network_in_any_precision_keeps_its_output_dtype_and_trains_float32_adapters(dtype):
    network, (x, t, c) = tiny(dtype).requires_grad_(False), inputs(dtype=dtype)
    layers = LoraLayers(network, rank=2)
    made = layers.add("student")
    fill(made)
    with layers.using("student"):
        out = network(x, t, c)
    assert out.dtype == dtype
    out.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in made.parameters())


def test_bf16_autocast_stays_close_to_float32():
    network, (x, t, c) = tiny(torch.float32), inputs(dtype=torch.float32)
    layers = LoraLayers(network, rank=2)
    fill(layers.add("student"))
    with layers.using("student"):
        exact = network(x, t, c)
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(x, t, c)
    assert torch.allclose(rough.float(), exact, atol=0.05)


def test_recomputed_blocks_give_the_same_gradients_for_the_set_that_was_active():
    network, (x, t, c) = tiny().requires_grad_(False), inputs()
    layers = LoraLayers(network, rank=2, dtype=torch.float64)
    made = layers.add("student")
    fill(made)
    fill(layers.add("target"), 9)

    def gradients():
        with layers.using("student"):
            out = network(x, t, c)
        with layers.using("target"):  # another set is active while the backward pass recomputes
            return torch.autograd.grad(out.square().sum(), list(made.parameters()))

    plain = gradients()
    with recomputing(network, layers):
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(gradients(), plain, strict=True))
    assert all("forward" not in vars(m) for m in network.modules())


def test_recomputing_keeps_less_for_the_backward_pass():
    network, (x, t, c) = tiny().requires_grad_(False), inputs()
    layers = LoraLayers(network, rank=2, dtype=torch.float64)
    fill(layers.add("student"))

    def kept():
        sizes = []
        with (
            torch.autograd.graph.saved_tensors_hooks(lambda v: sizes.append(v.numel()) or v, lambda v: v),
            layers.using("student"),
        ):
            network(x, t, c)
        return sum(sizes)

    plain = kept()
    with recomputing(network, layers):
        assert kept() < 0.7 * plain


def test_networks_that_cannot_be_adapted_are_refused():
    with pytest.raises(TrainingError, match="no Linear or Conv2d"):
        LoraLayers(nn.Sequential(nn.ReLU()), rank=2)
    with pytest.raises(TrainingError, match="rank must be 1 or more, got 0"):
        LoraLayers(tiny(), rank=0)
    with pytest.raises(TrainingError, match="no block to recompute"), recomputing(nn.Linear(2, 2), LoraLayers(tiny())):
        pass


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("layer", [nn.Linear(4, 4), nn.Conv2d(4, 4, 3, padding=1)], ids=["linear", "convolution"])
@pytest.mark.parametrize("how", ["before", "put in front", "everywhere"])
def test_output_that_an_earlier_hook_keeps_is_not_written_over(how, layer, learns):
    network, x, kept = nn.Sequential(layer).requires_grad_(False), torch.randn(2, 4, 4, 4), []
    plain = network(x)

    def keep(module, args, output):
        if module is layer:
            kept.append(output)

    before = layer.register_forward_hook(keep) if how == "before" else None
    layers = LoraLayers(network, rank=2, excluded=())
    fill(layers.add("student"))
    makers = {
        "before": lambda: before,
        "put in front": lambda: layer.register_forward_hook(keep, prepend=True),
        "everywhere": lambda: nn.modules.module.register_module_forward_hook(keep),
    }
    hook = makers[how]()
    with layers.using("student"), torch.set_grad_enabled(learns):
        found = network(x)
        hook.remove()
        alone = network(x)
    layers.detach()
    assert torch.equal(kept[0], plain)
    assert torch.equal(found, alone)
    assert not torch.equal(found, plain)


def test_output_that_nobody_else_sees_is_written_over():
    network, places = nn.Sequential(nn.Linear(4, 4)).requires_grad_(False), []
    layers = LoraLayers(network, rank=2, excluded=())
    fill(layers.add("student"))
    network[0].register_forward_hook(lambda module, args, output: places.append(output.data_ptr()) and None)  # after ours
    inner = nn.Linear.forward
    network[0].forward = lambda x: _noted(inner(network[0], x), places)
    with layers.using("student"), torch.no_grad():
        network(torch.randn(2, 4))
    assert places[0] == places[1]


def _noted(output, places):
    places.append(output.data_ptr())
    return output
