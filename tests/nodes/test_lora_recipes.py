"""The released recipes with a LoRA: the host's picture equals diffusers' on the same small SDXL weights and the same noise."""

import pytest
import torch
from hyper_sd.tests.models.synthetic_unets import SMALL, diffusers_unet, unet, write
from hyper_sd.tests.nodes.small_sdxl import conditioning, load_small
from safetensors.torch import load_file, save_file

RANK, STRENGTH = 2, 0.8


@pytest.fixture
def parts(host, tmp_path, monkeypatch):
    """(diffusers' UNet with the LoRA at STRENGTH, MODEL without it, the LoRA's name), of one set of weights."""
    pytest.importorskip("peft", reason="diffusers loads LoRA files through peft")
    import folder_paths

    path = write(tmp_path / "small.safetensors", unet("diffusers", SMALL))
    model = load_small(path)
    network = diffusers_unet(SMALL)
    network.load_state_dict(load_file(path), assign=True)
    peft, kohya = lora(network)
    network.load_lora_adapter(peft, prefix=None, adapter_name="hyper")
    network.set_adapters(["hyper"], [STRENGTH])
    save_file(kohya, tmp_path / "lora.safetensors")
    kind = folder_paths.folder_names_and_paths["loras"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], kind))
    folder_paths.filename_list_cache.pop("loras", None)
    yield network, model, "lora.safetensors"
    folder_paths.filename_list_cache.pop("loras", None)


def lora(network) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Returns one LoRA over every attention projection, under PEFT's names and under kohya's."""
    generator, peft, kohya = torch.Generator().manual_seed(4), {}, {}
    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.Linear) and ".attn" in name:
            down = 0.3 * torch.randn(RANK, layer.in_features, generator=generator)
            up = 0.3 * torch.randn(layer.out_features, RANK, generator=generator)
            flat = f"lora_unet_{name.replace('.', '_')}"
            peft |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
            kohya |= {
                f"{flat}.lora_down.weight": down,
                f"{flat}.lora_up.weight": up,
                f"{flat}.alpha": torch.tensor(float(RANK)),
            }
    return peft, kohya


def by_diffusers(network, scheduler, noise, condition, **step):
    """Runs a scheduler's own loop and returns the latents."""
    sizes = torch.full((1, 6), float(noise.shape[-1] * 8))
    sizes[:, 2:4] = 0
    added = {"text_embeds": condition[0][1]["pooled_output"], "time_ids": sizes}
    x = noise
    for t in scheduler.timesteps:
        noise_pred = network(x, t, encoder_hidden_states=condition[0][0], added_cond_kwargs=added).sample
        x = scheduler.step(noise_pred, t, x, **step).prev_sample
    return x


SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_unified_lora_equals_diffusers_tcd(host, pack, parts, draws, monkeypatch, steps):
    from diffusers import TCDScheduler
    from diffusers.schedulers import scheduling_tcd

    network, model, name = parts
    patched, sampler, sigmas, _, text = (
        pack["HyperSDLoraLoader"].execute(model, steps, "unified", STRENGTH, lora_name=name).args
    )
    sigma_0 = model.model.model_sampling.sigmas[:1]  # where diffusers ends
    condition, eta = conditioning(), sampler.extra_options["eta"]
    ends = torch.cat([sigmas[:-1], sigma_0])
    mine = model.model.process_latent_in(host.custom(patched, condition, condition, sampler, ends))

    recorded = iter(draws)
    monkeypatch.setattr(scheduling_tcd, "randn_tensor", lambda *_, **__: next(recorded).float())
    scheduler = TCDScheduler(**SCHEDULE)
    scheduler.set_timesteps(steps)
    theirs = by_diffusers(network, scheduler, host.initial_noise(host.latent()), condition, eta=eta)
    assert f"strength {STRENGTH}" in text
    torch.testing.assert_close(mine / torch.sqrt(1 + sigma_0**2), theirs, rtol=0, atol=2e-4)
    network.set_adapters(["hyper"], [1.0])
    assert not torch.allclose(
        by_diffusers(network, scheduler, host.initial_noise(host.latent()), condition, eta=0), theirs, atol=0.01
    )


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_n_step_lora_equals_diffusers_trailing_ddim(host, pack, parts, steps):
    from diffusers import DDIMScheduler

    network, model, name = parts
    patched, sampler, sigmas, cfg, _ = pack["HyperSDLoraLoader"].execute(model, steps, "n-step", STRENGTH, lora_name=name).args
    condition = conditioning()
    mine = model.model.process_latent_in(host.custom(patched, condition, condition, sampler, sigmas, cfg=cfg))
    scheduler = DDIMScheduler(**SCHEDULE, timestep_spacing="trailing", set_alpha_to_one=True)
    scheduler.set_timesteps(steps)
    theirs = by_diffusers(network, scheduler, host.initial_noise(host.latent()), condition, eta=0.0)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-4)
