"""Other methods' LoRAs and merged checkpoints in the Hyper-SD node, on the real host: what is found, set, asked and said."""

import json

import pytest
import torch
from hyper_sd.errors import ScheduleError, UnsupportedModelError
from hyper_sd.models.catalog import load_catalog
from hyper_sd.models.recipe_plan import plan_by_recipe
from hyper_sd.samplers.tcd import sample_tcd
from hyper_sd.samplers.timesteps import distinct_sigmas

OTHER = "other few-step LoRA"
RECIPES = {recipe.name: recipe for recipe in load_catalog().recipes}
SD15 = [recipe for recipe in RECIPES.values() if "sd15" in recipe.families]


def load(pack, model, steps=4, variant="auto", **options):
    return pack["HyperSDLoraLoader"].execute(model, steps, variant, 0.0, **options).args


@pytest.fixture
def conds(host):
    return host.conditioning(1), host.conditioning(2)


@pytest.mark.parametrize("recipe", SD15, ids=lambda recipe: recipe.name)
def test_chosen_method_sets_sampler_timesteps_and_cfg(pack, unet, own, recipe):
    model, sampler, sigmas, cfg, text = load(pack, unet, 4, OTHER, lora_name=own[0], method=recipe.method)
    wanted = plan_by_recipe(recipe, "sd15", 4)
    schedule = unet.get_model_object("model_sampling").sigmas
    assert sigmas[:-1].tolist() == pytest.approx([float(schedule[t]) for t in wanted.timesteps()], rel=1e-6)
    assert sampler.extra_options == {"eta": recipe.eta, "num_segments": wanted.num_segments, "to_clean": recipe.to_clean}
    assert cfg == recipe.cfg
    assert f"Sampled by the method that you chose. {recipe.method}: {recipe.like}-like" in text
    assert len(model.patches) == len(own[1]) // 3


@pytest.mark.parametrize("name", ["lcm", "tcd", "pcm-small-cfg", "flash"])
def test_picture_equals_the_core_on_the_methods_own_timesteps(host, pack, unet, own, conds, name):
    recipe = RECIPES[name]
    made = load(pack, unet, 4, OTHER, lora_name=own[0], method=recipe.method)
    found = host.custom(made[0], *conds, made[1], made[2], cfg=1.0)
    wanted = plan_by_recipe(recipe, "sd15", 4)
    sigmas = distinct_sigmas(_schedule(unet), wanted.timesteps())
    by_hand = host.custom(made[0], *conds, _sampler(wanted.rule), sigmas, cfg=1.0)
    assert torch.equal(found, by_hand)


def _schedule(model):
    from hyper_sd.nodes.lora import schedule_of

    return schedule_of(model)


def _sampler(rule):
    import comfy.samplers

    return comfy.samplers.KSAMPLER(sample_tcd, extra_options=rule)


@pytest.mark.parametrize("shift", [0.25, 0.5])
def test_shifted_model_equals_the_samplers_own_shift_and_leaves_the_shared_model(host, pack, unet, conds, shift):
    from hyper_sd.nodes.shifted_model import asked_shifted

    shared = unet.get_model_object("model_sampling")
    rule = {"eta": 1.0, "num_segments": 1, "to_clean": True}
    sigmas = distinct_sigmas(_schedule(unet), [999, 749, 499, 249])
    by_model = host.custom(asked_shifted(unet, shift), *conds, _sampler(rule), sigmas, cfg=1.0)
    by_sampler = host.custom(unet, *conds, _sampler(rule | {"timestep_shift": shift}), sigmas, cfg=1.0)
    torch.testing.assert_close(by_model, by_sampler, rtol=0, atol=2e-4)
    assert not torch.allclose(by_model, host.custom(unet, *conds, _sampler(rule), sigmas, cfg=1.0), atol=1e-2)
    assert unet.get_model_object("model_sampling") is shared
    assert type(shared).__name__ == type(shared).__name__.removeprefix("Shifted")
    assert asked_shifted(unet, 1.0) is unet
    twice = host.custom(asked_shifted(asked_shifted(unet, 0.7), shift), *conds, _sampler(rule), sigmas, cfg=1.0)
    assert torch.equal(twice, by_model)


