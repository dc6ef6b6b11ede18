"""Strength per step through the real host's hooks: every step has its own, whatever the schedule."""

import pytest
import torch
from hyper_sd.errors import ScheduleError

CURVES = {"linear": [1.0, 2 / 3, 1 / 3, 0.0], "list": [0.2, 1.5, 0.7, 0.7]}


@pytest.fixture
def own(worlds, host, unet, tmp_path, monkeypatch):
    """The name of a LoRA for the small UNet, in a loras folder of its own; a small change, so that images stay finite."""
    import folder_paths

    kind = folder_paths.folder_names_and_paths["loras"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], kind))
    folder_paths.filename_list_cache.pop("loras", None)
    yield worlds.write(tmp_path / "own.safetensors", worlds.small_lora(unet, scale=0.1))
    folder_paths.filename_list_cache.pop("loras", None)


def sigmas_of(model, name, denoise):
    """Returns four steps of one of the host's schedulers, or of the pack's."""
    import comfy.samplers

    whole = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), name, int(4 / denoise))
    return whole[-5:]


def schedule(pack, model, sigmas, positive, negative, name, curve, start=1.0, end=0.0, strengths="0.2, 1.5, 0.7"):
    return pack["HyperSDLoraSchedule"].execute(model, sigmas, positive, negative, name, curve, start, end, strengths).args


def used_strengths(model, sigmas, host, conds, seed=5):
    """Samples with Euler and returns the image and the strength that each of the network's calls was made with."""
    import comfy.samplers

    watched, strengths = model.clone(), []

    def wrapper(apply_model, arguments):
        patcher = watched.model.current_patcher
        strengths.append({keyframes.strength for keyframes in _keyframes(patcher)})
        return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    watched.set_model_unet_function_wrapper(wrapper)
    sampler = comfy.samplers.sampler_object("euler")
    return host.custom(watched, *conds, sampler, sigmas, seed=seed), strengths


def _keyframes(patcher):
    return [hook.hook_keyframe for hook in patcher.current_hooks.hooks] if patcher.current_hooks else []


@pytest.mark.parametrize("denoise", [1.0, 0.5])
@pytest.mark.parametrize("name", ["hyper_sd", "sgm_uniform", "karras", "simple", "beta"])
@pytest.mark.parametrize("curve", CURVES)
def test_every_step_is_sampled_with_its_own_strength(host, pack, unet, own, positive, negative, name, denoise, curve):
    sigmas = sigmas_of(unet, name, denoise)
    conds = schedule(pack, unet, sigmas, positive, negative, own, curve)
    image, used = used_strengths(unet, sigmas, host, conds)
    assert all(len(strengths) == 1 for strengths in used)
    assert [strengths.pop() for strengths in used] == pytest.approx(CURVES[curve])
    assert torch.isfinite(image).all()


def test_constant_strength_equals_the_loader(host, pack, unet, own, positive, negative):
    import comfy.samplers

    sigmas, euler = sigmas_of(unet, "hyper_sd", 1.0), comfy.samplers.sampler_object("euler")
    conds = schedule(pack, unet, sigmas, positive, negative, own, "constant", start=0.8)
    patched = pack["HyperSDLoraLoader"].execute(unet, 4, "unified", 0.8, lora_name=own).args[0]
    wanted = host.custom(patched, positive, negative, euler, sigmas)
    torch.testing.assert_close(host.custom(unet, *conds, euler, sigmas), wanted, rtol=1e-4, atol=1e-4)


