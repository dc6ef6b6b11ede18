"""The demo model's own Hyper-SD LoRAs, and the training core on the host's network."""

import logging

import pytest
import torch

LORAS = ["unified, 1 to 8 steps", "8 steps", "4 steps", "2 steps", "one step"]
FILES = ["1step", "8steps", "4steps", "2steps", "one_step"]


@pytest.fixture
def lora(request, demo):
    """Skips where the LoRA files are missing."""
    from hyper_sd.models.embedded import LORA_TITLES, LORAS

    path = LORAS[LORA_TITLES[request.param]]
    if not path.is_file():
        pytest.skip(f"{path.name} is not in demo/model")
    return request.param, path


def test_names_agree_with_the_recipe_and_the_demo(pack):
    from hyper_sd.demo.workflow import NO_LORA, UNIFIED_LORA
    from hyper_sd.models import embedded
    from hyper_sd.nodes import demo_model

    (chosen,) = pack["HyperSDDemoModel"].GET_SCHEMA().inputs
    assert chosen.options == [demo_model.BASE, *LORAS]
    assert list(embedded.LORA_TITLES) == LORAS
    assert [path.stem for path in embedded.LORAS.values()] == [f"hyper_sd_demo_{n}_lora" for n in FILES]
    assert (demo_model.BASE, LORAS[0]) == (NO_LORA, UNIFIED_LORA)


@pytest.mark.parametrize(("title", "key"), [(LORAS[0], ("unified", 1)), ("4 steps", ("n-step", 4))])
def test_a_demo_lora_among_the_options_is_known(pack, title, key):
    from hyper_sd.nodes.lora_files import known_lora

    known = known_lora(f"demo model: {title}")
    assert (known.evidence, known.variant, known.steps) == ("embedded", *key)


def test_a_demo_lora_that_there_is_not_is_refused(pack):
    from hyper_sd.errors import HyperSDError
    from hyper_sd.nodes.lora_files import known_lora

    with pytest.raises(HyperSDError, match="unified and my own"):
        known_lora("demo model: unified and my own")


@pytest.mark.parametrize("lora", LORAS, indirect=True)
def test_every_key_of_a_demo_lora_is_matched(pack, lora, caplog):
    from safetensors.torch import load_file

    name, path = lora
    with caplog.at_level(logging.WARNING):
        model = pack["HyperSDDemoModel"].execute(name).args[0]
    assert not [r.message for r in caplog.records if "lora" in r.message.lower()]
    assert len(model.patches) == sum(key.endswith(".alpha") for key in load_file(str(path)))


@pytest.mark.parametrize("lora", LORAS[:1], indirect=True)
def test_host_with_the_lora_equals_the_recipe_with_its_adapter_set(host, pack, lora):
    from hyper_sd.demo.recipe.export import load_checkpoint
    from hyper_sd.training.export import load_lora
    from hyper_sd.training.lora_layers import LoraLayers
    from safetensors import safe_open

    name, path = lora
    with torch.inference_mode(False), torch.no_grad():
        unet = load_checkpoint(host.demo_checkpoint())[1].unet
        with safe_open(path, "pt") as file:
            layers = LoraLayers(unet, int(file.metadata()["ss_network_dim"]))
        load_lora(path, layers)
        g = torch.Generator().manual_seed(1)
        x, t, context = torch.randn(2, 4, 16, 16, generator=g), torch.tensor([999, 300]), torch.randn(2, 77, 192, generator=g)
        plain = unet(x, t, context).sample
        with layers.using("student"):
            expected = unet(x, t, context).sample
    model = pack["HyperSDDemoModel"].execute(name).args[0]
    model.patch_model()
    torch.testing.assert_close(model.model.diffusion_model(x, t, context=context), expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(plain, expected, atol=1e-2)


@pytest.mark.parametrize("lora", LORAS[:1], indirect=True)
def test_one_step_image_comes_nearer_to_the_25_step_one(host, pack, demo, lora):
    def sample(model, steps, cfg):
        conds = [demo[1].encode_from_tokens_scheduled(demo[1].tokenize(p)) for p in ("red heart", "")]
        return host.ksampler(model, *conds, steps=steps, cfg=cfg, image=host.latent(batch=4))

    wanted = sample(demo[0], 25, 4.0)
    distilled = sample(pack["HyperSDDemoModel"].execute(lora[0]).args[0], 1, 1.0)
    base = sample(demo[0], 1, 4.0)
    assert (distilled - wanted).square().mean() < 0.5 * (base - wanted).square().mean()


def test_core_trains_the_hosts_own_network_and_its_file_is_matched_whole(host, demo, tmp_path, caplog):
    import comfy.lora
    import comfy.utils
    from hyper_sd.samplers.schedule import NoiseSchedule
    from hyper_sd.training.config import Stage, TrainingConfig
    from hyper_sd.training.data.examples import LatentExamples
    from hyper_sd.training.denoiser import Denoiser
    from hyper_sd.training.diffusion import Diffusion
    from hyper_sd.training.export import save_lora
    from hyper_sd.training.loop import train
    from hyper_sd.training.lora_layers import LoraLayers

    def call(network, x, time, conditioning):
        return network(x, time, context=conditioning["context"])

    with torch.inference_mode(False), torch.enable_grad():
        model = host.small_unet()
        network = model.model.diffusion_model
        before = {k: v.clone() for k, v in network.state_dict().items()}
        denoiser = Denoiser(network, Diffusion.from_schedule(NoiseSchedule.from_betas()), call)
        layers = LoraLayers(network, 2)
        texts, empty = torch.randn(4, 3, host.CONTEXT), torch.randn(1, 3, host.CONTEXT)
        examples = LatentExamples(torch.randn(4, 4, 16, 16), {"context": texts}, {"context": empty})
        config = TrainingConfig(
            stages=(Stage(2, 2, 1.0, 0.1),), batch_size=2, rank=2, learning_rate=1e-3, gradient_checkpointing=True
        )
        states = list(train(config, denoiser, layers, examples))
    assert set(states[-1].losses) == {"loss", "distance", "adversarial", "discriminator"}
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    names = {ldm.removesuffix(".weight"): d.removesuffix(".weight")
             for d, ldm in comfy.utils.unet_to_diffusers(model.model.model_config.unet_config).items()}  # fmt: skip
    save_lora(tmp_path / "a.safetensors", layers, rename=names.__getitem__)
    layers.detach()
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    with caplog.at_level(logging.WARNING):
        loaded = comfy.lora.load_lora(comfy.utils.load_torch_file(str(tmp_path / "a.safetensors")), keys)
    assert len(loaded) == len(layers.layers)
    assert not [r.message for r in caplog.records if "not loaded" in r.message]
