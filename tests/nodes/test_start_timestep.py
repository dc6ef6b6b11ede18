"""The start timestep of the nodes on the real host: exact unit noise below 999, and what an image starts from."""

import pytest
import torch
from hyper_sd.errors import ScheduleError, UnsupportedModelError
from safetensors.torch import save_file


def load(pack, model, steps=1, variant="unified", **options):
    return pack["HyperSDLoraLoader"].execute(model, steps, variant, 0.0, **options).args


def first_x(host, model, sampler, sigmas, image, conditioning):
    """What the model is first asked about, before the host scales it for the network; and the latents."""
    watched, calls = host.watched(model)
    host.custom(watched, conditioning, conditioning, sampler, sigmas, image=image)
    return calls[0].x, [call.sigma for call in calls]


def unit(x, sigma):
    """x in the scale of training, where noise has deviation 1."""
    return x / (1 + sigma**2) ** 0.5


@pytest.mark.parametrize(("start", "steps"), [(800, 1), (700, 1), (950, 1), (800, 4), (999, 1)])
def test_an_empty_latent_starts_from_exact_unit_noise(host, pack, unet, own, positive, start, steps):
    model, sampler, sigmas, _, text = load(pack, unet, steps, lora_name=own[0], start_timestep=start)
    x, levels = first_x(host, model, sampler, sigmas, host.latent(), positive)
    torch.testing.assert_close(unit(x, levels[0]), host.initial_noise(host.latent()), rtol=0, atol=1e-6)
    assert levels[0] == unet.get_model_object("model_sampling").sigmas[start].item()
    assert len(levels) == steps
    assert ("as you chose" in text) == (start != 999)
    assert (f"from timestep {start}," in text) == (start != 999)


@pytest.mark.parametrize("steps", [1, 4])
def test_zero_is_the_files_own_start(host, pack, unet, own, positive, steps):
    plain = load(pack, unet, steps, lora_name=own[0])
    zero = load(pack, unet, steps, lora_name=own[0], start_timestep=0)
    assert torch.equal(plain[2], zero[2])
    assert plain[4] == zero[4]
    assert torch.equal(*(host.custom(made[0], positive, positive, made[1], made[2]) for made in (plain, zero)))


@pytest.mark.parametrize(("denoise", "first"), [(0.5, 499), (0.9, 800), (1.0, 800)])
def test_an_image_starts_from_its_own_diffusion(host, pack, unet, own, positive, denoise, first):
    image = host.latent(seed=3)
    model, sampler, sigmas, _, _ = load(pack, unet, 1, lora_name=own[0], denoise=denoise, start_timestep=800)
    x, levels = first_x(host, model, sampler, sigmas, image, positive)
    assert levels == [unet.get_model_object("model_sampling").sigmas[first].item()]
    scaled = unet.model.process_latent_in(image["samples"])
    torch.testing.assert_close(x, scaled + levels[0] * host.initial_noise(image), rtol=1e-6, atol=1e-6)


def test_below_denoise_1_the_start_is_the_hosts_as_before(host, pack, unet, own, positive):
    made = [load(pack, unet, 2, lora_name=own[0], denoise=0.5, start_timestep=start) for start in (0, 800)]
    assert torch.equal(made[0][2], made[1][2])
    one, other = (first_x(host, model, sampler, sigmas, host.latent(), positive)[0] for model, sampler, sigmas, *_ in made)
    assert torch.equal(one, other)