# method -> the sampler node's inputs, the scheduler node's timesteps and end, diffusers' scheduler
SCHEDULERS = {
    "LCM": ((1.0, 1, True), "", "sigma 0", "LCMScheduler"),
    "DMD2, Flash": ((1.0, 1, True), "999, 749, 499, 249", "sigma 0", "LCMScheduler"),
    "TCD": ((0.3, 1), "", "alpha_bar[0]", "TCDScheduler"),
    "TDD": ((0.2, 1), "999, 751, 499, 251", "alpha_bar[0]", "TCDScheduler"),
    "SDXL-Lightning, PCM": ((0.0, 4), "999, 749, 499, 249", "sigma 0", "DDIMScheduler"),
}


@torch.no_grad()
def _by_diffusers(host, model, conds, name, listed, eta):
    """Returns the latents on which a scheduler of diffusers ends, with the host's network and its noise."""
    diffusers = pytest.importorskip("diffusers")
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    more = {"timestep_spacing": "trailing", "clip_sample": False} if name == "DDIMScheduler" else {}
    more |= {"original_inference_steps": 1000} if listed and name == "LCMScheduler" else {}
    scheduler = getattr(diffusers, name)(**betas, **more)
    timesteps = [int(t) for t in listed.split(",")] if listed else None
    scheduler.set_timesteps(**({"timesteps": timesteps} if listed and name != "DDIMScheduler" else {"num_inference_steps": 4}))
    x, generator = host.initial_noise(host.latent()), torch.Generator().manual_seed(7)
    network = host.network_of(model)
    for t in scheduler.timesteps:
        answer = network(x, t[None].float(), context=conds[0][0][0])
        x = scheduler.step(answer, t, x, **({"eta": eta} if name == "TCDScheduler" else {}), generator=generator).prev_sample
    return x


@pytest.mark.parametrize("method", SCHEDULERS)
def test_whole_runs_on_the_host_equal_diffusers_own_schedulers(host, pack, unet, conds, method):
    inputs, listed, end, name = SCHEDULERS[method]
    sampler = pack["HyperSDSampler"].execute(*inputs).args[0]
    generator = torch.Generator().manual_seed(7)
    sampler.extra_options["noise_sampler"] = lambda *_: torch.randn(1, 4, 16, 16, generator=generator)
    sigmas = pack["HyperSDScheduler"].execute(unet, 4, 1, 1.0, end, timesteps=listed).args[0]
    found = host.custom(unet, *conds, sampler, sigmas, cfg=1.0) * 0.18215 / (1 + float(sigmas[-1]) ** 2) ** 0.5
    assert (found - _by_diffusers(host, unet, conds, name, listed, inputs[0])).abs().max() <= 1e-3


def test_the_sampler_node_has_both_options(host, pack, unet, conds):
    rule = {"eta": 1.0, "num_segments": 1, "to_clean": True, "timestep_shift": 0.25}
    sigmas = distinct_sigmas(_schedule(unet), [999, 749, 499, 249])
    node = pack["HyperSDSampler"]
    made = host.custom(unet, *conds, node.execute(**rule).args[0], sigmas, cfg=1.0)
    assert torch.equal(made, host.custom(unet, *conds, _sampler(rule), sigmas, cfg=1.0))
    plain = host.custom(unet, *conds, node.execute(1.0, 1).args[0], sigmas, cfg=1.0)
    assert not torch.allclose(made, plain, atol=1e-2)
    assert torch.equal(plain, host.custom(unet, *conds, _sampler({"eta": 1.0, "num_segments": 1}), sigmas, cfg=1.0))
    for shift in (0, 1.5, float("nan")):
        with pytest.raises(ScheduleError, match="timestep_shift must lie in"):
            host.custom(unet, *conds, node.execute(1.0, 1, True, shift).args[0], sigmas, cfg=1.0)


