"""The Hyper-SD node on the real host: what it chooses, what it does to a MODEL, what it refuses."""

import json
import logging
import re

import pytest
import torch
from hyper_sd.errors import HyperSDError, ScheduleError, UnsupportedModelError
from hyper_sd.models.families import FAMILIES

KINDS = {1: "one_step", 2: "2steps", 3: "1step", 4: "4steps", 5: "1step", 6: "1step", 7: "1step", 8: "8steps"}


def load(pack, model, steps=4, variant="auto", strength=0.0, **options):
    return pack["HyperSDLoraLoader"].execute(model, steps, variant, strength, **options).args


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.key)
def test_a_family_is_what_the_host_has_under_its_class(host, family):
    import comfy.supported_models

    classes = {key: getattr(comfy.supported_models, other.comfyui_class) for key, other in FAMILIES.items()}
    own = classes.pop(family.key)
    assert own.latent_format.latent_channels == family.latent_channels
    assert own.unet_config.get("context_dim") == family.text_width
    assert not any(issubclass(own, other) for other in classes.values())


@pytest.mark.parametrize("steps", KINDS)
def test_steps_choose_the_embedded_models_own_file(pack, demo, steps):
    model, _, sigmas, cfg, text = load(pack, demo[0], steps)
    strength = "0.75" if steps == 3 else "1"  # measured on this model
    assert f"hyper_sd_demo_{KINDS[steps]}_lora.safetensors, strength {strength}, " in text
    assert ("measured here" in text) == (strength != "1")
    assert "129 of 129 modules matched" in text
    assert (len(sigmas), cfg) == (steps + 1, 1.0)
    assert len(model.patches) == 129


@pytest.mark.parametrize(
    ("steps", "lora", "num_segments", "start"),
    [(1, "one step", 1, 800), (4, "4 steps", 4, 999), (6, "unified, 1 to 8 steps", 1, 999)],
)
def test_image_equals_the_same_parts_wired_by_hand(host, pack, demo, steps, lora, num_segments, start):
    conds = [demo[1].encode_from_tokens_scheduled(demo[1].tokenize(text)) for text in ("red apple", "")]
    model, sampler, sigmas, cfg, _ = load(pack, demo[0], steps)
    eta = sampler.extra_options["eta"]
    made = host.custom(model, *conds, sampler, sigmas, cfg=cfg)
    by_hand = pack["HyperSDDemoModel"].execute(lora).args[0]
    parts = pack["HyperSDSampler"].execute(eta, num_segments).args[0]
    grid = pack["HyperSDScheduler"].execute(by_hand, steps, num_segments, 1.0, start_timestep=start).args[0]
    assert torch.equal(made, host.custom(by_hand, *conds, parts, grid, cfg=1.0))


def test_own_file_takes_the_released_ones_place(pack, unet, own):
    model, _, sigmas, _, text = load(pack, unet, 4, "unified", lora_name=own[0])
    assert text.startswith("own.safetensors, strength 1, 4 steps, hyper_sd_tcd, tcd grid")
    assert len(sigmas) == 5
    assert len(model.patches) == len(own[1]) // 3


@pytest.fixture
def catalogued(worlds, loras, unet, tmp_path_factory, monkeypatch):
    """The released 8-step LoRA for guidance, in small, in a person's own catalogue; its file has another name and folder."""
    from hyper_sd.models.files import sha256_of
    from hyper_sd.nodes.model_downloads import DOWNLOADS

    path = loras / "sub" / "favourite.safetensors"
    worlds.write(path, worlds.small_lora(unet))
    entry = {"id": "small-cfg", "family": "sd15", "kind": "cfg", "steps": 8, "num_segments": 8, "repo": "me/models"}
    entry |= {"file": "small-8steps-CFG-lora.safetensors", "size": path.stat().st_size, "sha256": sha256_of(path)}
    entry["settings"] = {"grid": "trailing", "eta": 0.0, "cfg": 5.0}
    user_file = tmp_path_factory.mktemp("user") / "catalog.json"
    user_file.write_text(json.dumps({"entries": [entry]}), encoding="utf-8")
    monkeypatch.setattr(DOWNLOADS, "_user_file", user_file)
    return str(path.relative_to(loras))


