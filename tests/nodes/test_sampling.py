"""The sampler and scheduler through the host's own sampling nodes."""

import inspect

import pytest
import torch

STEPS = [1, 2, 4, 8]


def _nodes_of(pack, model, steps, *, eta=0.3, num_segments=1, denoise=1.0):
    (sampler,) = pack["HyperSDSampler"].execute(eta, num_segments).args
    (sigmas,) = pack["HyperSDScheduler"].execute(model, steps, num_segments, denoise).args
    return sampler, sigmas


@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("steps", STEPS)
def test_latents_are_bit_equal_in_ksampler_and_sampler_custom(host, pack, unet, positive, negative, steps, cfg):
    sampler, sigmas = _nodes_of(pack, unet, steps)
    whole = host.ksampler(unet, positive, negative, steps=steps, cfg=cfg)
    assert torch.isfinite(whole).all()
    assert torch.equal(whole, host.custom(unet, positive, negative, sampler, sigmas, cfg=cfg))


@pytest.mark.parametrize("sampling", ["eps", "v_prediction"])
def test_latents_are_the_same_when_noise_is_drawn_ahead_for_a_card(host, unet, positive, negative, monkeypatch, sampling):
    from hyper_sd.samplers import noise

    model, pinned = host.with_sampling(unet, sampling), []
    expected = host.ksampler(model, positive, negative, steps=8)
    monkeypatch.setattr(noise, "draws_ahead", lambda device: True)
    monkeypatch.setattr(noise, "_pinned_like", lambda x: pinned.append(x.shape) or torch.empty_like(x))
    assert torch.equal(host.ksampler(model, positive, negative, steps=8), expected)
    assert len(pinned) == 7


def test_loop_takes_no_more_operators_than_the_hosts_lcm_and_waits_for_none_of_them(host):
    from hyper_sd.benchmarks.sampler_overhead import OURS, PEER, load_host, measure

    found = measure(load_host(), "cpu", repeats=2)["samplers"]
    assert found[OURS]["operators_per_step"] <= 0.6 * found[PEER]["operators_per_step"]
    assert found[OURS]["allocations_per_step"] <= found[PEER]["allocations_per_step"]
    assert found[OURS]["waiting_operators"] == []


def test_eta_default_is_the_same_in_node_and_dropdown(pack):
    from hyper_sd.samplers.tcd import sample_tcd

    inputs = {i.id: i for i in pack["HyperSDSampler"].define_schema().inputs}
    parameters = inspect.signature(sample_tcd).parameters
    assert inputs["eta"].default == parameters["eta"].default == 0.3
    assert inputs["num_segments"].default == parameters["num_segments"].default == 1


def test_scheduler_gives_the_trailing_grid_when_segments_equal_steps(pack, unet):
    _, sigmas = _nodes_of(pack, unet, 4, num_segments=4)
    table = unet.get_model_object("model_sampling").sigmas
    assert torch.equal(sigmas, torch.cat([table[[999, 749, 499, 249]], torch.zeros(1)]))


def test_eta_has_no_effect_when_segments_equal_steps(host, pack, unet, positive, negative):
    results = []
    for eta in (0.0, 1.0):
        sampler, sigmas = _nodes_of(pack, unet, 4, eta=eta, num_segments=4)
        results.append(host.custom(unet, positive, negative, sampler, sigmas))
    assert torch.equal(*results)


def test_eta_changes_the_result_when_there_is_one_segment(host, pack, unet, positive, negative):
    results = []
    for eta in (0.0, 1.0):
        sampler, sigmas = _nodes_of(pack, unet, 4, eta=eta)
        results.append(host.custom(unet, positive, negative, sampler, sigmas))
    assert not torch.allclose(*results, atol=1e-2)


def test_ksampler_slices_the_grid_where_the_node_cuts_it_anew(host, pack, unet, positive, negative):
    """KSampler runs the tail of a longer grid, so 4 steps at denoise 0.7 start at timestep 799; the node starts at 699."""
    image, table = host.latent(seed=3), unet.get_model_object("model_sampling").sigmas
    model, calls = host.watched(unet)
    host.ksampler(model, positive, negative, image=image, denoise=0.7)
    assert [c.sigma for c in calls] == [table[t].item() for t in (799, 599, 399, 199)]
    calls.clear()
    sampler, sigmas = _nodes_of(pack, model, 4, denoise=0.7)
    host.custom(model, positive, negative, sampler, sigmas, image=image)
    assert [c.sigma for c in calls] == [table[t].item() for t in (699, 539, 359, 179)]


