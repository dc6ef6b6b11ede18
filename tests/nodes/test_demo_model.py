"""The embedded model in the host's classes against the diffusers and transformers classes that trained it."""

import sys

import pytest
import torch

pytest.importorskip("diffusers", reason="the recipe's classes need diffusers: pip install -e .[recipe]")

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
PROMPTS = ["red apple", "", "Grinning CAT with 3 hearts!", "don't stop: 12 o'clock", "naïve café 🍎"]


@pytest.fixture(scope="module")
def recipe(host, demo):
    """The recipe's networks with the checkpoint's weights: text(ids), unet, vae and its tokenizer."""
    from hyper_sd.demo.recipe.export import load_checkpoint
    from hyper_sd.demo.recipe.tokenizer import load_tokenizer
    from hyper_sd.models.embedded import TOKENIZER
    from hyper_sd.training.launch.embedded_model import load_config, original_state
    from safetensors.torch import load_file

    vae, denoiser = load_checkpoint(host.demo_checkpoint())
    assert set(load_file(str(host.demo_checkpoint()))) == set(original_state(vae, denoiser.text, denoiser.unet))
    denoiser.vae, denoiser.tokenizer = vae, load_tokenizer(TOKENIZER)
    denoiser.scaling_factor = load_config()["scaling_factor"]
    return denoiser


def _states(recipe, prompt):
    ids = recipe.tokenizer([prompt], padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    return recipe.text(ids).last_hidden_state


def _conditioning(demo, prompt):
    clip = demo[1]
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens_are_the_recipes(demo, recipe, prompt):
    (chunk,) = demo[1].tokenize(prompt)["l"]
    expected = recipe.tokenizer([prompt], padding="max_length", max_length=77).input_ids[0]
    assert [token for token, _ in chunk] == expected
    assert {weight for _, weight in chunk} == {1.0}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_text_encoder_equals_transformers(demo, recipe, prompt):
    (states, _), *rest = _conditioning(demo, prompt)
    assert not rest
    torch.testing.assert_close(states, _states(recipe, prompt), **TOLERANCE)


def test_long_prompt_is_split_into_chunks_of_77(demo, recipe):
    words = ["apple", "cat", "red"] * 40
    chunks = demo[1].tokenize(" ".join(words))["l"]
    start, end = recipe.tokenizer.bos_token_id, recipe.tokenizer.eos_token_id
    inner = [t for chunk in chunks for t, _ in chunk if t not in {start, end}]
    assert len(chunks) == 2
    assert all(len(chunk) == 77 and chunk[0][0] == start for chunk in chunks)
    assert inner == [t for t in recipe.tokenizer(" ".join(words)).input_ids if t not in {start, end}]
    states = _conditioning(demo, " ".join(words))[0][0]
    assert states.shape == (1, 154, 192)
    assert torch.isfinite(states).all()


def test_weighted_words_move_the_text_states(demo):
    plain, weighted, unit = (_conditioning(demo, p)[0][0] for p in ("red fruit", "red (fruit:1.2)", "red (fruit:1.0)"))
    tokens = demo[1].tokenize("red (fruit:1.2)")["l"][0]
    assert {weight for _, weight in tokens} == {1.0, 1.2}
    assert [token for token, _ in tokens] == [token for token, _ in demo[1].tokenize("red fruit")["l"][0]]
    assert torch.equal(plain, unit)
    assert not torch.allclose(plain, weighted, atol=1e-3)


def test_unet_equals_diffusers(host, demo, recipe):
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn(3, 4, 16, 16, generator=generator), torch.tensor([999, 500, 0])
    states = _states(recipe, "red apple").repeat(3, 1, 1)
    torch.testing.assert_close(host.network_of(demo[0])(x, t, context=states), recipe.unet(x, t, states).sample, **TOLERANCE)


def test_vae_encodes_and_decodes_as_diffusers(demo, recipe):
    image = torch.rand(2, 128, 128, 3, generator=torch.Generator().manual_seed(2))
    expected = recipe.vae.encode(image.movedim(-1, 1) * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(demo[2].encode(image), expected, **TOLERANCE)
    decoded = recipe.vae.decode(expected).sample.movedim(1, -1)
    torch.testing.assert_close(demo[2].decode(expected), (decoded / 2 + 0.5).clamp(0, 1), **TOLERANCE)


def _diffusers_trajectory(recipe, monkeypatch, noise, draws, *, steps, eta, cfg):
    """Runs diffusers' own TCD pipeline loop with the noise the host drew; returns its last latents and its last x0."""
    from diffusers import TCDScheduler

    rest = iter(draws)
    monkeypatch.setattr(sys.modules[TCDScheduler.__module__], "randn_tensor", lambda *_, **__: next(rest))
    scheduler = TCDScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    scheduler.set_timesteps(steps)
    states, empty = _states(recipe, "red apple"), _states(recipe, "")
    x, x0 = noise, None
    for t in scheduler.timesteps:
        cond, uncond = (recipe.unet(x, t, context).sample for context in (states, empty))
        noise_pred = uncond + cfg * (cond - uncond)
        ab = scheduler.alphas_cumprod[t]
        x0 = (x - (1 - ab).sqrt() * noise_pred) / ab.sqrt()
        x = scheduler.step(noise_pred, t, x, eta=eta).prev_sample
    return x, x0


@pytest.mark.parametrize(("steps", "eta", "cfg"), [(1, 0.3, 1.0), (2, 0.0, 4.0), (4, 0.3, 4.0), (8, 1.0, 1.0)])
@pytest.mark.parametrize("end", ["sigma 0", "alpha_bar[0]"])
def test_latents_equal_diffusers_tcd(host, pack, demo, recipe, draws, monkeypatch, end, steps, eta, cfg):
    model, image = demo[0], host.latent()
    (sampler,) = pack["HyperSDSampler"].execute(eta, 1).args
    (sigmas,) = pack["HyperSDScheduler"].execute(model, steps, 1, 1.0, end).args
    conds = _conditioning(demo, "red apple"), _conditioning(demo, "")
    latents = host.custom(model, *conds, sampler, sigmas, cfg=cfg, image=image) * recipe.scaling_factor
    noise = host.initial_noise(image)
    last, x0 = _diffusers_trajectory(recipe, monkeypatch, noise, draws, steps=steps, eta=eta, cfg=cfg)
    expected = x0 if end == "sigma 0" else last * (1 + sigmas[-1] ** 2).sqrt()  # the hosts' scaling: x / sqrt(alpha_bar)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4 * max(1.0, expected.std().item()))


def test_image_has_the_stated_size_when_decoded(host, demo):
    conds = _conditioning(demo, "red apple"), _conditioning(demo, "")
    image = demo[2].decode(host.ksampler(demo[0], *conds, steps=2, cfg=4.0, image=host.latent(batch=3)))
    assert image.shape == (3, 128, 128, 3)
    assert torch.isfinite(image).all()
    assert 0 <= image.min() <= image.max() <= 1


def test_node_names_the_file_when_the_weights_are_missing(pack, monkeypatch, tmp_path):
    from hyper_sd.errors import UnsupportedModelError
    from hyper_sd.models import embedded

    monkeypatch.setattr(embedded, "CHECKPOINT", tmp_path / "hyper_sd_demo.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"hyper_sd_demo\.safetensors in demo/model"):
        pack["HyperSDDemoModel"].execute()
