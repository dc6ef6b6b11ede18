import dataclasses

import pytest
import torch
from diffusers import UNet2DConditionModel
from hyper_sd.errors import TrainingError
from hyper_sd.samplers.schedule import NoiseSchedule
from hyper_sd.tests.training.fakes import SMALL, make_denoiser, make_examples
from hyper_sd.training.config import Stage, TrainingConfig
from hyper_sd.training.data.examples import LatentExamples
from hyper_sd.training.denoiser import Denoiser
from hyper_sd.training.diffusion import Diffusion
from hyper_sd.training.engine import LocalEngine
from hyper_sd.training.kept import Ledger
from hyper_sd.training.lora_layers import LoraLayers
from hyper_sd.training.memory import HEADROOM, Activations, MemoryEstimate, estimate, fit
from hyper_sd.training.objectives.discriminator import Features, Heads
from hyper_sd.training.plain_config import differences, to_plain
from hyper_sd.training.recompute import recomputing
from hyper_sd.training.run import Run

CONFIG = TrainingConfig((Stage(1, 1),), batch_size=4, rank=4)
GB = 10**9


def unet():
    torch.manual_seed(0)
    network = UNet2DConditionModel(**SMALL)
    return Denoiser(network, Diffusion.from_schedule(NoiseSchedule.from_betas()))


def texts(count):
    return {"context": torch.randn(count, 77, 6, generator=torch.Generator().manual_seed(2))}