@pytest.mark.parametrize(
    ("steps", "cfg", "words"), [(8, 5.0, "at CFG 5 to 8. (released recipe)"), (4, 3.5, "for 8 steps; artists")]
)
def test_a_renamed_file_gets_its_released_recipe(pack, unet, catalogued, steps, cfg, words):
    _, _, sigmas, found, text = load(pack, unet, steps, lora_name=catalogued)
    assert (len(sigmas), found) == (steps + 1, cfg)
    assert text.startswith("favourite.safetensors, strength 1,")
    assert "This is small-8steps-CFG-lora.safetensors. The authors made this file for 8 steps" in text
    assert words in text


def test_an_explicit_variant_wins_over_a_known_file_and_the_text_says_so(pack, unet, catalogued):
    text, cfg = load(pack, unet, 4, "unified", lora_name=catalogued)[4:2:-1]
    assert cfg == 1.0
    assert "The variant that you chose is kept, but this is small-8steps-CFG-lora.safetensors" in text


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_an_unknown_files_recipe_is_called_a_guess(pack, unet, own, steps):
    model, sampler, _, cfg, text = load(pack, unet, steps, lora_name=own[0])
    rule = {"eta": 0.0, "num_segments": steps, "to_clean": False}  # as it was before files were recognised
    assert (sampler.extra_options, cfg) == (rule, 1.0)
    assert len(model.patches) == len(own[1]) // 3
    assert "from the steps it is taken for an n-step LoRA. If it is of another kind, set variant. (a guess)" in text
    assert "authors" not in text


@pytest.mark.parametrize(("stages", "num_segments", "words"), [("8-4-2-1", 1, "1 to 8 steps"), ("8-4", 4, "exactly 4 steps")])
def test_a_file_that_was_trained_here_is_sampled_as_it_was_trained(worlds, pack, unet, loras, stages, num_segments, words):
    from safetensors.torch import save_file

    metadata = {"hyper_sd_objective": "style, then distil", "hyper_sd_stages": stages}
    save_file(worlds.small_lora(unet), loras / "ink.safetensors", metadata)
    _, sampler, _, cfg, text = load(pack, unet, 4, lora_name="ink.safetensors")
    assert (sampler.extra_options["num_segments"], cfg) == (num_segments, 1.0)
    assert f"By its metadata this file was made for {words}" in text


def test_a_file_beside_a_merged_checkpoint_is_said_to_be_unused(pack, unet, own):
    model, text = load(pack, unet, 4, "merged checkpoint", lora_name=own[0])[::4]
    assert model is unet
    assert "own.safetensors is not used" in text


def test_merged_weights_equal_the_bypass_forward(host, worlds, pack, unet, own):
    x, t = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(3)), torch.tensor([999.0, 300.0])
    context = host.conditioning(seed=1)[0][0].expand(2, -1, -1)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.06), (torch.float16, 0.008)):
        small = host.small_unet()
        small.model.diffusion_model.to(dtype)
        network, arguments = small.model.diffusion_model, (x.to(dtype), t)
        small.model.diffusion_model.dtype = dtype
        plain = network(*arguments, context=context.to(dtype))
        wanted = worlds.bypass_forward(network, small, own[1], 0.8, *arguments, context=context.to(dtype))
        patched = load(pack, small, 4, "unified", 0.8, lora_name=own[0])[0]
        patched.patch_model()
        found = network(*arguments, context=context.to(dtype))
        scale = wanted.float().std()
        assert (found - wanted).float().std() < tolerance * scale
        assert (plain - wanted).float().abs().max() > scale
        patched.unpatch_model()


def test_unpatching_gives_every_weight_back_bit_for_bit(host, pack, unet, positive, negative, own):
    before = {name: weight.clone() for name, weight in unet.model.state_dict().items()}
    model, sampler, sigmas, _, _ = load(pack, unet, 2, lora_name=own[0])
    with_lora = host.custom(model, positive, negative, sampler, sigmas)
    without = host.custom(unet, positive, negative, sampler, sigmas)
    assert not torch.allclose(with_lora, without)
    model.unpatch_model()
    assert all(torch.equal(weight, before[name]) for name, weight in unet.model.state_dict().items())