@pytest.mark.parametrize(("variant", "name"), [("auto", "one_step"), ("n-step", "one_step"), ("unified", "1step")])
def test_one_step_of_the_embedded_model_starts_at_800(host, pack, demo, variant, name):
    model, sampler, sigmas, cfg, text = load(pack, demo[0], 1, variant)
    assert text.startswith(f"hyper_sd_demo_{name}_lora.safetensors, strength 1, 1 step, ")
    assert "tcd grid from timestep 800, 1 segment" in text
    x, levels = first_x(
        host, model, sampler, sigmas, host.latent(), demo[1].encode_from_tokens_scheduled(demo[1].tokenize("fox"))
    )
    torch.testing.assert_close(unit(x, levels[0]), host.initial_noise(host.latent()), rtol=0, atol=1e-6)
    assert (cfg, levels) == (1.0, [demo[0].get_model_object("model_sampling").sigmas[800].item()])


def test_a_file_that_was_trained_for_one_step_brings_its_start(worlds, pack, unet, loras):
    metadata = {"hyper_sd_stages": "8-4-2-1", "hyper_sd_start_timestep": "750"}
    save_file(worlds.small_lora(unet), loras / "one.safetensors", metadata)
    _, sampler, sigmas, cfg, text = load(pack, unet, 1, "auto", lora_name="one.safetensors")
    assert sigmas.tolist() == [unet.get_model_object("model_sampling").sigmas[750].item(), 0.0]
    assert (sampler.extra_options, cfg) == ({"eta": 0.0, "num_segments": 1, "to_clean": False}, 1.0)
    assert "was made for exactly 1 step, from timestep 750. (its own training)" in text
    text = load(pack, unet, 4, "auto", lora_name="one.safetensors")[4]
    assert "for exactly 1 step, from timestep 750: set steps to 1" in text


def test_a_start_is_refused_on_a_flow_model_and_where_too_few_timesteps_are_left(host, pack, unet, loras, own):
    with pytest.raises(ScheduleError, match="start_timestep 2 leaves 3 timesteps, too few for 4 steps"):
        load(pack, unet, 4, lora_name=own[0], start_timestep=2)
    with pytest.raises(UnsupportedModelError, match=r"start_timestep is for SD1\.5 and SDXL; on SD3"):
        load(pack, host.small_mmdit(), 4, "auto", lora_name=own[0], start_timestep=800)


@pytest.mark.parametrize("start", [0, 1000, float("nan"), 800.5, True, "800", None])
def test_start_outside_of_its_input_that_is_wired_in_is_refused(pack, unet, start):
    words = rf"start_timestep must be a whole number from 1 to 999, got {start!r}; use 999 for released LoRAs, 800 for"
    with pytest.raises(ScheduleError, match=words):
        pack["HyperSDScheduler"].execute(unet, 1, 1, 1.0, start_timestep=start)
    with pytest.raises(ScheduleError, match=words):  # before any file is read
        pack["HyperSDOneStepLoader"].execute("diffusion_models/none.safetensors", start_timestep=start)


@pytest.mark.parametrize(("start", "steps"), [(800, 1), (999, 2), (650, 4)])
def test_scheduler_and_sampler_start_from_exact_unit_noise(host, pack, unet, positive, start, steps):
    (sampler,) = pack["HyperSDSampler"].execute(0.3, 1).args
    (sigmas,) = pack["HyperSDScheduler"].execute(unet, steps, 1, 1.0, start_timestep=start).args
    x, levels = first_x(host, unet, sampler, sigmas, host.latent(), positive)
    torch.testing.assert_close(unit(x, levels[0]), host.initial_noise(host.latent()), rtol=0, atol=1e-6)
    assert levels[0] == unet.get_model_object("model_sampling").sigmas[start].item()


def test_saved_workflows_without_the_input_give_the_same_noise_levels(pack, unet):
    before = pack["HyperSDScheduler"].execute(unet, 4, 1, 0.7, "sigma 0").args[0]
    assert torch.equal(before, pack["HyperSDScheduler"].execute(unet, 4, 1, 0.7, "sigma 0", 999).args[0])
    for name in ("HyperSDLoraLoader", "HyperSDScheduler"):
        *_, start, last = pack[name].define_schema().inputs
        assert (start.id, start.optional, last.optional) == ("start_timestep", True, True)
