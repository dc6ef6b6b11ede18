import copy

import pytest
import torch
from hyper_sd.benchmarks.op_count import OpCounter
from hyper_sd.tests.training.fakes import TOKENS, WIDTH, TinyUNet
from hyper_sd.training.adapter_set import AdapterSet
from hyper_sd.training.bypass import add_bypass
from hyper_sd.training.data.examples import seeded
from hyper_sd.training.lora_layers import LoraLayers, adaptable_layers
from torch import nn


def filled(dtype=torch.float32, rank=3, network=None):
    layers = adaptable_layers(network or TinyUNet())
    made = AdapterSet(layers, rank, rank / 2, dtype)
    nn.init.normal_(made.flat, generator=torch.Generator().manual_seed(1))
    return made, layers


def test_pairs_are_views_of_the_one_parameter_in_the_shapes_of_their_layers():
    made, layers = filled()
    assert [name for name, _ in made.named_parameters()] == ["flat"]
    assert sum(part.numel() for part in (*made.down, *made.up)) == made.flat.numel()
    for layer, down, up in zip(layers.values(), made.down, made.up, strict=True):
        assert down.shape == (3, *layer.weight.shape[1:])
        assert up.shape == (len(layer.weight), 3, *[1] * (layer.weight.ndim - 2))
    made.down[4].fill_(7.0)
    assert int((made.flat == 7).sum()) == made.down[4].numel()
    for pair, transposed in zip(
        zip(made.down, made.up, strict=True), zip(*made.pairs_of(made.flat, True), strict=True), strict=True
    ):
        assert all(torch.equal(a.flatten(1).T, b) for a, b in zip(pair, transposed, strict=True))


def test_new_set_starts_with_the_values_that_seed_and_position_decide():
    layers = adaptable_layers(TinyUNet())
    first, second, other = (AdapterSet(layers, 2, 2, torch.float32, seed) for seed in (4, 4, 5))
    assert torch.equal(first.flat, second.flat)
    assert not torch.equal(first.flat, other.flat)
    assert not any(up.any() for up in first.up)
    assert all(down.any() for down in first.down)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_layer_draws_its_first_values_from_a_generator_of_its_own(dtype):
    made = AdapterSet(adaptable_layers(TinyUNet()), 2, 2, dtype, seed=4)
    for position, down in enumerate(made.down):
        expected = nn.init.kaiming_uniform_(torch.empty(down.shape), a=5**0.5, generator=seeded(4, position)).to(dtype)
        assert torch.equal(down, expected)


def test_set_that_takes_over_other_weights_draws_nothing(monkeypatch):
    layers = LoraLayers(TinyUNet(), 2)
    first = layers.add("student", seed=4)
    monkeypatch.setattr("hyper_sd.training.adapter_set._draw", None)
    assert torch.equal(layers.add("target", copy_of="student").flat, first.flat)


def test_passes_share_one_copy_in_their_dtype_until_the_weights_change():
    made, _ = filled()
    learning, fixed = made.ready(torch.bfloat16, True), made.ready(torch.bfloat16, False)
    assert made.ready(torch.bfloat16, True) is learning
    assert learning[0].down.requires_grad
    assert not fixed[0].down.requires_grad
    assert learning[0].down.data_ptr() == fixed[0].down.data_ptr()
    with torch.no_grad():
        made.flat.mul_(2)
    assert torch.equal(made.ready(torch.bfloat16, False)[0].up, made.up[0].bfloat16())


