"""The noise between the steps: the plain rule's values, drawn while a card computes, and a loop that waits for no card.

There need be no card. A device that takes part in name only stands in where values count, and torch's fake tensors of a CUDA
device where operators do: they have no values, so torch raises where one is read.
"""

import threading

import pytest
import torch
from hyper_sd.samplers import noise
from hyper_sd.samplers.noise import AHEAD, THREADS, noise_ahead, seeded_noise
from hyper_sd.samplers.tcd import plan_steps, sample_tcd
from hyper_sd.samplers.timesteps import hyper_sd_sigmas
from hyper_sd.tests.samplers.fakes import DIFFUSION, flow, host_model, normal
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

TIMESTEPS = [874.0, 749.0, 624.5, 499.0, 374.0, 249.0, 124.0]
SHAPES = [(1, 4, 8, 8), (3, 4, 8, 6), (2, 16, 5, 8, 8), (2, 64, 96), (1, 1, 3, 3), (2, 3)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
PATIENCE = 30.0  # seconds until a test gives up waiting for a thread
SEEDS_OF_GENERATORS = {
    (3, 759.0): 6937919287716802390,
    (0, 499.0): 3998898021323423766,
    (2**64 - 1, 259.25): 2070985993290650160,
    (5, 0.0): 7134611160154358618,
}


class Card:
    """What is asked for: how often pinned memory, and how many draws have begun."""

    def __init__(self):
        self.pinned, self.drawn, self.threads = 0, [], set()


@pytest.fixture
def card(monkeypatch):
    """Has the noise of a processor's latents drawn ahead as if they were on a card."""
    seen, draw = Card(), noise._draw

    def unpinned(x):
        seen.pinned += 1
        return torch.empty_like(x)

    def watched(shape, seeds, timestep, generator):
        seen.drawn.append(timestep)
        seen.threads.add(threading.current_thread().name)
        return draw(shape, seeds, timestep, generator)

    monkeypatch.setattr(noise, "draws_ahead", lambda device: True)
    monkeypatch.setattr(noise, "_pinned_like", unpinned)
    monkeypatch.setattr(noise, "_draw", watched)
    return seen


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(THREADS)]


def plain(shape, dtype, seed, timestep):
    """The rule in one line: a generator of the timestep's own, torch's normal noise, the latents' dtype."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(noise._mix(seed, timestep))).to(dtype)


def sample(schedule, x, steps=8, seed=3, part=slice(None), model=None, **options):
    sigmas = hyper_sd_sigmas(schedule, steps)[part].to(x.dtype)
    return sample_tcd(model or host_model(schedule), x, sigmas, {"seed": seed}, disable=True, schedule=schedule, **options)


@pytest.mark.parametrize("given", SEEDS_OF_GENERATORS)
def test_generators_seed_stays_what_it_was(given):
    assert noise._mix(*given) == SEEDS_OF_GENERATORS[given]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("inference", [False, True])
def test_noise_drawn_ahead_is_the_plain_rules_bit_for_bit(card, shape, dtype, inference):
    x = torch.zeros(shape, dtype=dtype)
    with torch.inference_mode(inference), noise_ahead(x, 3, TIMESTEPS) as ahead:
        at_once = seeded_noise(x, 3, TIMESTEPS)
        for timestep in TIMESTEPS:
            expected, found = plain(shape, dtype, 3, timestep), ahead(None, None)
            assert found.dtype == dtype
            assert torch.equal(found, expected)
            assert torch.equal(at_once(None, None), expected)
            assert found.add_(1).shape == shape  # the loop may write to it
    assert card.pinned == len(TIMESTEPS)


def test_noise_of_several_seeds_is_that_of_the_single_images(card):
    seeds, x = [5, 2**63, 7], torch.zeros(3, 4, 8, 8)
    with noise_ahead(x, seeds, TIMESTEPS) as ahead:
        for timestep in TIMESTEPS:
            assert torch.equal(ahead(), torch.cat([plain((1, 4, 8, 8), x.dtype, seed, timestep) for seed in seeds]))


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("split", [None, 1, 4, 7])
@pytest.mark.parametrize("schedule", [DIFFUSION, flow(3.0)], ids=["diffusion", "flow"])
def test_run_with_noise_drawn_ahead_equals_the_run_without(request, schedule, split, eta):
    x = normal(2, 4, 8, 8).float()
    expected = sample(schedule, x, eta=eta)
    seen = request.getfixturevalue("card")
    if split is None:
        assert torch.equal(sample(schedule, x, eta=eta), expected)
        assert sorted(seen.drawn) == sorted(set(seen.drawn))
        assert len(seen.drawn) == seen.pinned == 7
    else:
        half = sample(schedule, x, eta=eta, part=slice(split + 1))
        assert torch.equal(sample(schedule, half, eta=eta, part=slice(split, None)), expected)


def test_noise_without_a_seed_comes_from_the_global_generator(card):
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(sample(DIFFUSION, normal(1, 4, 8, 8), seed=None))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("options", [{"eta": 0.0}, {"steps": 1}, {"noise_sampler": lambda *_: torch.zeros(1, 4, 8, 8)}])
def test_nothing_is_drawn_where_no_noise_of_ours_is_added(card, options):
    sample(DIFFUSION, normal(1, 4, 8, 8), **options)
    assert (card.drawn, card.pinned) == ([], 0)


def test_noise_of_a_step_is_drawn_while_the_model_computes(card, monkeypatch):
    """The model of every step ends only when the next noise has been drawn, which a draw in the loop's thread never would."""
    x, began, draw = normal(1, 4, 8, 8).float(), [], noise._draw
    sigmas = hyper_sd_sigmas(DIFFUSION, 8)
    noisy = [step.next_timestep for step in plan_steps(DIFFUSION, sigmas, 0.3, 1) if step.noise > 0]
    done, calls = {timestep: threading.Event() for timestep in noisy}, iter(noisy)

    def finished(shape, seeds, timestep, generator):
        began.append(threading.current_thread() is threading.main_thread())
        result = draw(shape, seeds, timestep, generator)
        done[timestep].set()
        return result

    def model(x, sigma, **extra_args):
        timestep = next(calls, None)
        assert timestep is None or done[timestep].wait(PATIENCE)
        return x * 0.5

    monkeypatch.setattr(noise, "_draw", finished)
    sample(DIFFUSION, x, model=model)
    assert began == [False] * len(noisy)
    assert len(noisy) == 7