@pytest.mark.parametrize("denoise", [0.5, 0.25])
def test_image_to_image_starts_from_the_image_noised_to_the_first_sigma(host, pack, unet, positive, negative, denoise):
    image = host.latent(seed=3)
    model, calls = host.watched(unet)
    sampler, sigmas = _nodes_of(pack, model, 4, denoise=denoise)
    assert sigmas[0] == unet.get_model_object("model_sampling").sigmas[int(1000 * denoise) // 20 * 20 - 1]
    host.custom(model, positive, negative, sampler, sigmas, image=image)
    scaled = image["samples"] * unet.model.latent_format.scale_factor
    torch.testing.assert_close(calls[0].x, scaled + sigmas[0] * host.initial_noise(image), rtol=0, atol=1e-6)
    assert len(calls) == 4


def test_pure_noise_start_has_the_models_full_scale(host, unet, positive, negative):
    model, calls = host.watched(unet)
    host.ksampler(model, positive, negative)
    top = unet.get_model_object("model_sampling").sigma_max
    torch.testing.assert_close(calls[0].x, host.initial_noise(host.latent()) * (1 + top**2).sqrt())


def test_same_seed_gives_the_same_latents(host, unet, positive, negative):
    first = host.ksampler(unet, positive, negative, seed=11)
    host.ksampler(unet, positive, negative, seed=12)
    torch.manual_seed(99)
    assert torch.equal(first, host.ksampler(unet, positive, negative, seed=11))


def test_different_seeds_give_different_latents(host, unet, positive, negative):
    first, second = (host.ksampler(unet, positive, negative, seed=seed) for seed in (11, 12))
    assert not torch.allclose(first, second, atol=1e-2)


@pytest.mark.parametrize("seed", [0, 5, 2**64 - 1])
def test_step_noise_differs_from_initial_noise_and_from_step_to_step(host, unet, positive, negative, draws, seed):
    host.ksampler(unet, positive, negative, steps=8, seed=seed)
    assert len(draws) == 7
    everything = [host.initial_noise(host.latent(), seed), *draws]
    flat = torch.stack(everything).flatten(1)
    correlation = torch.corrcoef(flat) - torch.eye(len(flat))
    assert correlation.abs().max() < 0.2  # 1024 independent values: deviation 0.03


def test_batch_of_three_holds_three_different_images(host, unet, positive, negative):
    batch = host.ksampler(unet, positive, negative, image=host.latent(batch=3))
    assert batch.shape == (3, 4, host.SIZE, host.SIZE)
    assert min((batch[a] - batch[b]).abs().max() for a, b in ((0, 1), (0, 2), (1, 2))) > 1e-2


def test_negative_prompt_is_not_evaluated_at_cfg_one(host, unet, positive, negative):
    model, calls = host.watched(unet)
    host.ksampler(model, positive, negative, cfg=1.0)
    assert [(c.batch, c.kinds) for c in calls] == [(1, [0])] * 4


def test_negative_prompt_is_evaluated_above_cfg_one(host, unet, positive, negative):
    model, calls = host.watched(unet)
    host.ksampler(model, positive, negative, cfg=5.0)
    assert sum(c.batch for c in calls) == 8
    assert sorted(kind for c in calls for kind in c.kinds) == [0] * 4 + [1] * 4


def test_split_run_equals_the_whole_one(host, unet, positive, negative):
    whole = host.ksampler(unet, positive, negative)
    node, common = host.nodes.KSamplerAdvanced(), ("hyper_sd_tcd", "hyper_sd", positive, negative)
    (half,) = node.sample(unet, "enable", 5, 4, 1.0, *common, host.latent(), 0, 2, "enable")
    (joined,) = node.sample(unet, "disable", 5, 4, 1.0, *common, half, 2, 10000, "disable")
    torch.testing.assert_close(joined["samples"], whole, rtol=1e-4, atol=1e-4)


def test_too_few_steps_for_the_segments_raise_the_schedule_error(pack, unet):
    from hyper_sd.errors import ScheduleError

    with pytest.raises(ScheduleError, match="2 steps cannot visit 4 segments; use at least 4 steps, or fewer segments"):
        pack["HyperSDScheduler"].execute(unet, 2, 4, 1.0)


def test_eta_out_of_range_raises_before_the_model_runs(host, pack, unet, positive, negative):
    from hyper_sd.errors import ScheduleError

    model, calls = host.watched(unet)
    sampler, sigmas = _nodes_of(pack, model, 4, eta=1.3)
    with pytest.raises(ScheduleError, match=r"eta must lie in \[0, 1\], got 1.3"):
        host.custom(model, positive, negative, sampler, sigmas)
    assert not calls