def test_each_step_equals_a_step_of_the_model_merged_at_that_strength(host, pack, unet, own, positive, negative):
    """Euler by hand: every step on a MODEL that the loader patched with the step's strength."""
    import comfy.samplers

    sigmas, euler = sigmas_of(unet, "karras", 1.0), comfy.samplers.sampler_object("euler")
    conds = schedule(pack, unet, sigmas, positive, negative, own, "list")
    found = host.custom(unet, *conds, euler, sigmas)
    x = None
    for step, strength in enumerate(CURVES["list"]):
        model = pack["HyperSDLoraLoader"].execute(unet, 4, "unified", strength, lora_name=own).args[0]
        watched, calls = host.watched(model)
        if x is None:
            x = host.initial_noise(host.latent()) * (1 + sigmas[0] ** 2) ** 0.5
        denoised = denoise_once(watched, x, sigmas[step], positive)
        x = x + (x - denoised) / sigmas[step] * (sigmas[step + 1] - sigmas[step])
        assert len(calls) == 1
    torch.testing.assert_close(found, unet.model.latent_format.process_out(x), rtol=2e-3, atol=2e-3)


def denoise_once(model, x, sigma, positive):
    """Returns the MODEL's denoised latents at one noise level, through one Euler step to zero, which lands there."""
    import comfy.samplers

    class Given(comfy.samplers.KSAMPLER):
        def sample(
            self, wrapped, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
        ):
            return wrapped(x, sigma.expand(len(x)), **extra_args)

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, positive)
    guider.set_cfg(1.0)
    made = guider.sample(torch.zeros_like(x), torch.zeros_like(x), Given(None), torch.stack([sigma, sigma * 0]), seed=0)
    return model.model.process_latent_in(made)


def test_equal_neighbours_share_a_keyframe(pack, unet, own, positive, negative):
    from hyper_sd.nodes.lora_schedule import keyframes_of

    sigmas = sigmas_of(unet, "hyper_sd", 1.0)
    assert len(keyframes_of(unet, sigmas, [1, 1, 1, 1]).keyframes) == 1
    assert len(keyframes_of(unet, sigmas, [1, 1, 0.5, 0.5]).keyframes) == 2


def test_repeated_level_has_the_strength_of_its_last_step(host, pack, unet, own, positive, negative):
    sigmas = sigmas_of(unet, "karras", 1.0)[[0, 0, 1, 2, 2, 2, 3, 4]]
    numbers = "9, 0.2, 1.5, 9, 9, 0.7, 0.4"
    conds = schedule(pack, unet, sigmas, positive, negative, own, "list", strengths=numbers)
    _, used = used_strengths(unet, sigmas, host, conds)  # Euler evaluates the repeated ones as well
    assert [strengths.pop() for strengths in used] == pytest.approx([0.2, 0.2, 1.5, 0.7, 0.7, 0.7, 0.4])


def test_model_comes_out_as_it_went_in(host, pack, unet, own, positive, negative):
    before = {name: weight.clone() for name, weight in unet.model.state_dict().items()}
    sigmas = sigmas_of(unet, "hyper_sd", 1.0)
    used_strengths(unet, sigmas, host, schedule(pack, unet, sigmas, positive, negative, own, "linear"))
    assert all(torch.equal(weight, before[name]) for name, weight in unet.model.state_dict().items())


@pytest.mark.parametrize(
    ("sigmas", "strengths", "words"),
    [([0.0], "1", "no step"), ([1.0, 0.0], "1, 2", "2 numbers for 1 steps"), ([1.0, 0.0], "one", "for example 1, 0.8, 0.5")],
)
def test_wrong_input_says_what_to_do(pack, unet, own, positive, negative, sigmas, strengths, words):
    with pytest.raises(ScheduleError, match=words):
        schedule(pack, unet, torch.tensor(sigmas), positive, negative, own, "list", strengths=strengths)


def test_layers_that_do_not_fit_are_left_out_and_said(host, pack, unet, own, positive, negative):
    inpainting, node = host.small_unet(channels=9), pack["HyperSDLoraSchedule"]

    def run(model):
        return node.execute(model, sigmas_of(model, "simple", 1.0), positive, negative, own, "constant", 1.0, 0.0, "1")

    made = run(inpainting)
    (text,) = made.ui.as_dict()["text"]
    assert text.startswith("own.safetensors: ")
    assert "1 modules of other sizes are left out, such as lora_unet_conv_in" in text
    hook = made.args[0][0][1]["hooks"].hooks[0]
    assert not any("lora_unet_conv_in" in key for key in hook.weights)
    assert run(unet).ui is None