def test_only_few_draws_are_ahead_of_their_step(card):
    steps, x = 40, normal(1, 4, 8, 8).float()
    with noise_ahead(x, 3, [float(t) for t in range(steps)]) as ahead:
        for taken in range(steps):
            assert card.pinned == min(AHEAD + taken, steps)
            assert len(card.drawn) <= AHEAD + taken
            ahead()
    assert sorted(card.drawn) == [float(t) for t in range(steps)]
    assert len(card.threads) <= AHEAD


@pytest.mark.parametrize("ends", ["in the model", "in the callback", "with the last step"])
def test_no_thread_is_left_however_a_run_ends(card, ends):
    def model(x, sigma, **extra_args):
        assert threads()
        if ends == "in the model":
            raise RuntimeError(ends)
        return x * 0.5

    def callback(state):
        if ends == "in the callback":
            raise InterruptedError(ends)

    if ends == "with the last step":
        sample(DIFFUSION, normal(1, 4, 8, 8), model=model, callback=callback)
    else:
        with pytest.raises((RuntimeError, InterruptedError), match=ends):
            sample(DIFFUSION, normal(1, 4, 8, 8), model=model, callback=callback)
    assert threads() == []


def test_error_of_a_draw_reaches_the_run(card, monkeypatch):
    def fail(*_):
        raise MemoryError("no room for noise")

    monkeypatch.setattr(noise, "_draw", fail)
    with pytest.raises(MemoryError, match="no room for noise"):
        sample(DIFFUSION, normal(1, 4, 8, 8))
    assert threads() == []


@pytest.mark.parametrize("kind", ["cuda", "cpu", "mps", "xpu", "meta"])
def test_noise_is_drawn_ahead_for_cuda_alone(kind):
    assert noise.draws_ahead(torch.device(kind)) == (kind == "cuda")


class Copies(TorchDispatchMode):
    """Records every copy from the processor to a card, and every memory that is asked for as pinned."""

    def __init__(self):
        super().__init__()
        self.waiting, self.pinned = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "cpu":
            self.waiting.append(not kwargs.get("non_blocking"))
        if func is torch.ops.aten.empty.memory_format:
            self.pinned.append(bool(kwargs.get("pin_memory")))
        return func(*args, **kwargs)


@pytest.fixture
def on_a_fake_card(monkeypatch):
    """Samples 8 steps of latents of a CUDA device that has no values; returns them and what was copied."""

    def run(schedule, model, eta=0.3, dtype=torch.float32):
        sigmas = hyper_sd_sigmas(schedule, 8)
        plan = plan_steps(schedule, sigmas, eta, 1)
        monkeypatch.setattr("hyper_sd.samplers.tcd.plan_steps", lambda *_, **__: plan)  # reads the sigmas first
        monkeypatch.setattr(noise, "_draw_into", lambda memory, *_: memory)  # fake tensors are for one thread at a time
        with FakeTensorMode(allow_non_fake_inputs=True), Copies() as copies:
            x = torch.zeros(2, 4, 8, 8, dtype=dtype, device="cuda")
            levels = torch.zeros(9, device="cuda")
            return sample_tcd(model, x, levels, {"seed": 3}, disable=True, eta=eta, schedule=schedule), copies

    return run


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("schedule", [DIFFUSION, flow(3.0)], ids=["diffusion", "flow"])
def test_loop_on_a_card_reads_nothing_back_and_copies_without_waiting(on_a_fake_card, schedule, dtype, eta):
    result, copies = on_a_fake_card(schedule, lambda x, sigma, seed: x * sigma.mean(), eta, dtype)
    assert (result.device.type, result.dtype, result.shape) == ("cuda", dtype, (2, 4, 8, 8))
    noises = 7 if eta else 0
    assert copies.pinned == [True] * noises
    assert copies.waiting == [False] * noises


@pytest.mark.parametrize("read", [float, bool, torch.Tensor.item, torch.Tensor.tolist])
def test_fake_card_notices_what_is_read_back(on_a_fake_card, read):
    with pytest.raises((DataDependentOutputException, RuntimeError)):
        on_a_fake_card(DIFFUSION, lambda x, sigma, seed: x * read(sigma.mean()))
