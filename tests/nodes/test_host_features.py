"""What users combine with a sampler: masks, ControlNet, LoRA, progress and the stop button."""

import pytest
import torch


@pytest.mark.parametrize("steps", [1, 4])
def test_masked_out_area_keeps_the_input_latents(host, unet, positive, negative, steps):
    image = host.latent(seed=3)
    mask = torch.zeros(1, 1, host.SIZE * 8, host.SIZE * 8)
    mask[..., : host.SIZE * 4] = 1.0
    result = host.ksampler(unet, positive, negative, steps=steps, image={**image, "noise_mask": mask})
    half = host.SIZE // 2
    torch.testing.assert_close(result[..., half:], image["samples"][..., half:], rtol=0, atol=1e-5)
    assert (result[..., :half] - image["samples"][..., :half]).abs().mean() > 0.1


def test_masked_in_area_equals_a_full_run_when_the_mask_covers_everything(host, unet, positive, negative):
    image = host.latent(seed=3)
    mask = torch.ones(1, 1, host.SIZE * 8, host.SIZE * 8)
    masked = host.ksampler(unet, positive, negative, image={**image, "noise_mask": mask})
    torch.testing.assert_close(masked, host.ksampler(unet, positive, negative, image=image), rtol=0, atol=1e-4)


def test_controlnet_changes_the_result_when_its_strength_is_above_zero(host, unet, positive, negative):
    hint = torch.rand(1, host.SIZE * 8, host.SIZE * 8, 3, generator=torch.Generator().manual_seed(4))
    apply, net = host.nodes.ControlNetApplyAdvanced(), host.small_controlnet()
    plain = host.ksampler(unet, positive, negative, cfg=3.0)
    controlled = {}
    for strength in (0.0, 0.5, 1.0):
        conds = apply.apply_controlnet(positive, negative, net, hint, strength, 0.0, 1.0)
        controlled[strength] = host.ksampler(unet, *conds, cfg=3.0)
        assert torch.isfinite(controlled[strength]).all()
    assert torch.equal(controlled[0.0], plain)
    assert not torch.allclose(controlled[0.5], plain, atol=1e-2)
    assert not torch.allclose(controlled[1.0], controlled[0.5], atol=1e-2)


def test_controlnet_acts_in_its_share_of_the_steps_only(host, unet, positive, negative):
    hint = torch.rand(1, host.SIZE * 8, host.SIZE * 8, 3, generator=torch.Generator().manual_seed(4))
    net, seen = host.small_controlnet(), []
    net.control_model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(1), with_kwargs=True)
    conds = host.nodes.ControlNetApplyAdvanced().apply_controlnet(positive, negative, net, hint, 1.0, 0.0, 0.5)
    host.ksampler(unet, *conds)
    assert len(seen) == 2  # timesteps 999 and 759 of 999, 759, 499, 259


@pytest.fixture
def progress(host):
    """Sets the host's progress hook and clears it afterwards."""
    yield host.on_progress
    host.on_progress(None)
    host.comfy.model_management.interrupt_current_processing(False)


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_progress_is_reported_once_a_step(host, unet, positive, negative, progress, steps):
    reports = []
    progress(lambda value, total: reports.append((value, total)))
    host.ksampler(unet, positive, negative, steps=steps)
    assert reports == [(i + 1, steps) for i in range(steps)]


@pytest.mark.parametrize("stop_at", [1, 2, 4])
def test_interrupt_stops_within_the_step_and_the_next_run_works(host, unet, positive, negative, progress, stop_at):
    management = host.comfy.model_management
    model, calls = host.watched(unet)

    def press_stop(value, total):
        if value == stop_at:
            management.interrupt_current_processing()
        management.throw_exception_if_processing_interrupted()  # what the host's own hook does

    progress(press_stop)
    with pytest.raises(management.InterruptProcessingException):
        host.ksampler(model, positive, negative, cfg=5.0)
    assert {c.sigma for c in calls} == set(
        unet.get_model_object("model_sampling").sigmas[[999, 759, 499, 259][:stop_at]].tolist()
    )
    progress(None)
    after = host.ksampler(unet, positive, negative, cfg=5.0)
    assert torch.equal(after, host.ksampler(host.small_unet(), positive, negative, cfg=5.0))


def _kohya_lora(host, model, rank=2):
    """A LoRA over every attention projection, under kohya's names."""
    generator = torch.Generator().manual_seed(6)
    names = host.comfy.lora.model_lora_keys_unet(model.model, {})
    names = {key: name for name, key in names.items() if name.startswith("lora_unet_") and ".attn" in key}
    state, weights = {}, model.model.state_dict()
    for key, name in names.items():  # of its several names the one a key is listed with last
        rows, columns = weights[key].shape
        state[f"{name}.lora_up.weight"] = torch.randn(rows, rank, generator=generator) * 0.2
        state[f"{name}.lora_down.weight"] = torch.randn(rank, columns, generator=generator) * 0.2
        state[f"{name}.alpha"] = torch.tensor(float(rank))
    return state


def _sample(host, model, demo):
    _, clip, _ = demo
    conds = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("red apple", "")]
    return host.ksampler(model, *conds, steps=2, cfg=3.0)


def test_lora_matches_every_key_and_changes_the_result_when_stacked(host, demo, caplog):
    model, clip, _ = demo
    lora = _kohya_lora(host, model)
    once, _ = host.comfy.sd.load_lora_for_models(model, clip, dict(lora), 0.8, 0.0)
    twice, _ = host.comfy.sd.load_lora_for_models(once, clip, dict(lora), 0.5, 0.0)
    assert "not loaded" not in caplog.text.lower()
    assert len(once.patches) == len(lora) // 3 > 10
    assert all(len(patches) == 2 for patches in twice.patches.values())
    results = [_sample(host, patched, demo) for patched in (model, once, twice)]
    assert not torch.allclose(results[0], results[1], atol=1e-3)
    assert not torch.allclose(results[1], results[2], atol=1e-3)


def test_lora_leaves_the_model_bit_exact_when_it_is_taken_off(host, demo):
    model, clip, _ = demo
    before = _sample(host, model, demo)
    weights = {k: v.clone() for k, v in model.model.diffusion_model.state_dict().items()}
    patched, _ = host.comfy.sd.load_lora_for_models(model, clip, _kohya_lora(host, model), 1.0, 0.0)
    _sample(host, patched, demo)
    assert torch.equal(before, _sample(host, model, demo))
    now = model.model.diffusion_model.state_dict()
    assert all(torch.equal(weights[k], now[k]) for k in weights)