def test_it_stacks_with_another_lora(host, worlds, pack, unet, loras, own, positive, negative):
    import comfy.sd

    other = worlds.small_lora(unet, seed=9)
    first = comfy.sd.load_lora_for_models(unet, None, other, 0.5, 0.0)[0]
    stacked = load(pack, first, 4, "unified", lora_name=own[0])[0]
    assert all(len(stacked.patches[key]) == 2 for key in first.patches)
    last = comfy.sd.load_lora_for_models(load(pack, unet, 4, "unified", lora_name=own[0])[0], None, other, 0.5, 0.0)[0]
    sampler, sigmas = load(pack, unet, 4, "unified", lora_name=own[0])[1:3]
    images = [host.custom(model, positive, negative, sampler, sigmas) for model in (stacked, last)]
    torch.testing.assert_close(*images, rtol=1e-3, atol=1e-3)


def test_it_works_with_a_controlnet_and_a_mask(host, pack, unet, own, positive, negative):
    import nodes

    hint = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(1))
    steered = nodes.ControlNetApplyAdvanced().apply_controlnet(positive, negative, host.small_controlnet(), hint, 1.0, 0.0, 1.0)
    model, sampler, sigmas, _, _ = load(pack, unet, 4, "unified", lora_name=own[0], denoise=0.6)
    image = host.latent(seed=4)
    image["noise_mask"] = torch.zeros(1, 1, 128, 128)
    image["noise_mask"][..., :64] = 1.0
    plain = host.custom(model, positive, negative, sampler, sigmas, image=image)
    found = host.custom(model, *steered, sampler, sigmas, image=image)
    assert not torch.allclose(found, plain)
    torch.testing.assert_close(found[..., 8:], image["samples"][..., 8:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("denoise", [0.3, 0.7])
def test_denoise_keeps_the_number_of_steps(pack, unet, own, denoise):
    whole, part = (load(pack, unet, 4, "unified", lora_name=own[0], denoise=d)[2] for d in (1.0, denoise))
    assert len(part) == 5
    assert part[0] < whole[0]


def test_strength_and_steps_are_what_the_person_gave(pack, unet, own):
    text = load(pack, unet, 5, "unified", 0.7, lora_name=own[0])[4]
    assert "strength 0.7, 5 steps" in text


def test_merged_checkpoint_gets_no_lora(pack, unet):
    model, _, sigmas, cfg, text = load(pack, unet, 4, "merged checkpoint")
    assert model is unet
    assert (len(sigmas), cfg) == (5, 2.0)
    assert "no LoRA (merged checkpoint)" in text


def test_flow_model_gets_the_hosts_own_grid_and_euler(host):
    from hyper_sd.models.lora import plan
    from hyper_sd.nodes import lora

    model, made = host.small_mmdit(), plan("sd3", 4)
    sigmas = lora.sigmas_of(model, made, 1.0)
    assert sigmas.tolist() == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0], abs=2e-3)  # 1, 3/4, 1/2, 1/4 with shift 3
    assert len(lora.sigmas_of(model, made, 0.5)) == 5
    assert lora.sampler_of(made, 1.0).sampler_function.__name__ == "sample_euler"
    assert lora.family_of(model) == "sd3"


def test_missing_file_is_named_with_the_way_to_get_it(pack, unet, loras):
    words = r"Hyper-SD15-4steps-lora\.safetensors is not there yet\. Open the sidebar tab Hyper-SD models .* hyper-sd15-4steps"
    with pytest.raises(UnsupportedModelError, match=words):
        load(pack, unet, 4)


def test_damaged_released_file_is_named(pack, unet, loras):
    (loras / "Hyper-SD15-4steps-lora.safetensors").write_bytes(b"broken")
    with pytest.raises(UnsupportedModelError, match="is damaged"):
        load(pack, unet, 4)