def test_a_mask_with_a_shifted_sampler_is_refused_and_right_with_the_shifted_model(host, pack, unet, conds):
    from hyper_sd.nodes.shifted_model import asked_shifted

    image = {**host.latent(seed=3), "noise_mask": torch.cat([torch.zeros(1, 8, 16), torch.ones(1, 8, 16)], 1)}
    sigmas = distinct_sigmas(_schedule(unet), [749, 499, 249])
    node = pack["HyperSDSampler"]
    with pytest.raises(ScheduleError, match=r"cannot follow an inpainting mask\. Choose the method in the node Hyper-SD"):
        host.custom(unet, *conds, node.execute(1.0, 1, True, 0.25).args[0], sigmas, cfg=1.0, image=image)
    sampler = node.execute(1.0, 1, True).args[0]
    made = host.custom(asked_shifted(unet, 0.25), *conds, sampler, sigmas, cfg=1.0, image=image)
    torch.testing.assert_close(made[:, :, :8], image["samples"][:, :, :8])
    assert not torch.allclose(made[:, :, 8:], image["samples"][:, :, 8:], atol=0.1)


def test_known_file_is_followed_and_named(pack, unet, loras, worlds):
    name = worlds.write(loras / "sub" / "LCM_LoRA_Weights_SD15.safetensors", worlds.small_lora(unet))
    _, sampler, _, _, text = load(pack, unet, 4, lora_name=f"sub/{name}")
    assert sampler.extra_options["to_clean"] is True
    assert "By its name alone this is LCM: LCM-like, CFG 1 to 2." in text


def test_file_that_nobody_knows_keeps_the_persons_settings(pack, unet, own):
    assert load(pack, unet, 4, "unified", lora_name=own[0])[1].extra_options["to_clean"] is False
    with pytest.raises(UnsupportedModelError, match=r"own\.safetensors does not say .* Choose its method"):
        load(pack, unet, 4, OTHER, lora_name=own[0])


def test_a_persons_recipe_that_is_called_as_another_stands_beside_it(pack, unet, own, tmp_path, monkeypatch):
    from hyper_sd.nodes.model_downloads import DOWNLOADS

    mine = {"method": "LCM", "like": "LCM", "families": ["sd15"], "eta": 0.6, "grid": "tcd", "steps": [1, 8]}
    recipes = {"mine": mine, "odd": {**mine, "method": "by the file", "eta": 0.7}}
    (tmp_path / "catalog.json").write_text(json.dumps({"entries": [], "recipes": recipes}), encoding="utf-8")
    monkeypatch.setattr(DOWNLOADS, "_user_file", tmp_path / "catalog.json")
    for method, eta in (("LCM", 1.0), ("LCM (mine)", 0.6), ("by the file (odd)", 0.7)):
        assert load(pack, unet, 4, OTHER, lora_name=own[0], method=method)[1].extra_options["eta"] == eta
    assert "Sampled by the method that you chose" not in load(pack, unet, 4, "unified", lora_name=own[0])[4]


@pytest.mark.parametrize("options", [{"method": "LCM"}, {"method": "SDXL-Lightning", "variant": "unified"}])
def test_method_without_its_file_says_where_to_choose_it(pack, unet, options):
    with pytest.raises(UnsupportedModelError, match="choose the file under lora_name"):
        load(pack, unet, **options)


def test_merged_checkpoint_takes_the_preset_of_its_method(pack, unet):
    model, sampler, sigmas, cfg, text = load(pack, unet, 4, "merged checkpoint", method="LCM")
    assert (model, cfg, len(sigmas)) == (unet, 1.0, 5)
    assert sampler.extra_options == {"eta": 1.0, "num_segments": 1, "to_clean": True}
    assert text.startswith("no LoRA (merged checkpoint), 4 steps, hyper_sd_tcd, tcd grid")


def test_second_few_step_lora_is_noticed_and_the_picture_is_made(host, pack, unet, own, loras, worlds, conds):
    import comfy.sd

    tensors = worlds.small_lora(unet, seed=5)
    name = worlds.write(loras / "tcd-lora-copy.safetensors", tensors)
    loaded, _ = comfy.sd.load_lora_for_models(unet, None, tensors, 0.7, 0.0)  # as the host's own loader does
    model, sampler, sigmas, cfg, text = load(pack, loaded, 4, "unified", lora_name=own[0])
    assert f"Two few-step LoRAs at once often burn the picture: {name} is in this model already" in text
    assert torch.isfinite(host.custom(model, *conds, sampler, sigmas, cfg=cfg)).all()
    assert "Two few-step" not in load(pack, unet, 4, "unified", lora_name=own[0])[4]


