import gc
import weakref

import pytest
import torch
from hyper_sd.tests.training.fakes import TOKENS, WIDTH, TinyUNet
from hyper_sd.training import flat
from hyper_sd.training.lora_layers import LoraLayers
from torch import nn
from torch.utils.checkpoint import checkpoint


class World:
    """A tiny network with one set that is not zero."""

    def __init__(self, dtype=torch.float32):
        torch.manual_seed(0)
        self.network = TinyUNet().to(dtype).requires_grad_(False)
        self.layers = LoraLayers(self.network, 2)
        self.student = self.layers.add("student")
        nn.init.normal_(self.student.flat, std=0.1)
        self.inputs = [(torch.randn(2, 2, 4, 4).to(dtype), torch.randn(2, TOKENS, WIDTH).to(dtype)) for _ in range(3)]

    def loss(self, *numbers):
        """One loss of several passes."""
        with self.layers.using("student"):
            outputs = [self.network(self.inputs[n][0], torch.tensor([3, 9]), self.inputs[n][1]) for n in numbers]
        return sum(output.float().square().sum() for output in outputs)


def by_autograd(leaf, values, layout):
    """What learning_parts() replaces: views that autograd follows by itself."""
    return layout.parts_of(leaf.to(values.dtype)), [None] * layout.layers


WAYS = {"one pass": [(0,)], "two passes of one loss": [(0, 1)], "two losses": [(0,), (1,)], "two and one": [(0, 1), (2,)]}


def gradient(way, dtype=torch.float32):
    world = World(dtype)
    for numbers in WAYS[way]:
        world.loss(*numbers).backward()
    return world.student.flat.grad


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_autograds_own_to_the_bit(way, monkeypatch):
    found = gradient(way)
    monkeypatch.setattr("hyper_sd.training.adapter_set.learning_parts", by_autograd)
    assert found.any()
    assert torch.equal(found, gradient(way))


@pytest.mark.parametrize("way", WAYS)
def test_gradients_of_half_precision_are_added_in_float32(way, monkeypatch):
    found = gradient(way, torch.bfloat16)
    monkeypatch.setattr("hyper_sd.training.adapter_set.learning_parts", by_autograd)
    assert found.dtype == torch.float32
    assert torch.allclose(found, gradient(way, torch.bfloat16), rtol=0.02, atol=0.02)


def test_several_passes_onto_a_gradient_that_is_there_differ_by_rounding_alone(monkeypatch):
    def twice():
        world = World()
        world.loss(2).backward()
        world.loss(0, 1).backward()
        return world.student.flat.grad

    found = twice()
    monkeypatch.setattr("hyper_sd.training.adapter_set.learning_parts", by_autograd)
    assert torch.allclose(found, twice(), rtol=1e-5, atol=1e-6)


def test_gradient_that_is_there_is_added_to_where_it_stands():
    world, seen = World(), []
    world.student.flat.register_post_accumulate_grad_hook(lambda leaf: seen.append(leaf.grad.data_ptr()))
    place = world.student.flat.grad = torch.zeros_like(world.student.flat)
    world.loss(0).backward()
    assert world.student.flat.grad is place
    assert place.any()
    assert seen == [place.data_ptr()]  # torch's hooks, which others wait for, know of it


def test_gradient_that_is_gathered_becomes_the_leafs_own_without_a_copy(monkeypatch):
    world, places = World(), []
    inner = flat._Pass.take

    def take(self):
        found = inner(self)
        places.append(found.data_ptr())
        return found

    monkeypatch.setattr(flat._Pass, "take", take)
    world.loss(0).backward()
    assert places == [world.student.flat.grad.data_ptr()]


def asked_for_the_input(world, loss, x):
    return torch.autograd.grad(loss, x)


def asked_for_the_input_by_name(world, loss, x):
    loss.backward(inputs=[x])
    return [x.grad]


def asked_for_the_flat_one(world, loss, x):
    return torch.autograd.grad(loss, world.student.flat)