def test_released_file_in_a_subfolder_is_found_and_decides_the_variant(worlds, pack, unet, loras):
    worlds.write(loras / "sub" / "Hyper-SD15-8steps-lora.safetensors", worlds.small_lora(unet))
    name = str((loras / "sub" / "Hyper-SD15-8steps-lora.safetensors").relative_to(loras))
    text = load(pack, unet, 8, lora_name=name)[4]
    assert "8 segments" in text
    assert "By its name alone" in text  # its content is another


def test_unknown_steps_and_variants_say_what_there_is(pack, unet, host):
    with pytest.raises(ScheduleError, match="2 to 16 steps, got 1; choose the variant unified"):
        load(pack, unet, 1, "n-step")
    with pytest.raises(UnsupportedModelError, match="no 'unified' Hyper-SD LoRA for SD3"):
        load(pack, host.small_mmdit(), 4, "unified")


def bad_files(worlds, unet):
    good = worlds.small_lora(unet)
    first, flux = next(iter(good)), "lora_unet_single_transformer_blocks_0_proj_mlp"
    narrow = {name: tensor[:-1] if name.endswith("up.weight") else tensor for name, tensor in good.items()}
    yield "other sizes", narrow, r"other sizes: \d+ of its \d+ modules do not fit this one, SD1\.5 \(its sizes are"
    other = {f"{flux}.lora_down.weight": torch.zeros(2, 3072), f"{flux}.lora_up.weight": torch.zeros(12288, 2)}
    yield "another family", other, "for FLUX.1-dev, the model is SD1.5"
    yield "NaN", {**good, first: good[first] * float("nan")}, "not finite"
    yield "no pair", {first: good[first]}, "incomplete"
    yield "no LoRA", {"model.weight": torch.zeros(2, 2)}, "holds no LoRA"
    alpha = first.replace("lora_down.weight", "alpha")
    yield "one alpha missing", {name: tensor for name, tensor in good.items() if name != alpha}, "no alpha for 1"


def test_bad_file_is_refused_by_name_and_the_model_stays_usable(host, worlds, pack, unet, loras, own, positive, negative):
    for name, tensors, words in bad_files(worlds, unet):
        worlds.write(loras / f"{name}.safetensors", {k: v.contiguous() for k, v in tensors.items()})
        with pytest.raises(HyperSDError) as caught:
            load(pack, unet, 4, "unified", lora_name=f"{name}.safetensors")
        assert re.search(words, str(caught.value)), f"{name}: {caught.value}"
        assert name in str(caught.value)
    assert not unet.patches
    assert torch.isfinite(host.ksampler(unet, positive, negative)).all()


@pytest.mark.parametrize(
    ("content", "words"), [(b"just text", "no safetensors"), (b"", "no safetensors"), (b"PK\x03\x04x" * 9, "pickled")]
)
def test_file_that_is_no_model_is_refused(pack, unet, loras, content, words):
    (loras / "x.safetensors").write_bytes(content)
    with pytest.raises(UnsupportedModelError, match=words):
        load(pack, unet, 4, "unified", lora_name="x.safetensors")


def test_truncated_file_is_refused(pack, unet, loras, own):
    whole = (loras / own[0]).read_bytes()
    (loras / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnsupportedModelError, match="cut off"):
        load(pack, unet, 4, "unified", lora_name="cut.safetensors")


def test_missing_alpha_is_said_in_the_text(worlds, pack, unet, loras):
    worlds.write(loras / "bare.safetensors", worlds.small_lora(unet, alpha=None))
    assert "has no alpha" in load(pack, unet, 4, "unified", lora_name="bare.safetensors")[4]


def test_no_warning_is_logged_for_a_good_file(pack, unet, own, caplog):
    with caplog.at_level(logging.WARNING):
        load(pack, unet, 4, "unified", lora_name=own[0])
    assert not [record.message for record in caplog.records if "lora" in record.message.lower()]


def test_changed_file_is_read_again(worlds, pack, unet, loras, own):
    node = pack["HyperSDLoraLoader"]
    before = node.fingerprint_inputs(lora_name=own[0])
    worlds.write(loras / own[0], worlds.small_lora(unet, seed=5, alpha=2.0))
    assert node.fingerprint_inputs(lora_name=own[0]) != before
    assert node.fingerprint_inputs() == ""