def counted(denoiser, layers, count, height, width):
    """The unique storages that autograd keeps at full size, in bytes."""
    denoiser.network.requires_grad_(False)
    own = {p.data_ptr() for p in [*denoiser.network.parameters(), *layers.sets["student"].parameters()]}
    storages = {}

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x, t = torch.randn(count, 4, height, width), torch.full((count,), 300)
    with layers.using("student"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        answer = denoiser.predict(x, t, texts(count))
    assert answer.requires_grad
    return sum(size for pointer, size in storages.items() if pointer not in own)


@pytest.mark.parametrize("processor", ["flash", "matrix"])
@pytest.mark.parametrize(("height", "width"), [(48, 64), (16, 24)])
def test_estimate_is_the_truth_at_full_size(processor, height, width):
    denoiser = unet()
    if processor == "matrix":  # attention that keeps its matrix grows with the square of the area
        from diffusers.models.attention_processor import AttnProcessor

        denoiser.network.set_attn_processor(AttnProcessor())
    layers = LoraLayers(denoiser.network, 4)
    found = estimate(denoiser, layers, CONFIG, (4, height, width), texts(1))
    layers.add("student")
    assert found.plain.of(4) == pytest.approx(counted(denoiser, layers, 4, height, width), rel=0.15)


def test_checkpointed_estimate_is_the_inputs_and_the_largest_block():
    denoiser = unet()
    layers = LoraLayers(denoiser.network, 4)
    found = estimate(denoiser, layers, CONFIG, (4, 64, 64), texts(1))
    layers.add("student")
    with recomputing(denoiser.network, layers):
        inputs = counted(denoiser, layers, 4, 64, 64)
    assert inputs < found.recomputed.of(4) < found.plain.of(4)
    assert found.recomputed.of(4) - inputs < 0.5 * found.plain.of(4)


def test_what_blocks_keep_as_inputs_is_the_truth_at_full_size(monkeypatch):
    denoiser = unet()
    layers = LoraLayers(denoiser.network, 4)
    monkeypatch.setattr("hyper_sd.training.kept.Ledger.sums", without_blocks(Ledger.sums))
    found = estimate(denoiser, layers, CONFIG, (4, 64, 64), texts(1))
    layers.add("student")
    with recomputing(denoiser.network, layers):
        assert found.recomputed.of(4) == pytest.approx(counted(denoiser, layers, 4, 64, 64), rel=0.02)


def without_blocks(sums):
    """Ledger.sums, as if nothing were kept while a block is computed again."""

    def changed(*args):
        found = sums(*args)
        return torch.cat([found[:2], 0 * found[2:]])

    return changed


def test_a_step_is_tried_in_four_passes():
    denoiser, seen = unet(), []
    denoiser.network.register_forward_pre_hook(lambda *_: seen.append(1))
    estimate(denoiser, 4, CONFIG, (4, 64, 64), texts(1))
    assert len(seen) == 4


def test_estimate_scales_with_the_examples_at_once():
    denoiser = unet()
    whole, parts = (estimate(denoiser, 4, dataclasses.replace(CONFIG, accumulation=n), (4, 32, 32), texts(2)) for n in (1, 4))
    assert whole == parts
    all_at_once, one_at_a_time = (whole.needed(dataclasses.replace(CONFIG, accumulation=n)) for n in (1, 4))
    saved = all_at_once - (one_at_a_time - whole.gradients)  # which stay from part to part
    assert saved == pytest.approx(3 * HEADROOM * whole.plain.each, rel=1e-6)


@pytest.mark.parametrize(("names", "copies"), [([], 4), (["student"], 4), (["teacher"], 5), (["student", "teacher"], 5)])
def test_adapters_are_counted_as_they_are_kept(names, copies):
    denoiser = unet()
    layers = LoraLayers(denoiser.network, 4)
    for name in names:
        layers.add(name)
    found = estimate(denoiser, layers, CONFIG, (4, 8, 8), texts(1)).adapters
    assert found == estimate(denoiser, 4, CONFIG, (4, 8, 8), texts(1), teacher="teacher" in names).adapters
    assert found == copies * 4 * sum(p.numel() for p in layers.add("one").parameters())


def test_plain_denoising_is_counted_without_a_target():
    denoiser, plain = unet(), dataclasses.replace(CONFIG, objective="finetune")
    both = [estimate(denoiser, 4, config, (4, 8, 8), texts(1)).adapters for config in (CONFIG, plain)]
    assert both[1] == both[0] * 3 / 4


@pytest.mark.parametrize(("optimizer", "moments"), [("adamw", 8), ("adamw8bit", 2)])
def test_adapters_in_half_precision_are_counted_with_their_copies_and_moments(optimizer, moments):
    denoiser, config = unet(), dataclasses.replace(CONFIG, precision="bf16", optimizer=optimizer)
    denoiser.network.to(torch.bfloat16)
    weights = LoraLayers(denoiser.network, 4).add("one").flat.numel()
    found = estimate(denoiser, 4, config, (4, 8, 8), texts(1))
    assert found.adapters == weights * (2 * (4 + 2) + moments)
    assert (found.gradients, found.ending) == (4 * weights, 2 * weights // 4 + 4 * weights)


def test_a_run_holds_what_the_estimate_says_of_its_adapters():
    config = dataclasses.replace(CONFIG, precision="bf16", batch_size=1, guidance_scale=(1.0, 1.0))
    denoiser, latents = unet(), torch.randn(2, 4, 8, 8)
    denoiser = dataclasses.replace(denoiser, half_dtype=torch.bfloat16)
    denoiser.network.to(torch.bfloat16)
    layers = LoraLayers(denoiser.network, 4)
    examples = LatentExamples(latents, texts(2), {})
    run = Run(config, denoiser, layers, examples, LocalEngine("cpu", "bf16"), None)
    held = {}
    kept = [run._update, layers.sets["student"].flat]

    def update(optimizer, losses):
        for adapters in layers.sets.values():
            held.update(
                {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (adapters.flat, *adapters.copies)}
            )
        gradient = kept[1].grad
        assert gradient.dtype == torch.float32
        kept[0](optimizer, losses)
        held.update({t.data_ptr(): t.nbytes for t in optimizer.state[kept[1]].values() if t.ndim})

    run._update = update
    with denoiser.frozen():
        run.advance()
    assert sum(held.values()) == estimate(denoiser, 4, config, (4, 8, 8), texts(1)).adapters


def test_gradients_that_stay_are_counted_and_so_is_what_comes_at_the_end_of_a_pass():
    found = dataclasses.replace(FOUND, gradients=GB, ending=3 * GB)
    once, kept = dataclasses.replace(CONFIG, batch_size=1), round(HEADROOM * 2 * GB)
    assert found.needed(once) == GB + kept - kept // 4 + 3 * GB
    assert dataclasses.replace(found, ending=0).needed(once) == GB + kept
    assert dataclasses.replace(found, records=True).needed(once) == 2 * GB + kept
    assert found.needed(dataclasses.replace(CONFIG, accumulation=2)) == 2 * GB + round(HEADROOM * 4 * GB)


def test_discriminator_is_counted_with_its_heads_and_the_second_look():
    judged = dataclasses.replace(CONFIG, stages=(Stage(1, 1, adversarial_weight=0.1),))
    denoiser = unet()
    plain, found = (estimate(denoiser, 4, config, (4, 32, 32), texts(1)) for config in (CONFIG, judged))
    layers = LoraLayers(denoiser.network, 4)
    with torch.no_grad():
        seen = Features(denoiser, layers)(torch.zeros(1, 4, 32, 32), torch.tensor([500]), texts(1))
    weights = sum(p.numel() for p in Heads([feature.shape[1] for feature in seen]).parameters())

    assert (plain.heads, found.heads) == (0, weights)
    assert found.adapters - plain.adapters == 3 * 4 * weights  # with two moments
    assert found.gradients - plain.gradients == 4 * weights
    assert 1.1 < found.plain.of(4) / plain.plain.of(4) < 2  # the encoder once more


def test_discriminator_is_counted_for_a_network_kept_in_bf16():
    judged = dataclasses.replace(CONFIG, stages=(Stage(1, 1, adversarial_weight=0.1),), precision="bf16")
    denoiser = unet()
    full = estimate(denoiser, 4, judged, (4, 16, 24), texts(1)).heads
    denoiser.network.to(torch.bfloat16)
    assert estimate(denoiser, 4, judged, (4, 16, 24), texts(1)).heads == full > 0


def test_estimate_leaves_nothing_behind():
    denoiser = unet()
    denoiser.network.mid_block.requires_grad_(False)
    flags = [p.requires_grad for p in denoiser.network.parameters()]
    layers = LoraLayers(denoiser.network, 4)

    def hooks():
        return [(len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for m in denoiser.network.modules()]

    before = hooks()
    estimate(denoiser, layers, CONFIG, (4, 32, 32), texts(1))
    estimate(denoiser, 3, CONFIG, (4, 8, 8), texts(1))
    estimate(denoiser, 3, dataclasses.replace(CONFIG, stages=(Stage(1, 1, adversarial_weight=0.1),)), (4, 32, 32), texts(1))
    assert hooks() == before
    assert layers.sets == {}
    assert layers.active == ()
    assert [p.requires_grad for p in denoiser.network.parameters()] == flags
    assert all(p.grad is None for p in denoiser.network.parameters())


def test_error_in_the_network_leaves_nothing_behind():
    denoiser = unet()
    layers = LoraLayers(denoiser.network, 4)
    with pytest.raises(RuntimeError):
        estimate(denoiser, layers, CONFIG, (4, 32, 32), {"context": torch.zeros(1, 7, 5)})
    assert layers.sets == {}
    assert not any(m._forward_pre_hooks for m in denoiser.network.modules())


def test_mixed_precision_takes_less():
    plain, mixed = (
        estimate(unet(), 4, dataclasses.replace(CONFIG, precision=p), (4, 64, 64), texts(1)) for p in ("fp32", "bf16")
    )
    assert mixed.plain.of(4) < 0.9 * plain.plain.of(4)
    assert mixed.plain.fixed > plain.plain.fixed  # weights are cast


def test_network_of_any_kind_and_dtype_is_measured():
    measured = {}
    for dtype in (torch.float32, torch.float64):
        denoiser, examples = make_denoiser(dtype=dtype), make_examples(2, dtype)
        layers = LoraLayers(denoiser.network, 2)
        measured[dtype] = estimate(denoiser, layers, CONFIG, examples.latents.shape, examples.conditioning)
    single, double = measured.values()
    assert double.plain.each == 2 * single.plain.each > 4 * 2 * 4 * 4  # latents of 2 x 4 x 4 alone take as much


FOUND = MemoryEstimate(adapters=GB, plain=Activations(0, 2 * GB), recomputed=Activations(0, GB))


@pytest.mark.parametrize(("free", "checkpointing", "accumulation"), [
    (20.0, False, 1), (1 + 8 * HEADROOM + 0.01, False, 1), (1 + 8 * HEADROOM - 0.01, True, 1),
    (1 + 4 * HEADROOM - 0.01, True, 2), (1 + HEADROOM + 0.01, True, 4),
])  # fmt: skip
def test_settings_change_as_little_as_lets_them_fit(free, checkpointing, accumulation):
    fitted = fit(FOUND, free * GB, CONFIG)
    assert (fitted.gradient_checkpointing, fitted.accumulation) == (checkpointing, accumulation)
    assert differences(fitted, to_plain(CONFIG)) == []


def test_what_cannot_fit_names_gigabytes_and_remedies():
    words = r"needs 2\.15 GB of free memory even one example at a time, and 2\.00 GB are free\..*images; lower rank \(now 4\)"
    with pytest.raises(TrainingError, match=words):
        fit(FOUND, 2.0 * GB, CONFIG)


def test_recomputing_that_saves_nothing_is_not_turned_on():
    same = dataclasses.replace(FOUND, recomputed=FOUND.plain)
    fitted = fit(same, 6 * GB, CONFIG)
    assert (fitted.gradient_checkpointing, fitted.accumulation) == (False, 2)


def test_stage_for_one_step_is_counted_with_its_fake_score_and_every_pass_of_its_loss():
    once = dataclasses.replace(CONFIG, stages=(Stage(1, 1, distance_weight=0.0, score_weight=0.5, pair_weight=1.0),))
    mixed = dataclasses.replace(once, stages=(Stage(1, 1, score_weight=0.5, pair_weight=1.0),))
    plain, found = (estimate(unet(), 4, config, (4, 8, 8), texts(1)) for config in (CONFIG, once))
    assert found.adapters == plain.adapters * 6 / 4  # the fake score's weights and two moments, and no moving average
    assert (found.plain, found.recomputed) == (plain.plain, plain.recomputed)
    passes = [(FOUND.needed(config) - FOUND.adapters) / (FOUND.needed(CONFIG) - FOUND.adapters) for config in (once, mixed)]
    assert passes == [2, 3]