def seen_by_a_hook(world, loss, x):
    seen = []
    with world.student.flat.register_hook(lambda gradient: seen.append(gradient.clone())):
        loss.backward()
    return [*seen, x.grad]


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize(
    "ask", [asked_for_the_input, asked_for_the_input_by_name, asked_for_the_flat_one, seen_by_a_hook]
)  # fmt: skip
def test_passes_that_do_not_simply_add_to_the_flat_gradient_are_autograds_own(ask, held, monkeypatch):
    def found():
        world = World()
        x = world.inputs[0][0].requires_grad_()
        if held:
            world.student.flat.grad = torch.ones_like(world.student.flat)
        loss = world.loss(0)
        return [*ask(world, loss, x), world.student.flat.grad]

    ours = found()
    monkeypatch.setattr("hyper_sd.training.adapter_set.learning_parts", by_autograd)
    for a, b in zip(ours, found(), strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


@pytest.mark.parametrize("held", [False, True])
def test_pass_back_inside_another_one_takes_nothing_from_it(held, monkeypatch):
    def found():
        world = World()
        block, names = world.network.mid_block, ("student",)
        inner = block.forward

        def again(*args):
            with world.layers.using(*names):
                return inner(*args)

        block.forward = lambda *args: checkpoint(again, *args, use_reentrant=True)
        if held:
            world.student.flat.grad = torch.ones_like(world.student.flat)
        world.loss(0, 1).backward()
        return world.student.flat.grad

    ours = found()
    monkeypatch.setattr("hyper_sd.training.adapter_set.learning_parts", by_autograd)
    assert torch.allclose(ours, found(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("held", "most"), [(False, 1 / flat.AT_FIRST), (True, 1 / flat.AT_ONCE)])
def test_a_part_of_the_gradients_at_most_waits_for_the_flat_one(held, most, monkeypatch):
    world, waiting = World(), []
    inner = flat._Pass._pour

    def pour(self):
        largest = max(part.numel() for part in self.layout.parts_of(self.flat))
        if not self._views:
            waiting.append(self._count - largest)  # with the one that was too much
        assert self._count - largest <= most * self.layout.count
        inner(self)

    monkeypatch.setattr(flat._Pass, "_pour", pour)
    if held:
        world.student.flat.grad = torch.zeros_like(world.student.flat)
    world.loss(0).backward()
    assert len(waiting) == 1


def test_pass_back_that_fails_on_the_way_leaves_nothing_to_the_next():
    world, fails = World(), [True]

    def broken(grad):
        if fails.pop():
            raise KeyboardInterrupt

    world.network.mid_block.register_forward_hook(lambda module, args, output: output.register_hook(broken) and None)
    with pytest.raises(KeyboardInterrupt):
        world.loss(0).backward()
    assert world.student.flat.grad is None
    slot = next(pair.slot for pair in world.student.ready(torch.float32, True))
    assert not slot.gradient._passes  # nor does it hold memory
    fails.append(False)
    world.loss(0).backward()
    assert torch.equal(world.student.flat.grad, gradient("one pass"))


def test_layers_that_no_gradient_reaches_have_zeros_and_a_set_without_any_none():
    world = World()
    world.network.text.register_forward_hook(lambda module, args, output: output.detach())
    world.loss(0).backward()
    down, up = world.student.pairs_of(world.student.flat.grad)
    place = list(world.layers.layers).index("text")
    assert not down[place].any()
    assert not up[place].any()
    assert down[0].any()
    other = World()
    pair = other.student.ready(torch.float32, True)[0]
    nothing = torch.ones(2, requires_grad=True)
    (nothing.sum() + 0 * pair.down.detach().sum()).backward()
    assert other.student.flat.grad is None


def test_gradients_that_come_by_themselves_are_gathered_with_those_that_layers_give():
    world = World()
    world.loss(0).backward()
    alone = world.student.flat.grad.clone()
    world.student.flat.grad = None
    pair = world.student.ready(torch.float32, True)[0]
    (world.loss(0) + pair.down.sum()).backward()
    more = world.student.flat.grad - alone
    assert torch.allclose(world.student.pairs_of(more)[0][0], torch.ones_like(pair.down), atol=1e-5)
    assert int((more.abs() > 1e-5).sum()) == pair.down.numel()


def test_set_is_free_as_soon_as_nobody_holds_it():
    world = World()
    world.loss(0).backward()
    leaf = weakref.ref(world.student.flat)
    gc.disable()
    try:
        world.layers.detach()
        del world
        assert leaf() is None
    finally:
        gc.enable()