def test_optimizers_whose_kernels_count_no_change_are_followed_too():
    made, _ = filled()
    before = made.ready(torch.bfloat16, False)[0].down.clone()
    made.flat.grad = torch.ones_like(made.flat)
    torch.optim.AdamW([made.flat], lr=0.5, fused=True).step()
    made.forget()
    assert not torch.equal(made.ready(torch.bfloat16, False)[0].down, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_set_that_learns_again_after_a_pass_that_it_stood_still_in_gets_its_gradients(dtype):
    made, _ = filled()
    made.requires_grad_(False)
    made.ready(dtype, False)
    made.requires_grad_(True)
    made.ready(dtype, True)[0].down.float().sum().backward()
    assert made.flat.grad.count_nonzero() == made.down[0].numel()


def test_what_a_pass_in_inference_mode_made_serves_a_pass_that_learns():
    network = TinyUNet().bfloat16().requires_grad_(False)
    layers = LoraLayers(network, 2)
    x, texts = torch.randn(2, 2, 4, 4).bfloat16(), torch.randn(2, TOKENS, WIDTH).bfloat16()
    layers.add("student")
    with layers.using("student"):
        with torch.inference_mode():
            network(x, torch.tensor([3, 9]), texts)
        network(x, torch.tensor([3, 9]), texts).sum().backward()
    assert layers.sets["student"].flat.grad.any()


def test_weights_that_another_tensor_is_put_in_place_of_are_followed():
    made, _ = filled()
    made.ready(torch.bfloat16, False)
    made.flat.data = torch.ones_like(made.flat)
    assert bool((made.ready(torch.bfloat16, False)[0].down == 1).all())


@pytest.mark.parametrize("way", [copy.deepcopy, lambda made: copy.deepcopy({"inside": made})["inside"]])
def test_copies_of_a_set_keep_nothing_of_its_passes(way):
    made, _ = filled()
    made.ready(torch.bfloat16, True)
    other = way(made)
    with torch.no_grad():
        other.flat.fill_(2)
    assert bool((other.ready(torch.bfloat16, True)[0].down == 2).all())
    assert torch.equal(made.ready(torch.bfloat16, False)[0].down, made.down[0].bfloat16())


def test_two_backward_passes_between_two_changes_add_up():
    network = TinyUNet().requires_grad_(False)
    layers = LoraLayers(network, 2)
    nn.init.normal_(layers.add("student").flat, std=0.1)
    student, x, texts = layers.sets["student"], torch.randn(2, 2, 4, 4), torch.randn(2, TOKENS, WIDTH)

    def learn():
        with layers.using("student"):
            network(x, torch.tensor([3, 9]), texts).sum().backward()

    learn()
    once = student.flat.grad.clone()
    learn()
    assert torch.allclose(student.flat.grad, 2 * once, rtol=1e-5, atol=1e-6)


UNBATCHED = "convolution of one picture"
LAYERS = {
    "linear": (lambda: nn.Linear(5, 7), (2, 3, 5)),
    "linear, one row each": (lambda: nn.Linear(5, 7), (4, 5)),
    "convolution": (lambda: nn.Conv2d(5, 7, 3, stride=2, padding=1), (2, 5, 6, 6)),
    "pointwise": (lambda: nn.Conv2d(5, 7, 1), (3, 5, 4, 4)),
    UNBATCHED: (lambda: nn.Conv2d(5, 7, 3, padding=1), (5, 6, 6)),
}


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_of_the_bypass_equal_finite_differences(kind, scale, channels_last):
    make, shape = LAYERS[kind]
    layer = make().double().requires_grad_(False)
    layers = {"only": layer}
    made = AdapterSet(layers, 2, 2 * scale, torch.float64)
    nn.init.normal_(made.flat)
    x = torch.randn(shape, dtype=torch.float64)
    if channels_last and x.ndim == 4:
        x, layer = x.to(memory_format=torch.channels_last), layer.to(memory_format=torch.channels_last)

    def function(x, flat):
        (down,), (up,) = made.pairs_of(flat)
        pair = made.ready(torch.float64, True)[0]._replace(down=down, up=up, slot=None)
        pair = pair._replace(down_t=down.detach().flatten(1).T, up_t=up.detach().flatten(1).T)
        return add_bypass(layer, x, layer(x), pair, made.scale)

    flat = made.flat.detach().clone().requires_grad_()
    expected = layer(x) + made.scale * _plain(layer, x, *(part[0] for part in made.pairs_of(flat.detach())))
    assert torch.allclose(function(x, flat), expected, atol=1e-12)
    with torch.no_grad():
        assert torch.allclose(function(x, flat), expected, atol=1e-12)
    assert torch.autograd.gradcheck(function, (x.requires_grad_(), flat))
    assert torch.autograd.gradcheck(lambda flat: function(x.detach(), flat), (flat,))
    assert torch.autograd.gradcheck(lambda x: function(x, flat.detach()), (x,))


@pytest.mark.parametrize("kind", LAYERS)
def test_layer_that_leaves_autocast_is_followed(kind):
    make, shape = LAYERS[kind]
    layer, x = make().requires_grad_(False), torch.randn(shape)
    made = AdapterSet({"only": layer}, 2, 2, torch.float32)
    nn.init.normal_(made.flat)
    pair, expected = made.ready(torch.float32, True)[0], layer(x) + _plain(layer, x, made.down[0], made.up[0])
    with torch.autocast("cpu", torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            output = layer(x)
        found = add_bypass(layer, x, output, pair, 1.0)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind != UNBATCHED])
def test_empty_batch_goes_both_ways(kind):
    make, shape = LAYERS[kind]
    layer, x = make().requires_grad_(False), torch.randn(0, *shape[1:], requires_grad=True)
    made = AdapterSet({"only": layer}, 2, 2, torch.float32)
    add_bypass(layer, x, layer(x), made.ready(torch.float32, True)[0], 1.0).sum().backward()
    assert not made.flat.grad.any()


def _plain(layer, x, down, up):
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(nn.functional.linear(x, down), up)
    return nn.functional.conv2d(nn.functional.conv2d(x, down, None, layer.stride, layer.padding), up)


def test_network_may_change_what_a_bypass_returns_where_it_stands():
    layer = nn.Linear(4, 4).requires_grad_(False)
    made = AdapterSet({"only": layer}, 2, 2, torch.float32)
    nn.init.normal_(made.flat)
    x = torch.randn(3, 4, requires_grad=True)
    y = add_bypass(layer, x, layer(x), made.ready(torch.float32, True)[0], 1.0)
    y += 1
    y.square().sum().backward()
    assert x.grad.any()
    assert made.flat.grad.any()


def test_bypass_is_two_operators_that_compute_each_way_besides_gradients():
    layer = nn.Linear(4, 4).requires_grad_(False)
    made = AdapterSet({"only": layer}, 2, 2, torch.float32)
    pair, x, counter = made.ready(torch.float32, False)[0], torch.randn(3, 4, requires_grad=True), OpCounter()
    output = layer(x)
    with counter:
        y = add_bypass(layer, x, output, pair, 1.0)
    assert {name: count for name, count in counter.names.items() if "mm" in name} == {"aten::mm": 1, "aten::addmm_": 1}
    counter = OpCounter()
    with counter:
        y.sum().backward()
    assert sum(count for name, count in counter.names.items() if "mm" in name) == 3  # two here, one of the layer itself