def test_style_beside_the_few_step_lora_is_not_called_one(pack, unet, own, loras, worlds):
    import comfy.sd

    tensors = worlds.small_lora(unet, seed=6)
    worlds.write(loras / "style.safetensors", tensors)
    loaded, _ = comfy.sd.load_lora_for_models(unet, None, tensors, 0.7, 0.0)
    assert "Two few-step" not in load(pack, loaded, 4, "unified", lora_name=own[0])[4]


def test_whole_header_and_tensor_are_read_of_the_loaded_file_alone(pack, unet, loras, worlds, monkeypatch):
    import comfy.sd
    from hyper_sd.nodes import loaded_loras

    read = []
    original = loaded_loras.read_header
    monkeypatch.setattr(loaded_loras, "read_header", lambda path: read.append(path.name) or original(path))
    tensors = worlds.small_lora(unet, seed=5)
    for number in range(12):
        worlds.write(loras / f"a style {number}.safetensors", worlds.small_lora(unet, seed=20 + number))
    half = {name: tensor.half() for name, tensor in worlds.small_lora(unet, seed=40).items()}
    for name, file in (("half a tcd-lora", half), ("tcd-lora", tensors), ("z lcm-lora", worlds.small_lora(unet, seed=41))):
        worlds.write(loras / f"{name}.safetensors", file)
    loaded, _ = comfy.sd.load_lora_for_models(unet, None, tensors, 0.7, 0.0)
    assert loaded_loras.few_step_in(loaded) == "tcd-lora.safetensors"
    assert read == ["tcd-lora.safetensors"]
    loaded, _ = comfy.sd.load_lora_for_models(unet, None, half, 0.7, 0.0)
    assert loaded_loras.few_step_in(loaded) == "half a tcd-lora.safetensors"


def test_beginning_that_is_alike_is_not_yet_the_same_tensor(unet, loras, worlds):
    import comfy.sd
    from hyper_sd.nodes.loaded_loras import few_step_in

    tensors = worlds.small_lora(unet, seed=5)
    loaded, _ = comfy.sd.load_lora_for_models(unet, None, tensors, 0.7, 0.0)
    other = {name: tensor.clone() for name, tensor in tensors.items()}
    for name, tensor in other.items():
        if name.endswith("lora_up.weight"):
            tensor.flatten()[-1] += 1.0
    worlds.write(loras / "tcd-lora.safetensors", other)
    assert few_step_in(loaded) == ""
    worlds.write(loras / "tcd-lora-whole.safetensors", tensors)
    assert few_step_in(loaded) == "tcd-lora-whole.safetensors"


@pytest.mark.parametrize("offsets", ["[-5, 3]", f"[{10**30}, {10**30 + 4}]", "[true, 4]", "[" * 20000, "[0, 4, 8]", "7"])
def test_header_that_lies_about_places_stops_no_run(unet, loras, worlds, offsets):
    import comfy.sd
    from hyper_sd.nodes.loaded_loras import few_step_in

    tensors = worlds.small_lora(unet, seed=5)
    loaded, _ = comfy.sd.load_lora_for_models(unet, None, tensors, 0.7, 0.0)
    up = next(name for name in tensors if name.endswith("lora_up.weight"))
    shape = list(tensors[up].shape)
    text = f'{{"{up}":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}'.encode()
    (loras / "a bad one.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))
    worlds.write(loras / "tcd-lora.safetensors", tensors)
    assert few_step_in(loaded) == "tcd-lora.safetensors"


def test_schedulers_list_takes_the_place_of_steps(pack, unet):
    def sigmas(text, denoise=1.0, steps=7):
        return pack["HyperSDScheduler"].execute(unet, steps, 1, denoise, timesteps=text).args[0]

    table = unet.get_model_object("model_sampling").sigmas
    listed = sigmas(" 999, 751\n499 251 ")
    assert listed[:-1].tolist() == pytest.approx([float(table[t]) for t in (999, 751, 499, 251)], rel=1e-6)
    assert len(sigmas("999, 751, 499, 251", 0.5)) == 5
    assert len(sigmas("")) == 8
    for wrong in ("999, x", "1000", "5, 999", "999, 4.5", "-1", "\u0669\u0669"):
        with pytest.raises(ScheduleError):
            sigmas(wrong)
