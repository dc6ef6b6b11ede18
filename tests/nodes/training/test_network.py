"""A MODEL's network as the training core sees it: it predicts what the host would, is loaded in place, and is told apart."""

import pytest
import torch
from hyper_sd.errors import TrainingError, UnsupportedModelError
from hyper_sd.tests.models.synthetic_unets import SMALL, unet, write
from hyper_sd.tests.nodes.small_sdxl import conditioning, load_small

T = [999, 500, 20]


@pytest.fixture
def outside():
    """Training runs outside inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def host_of(model):
    from hyper_sd.nodes.training.network import host_network

    found = host_network(model)
    found.load()
    return found


def both_views(host, model, conditioning, **extra):
    """Returns x0 as the core finds it and as the host's own apply_model does, for the same noisy latents."""
    found = host_of(model)
    t = torch.tensor(T)
    x0, noise = (host.latent(len(T), seed=seed, size=8)["samples"] for seed in (1, 2))
    x = found.diffusion.add_noise(x0, noise, t)
    rows = {name: tensor.expand(len(T), *tensor.shape[1:]) for name, tensor in conditioning(found).items()}
    own = found.diffusion.pred_x0(x, found.denoiser.predict(x, t, rows), t)
    sampling = model.get_model_object("model_sampling")
    sigma = sampling.sigmas[t]
    theirs_x = x * (1 + sigma**2).sqrt().view(-1, 1, 1, 1)
    with host.sampling_patched(model):
        theirs = model.model.apply_model(theirs_x, sigma, c_crossattn=rows["context"], **extra)
    return own, theirs


@pytest.mark.parametrize(("kind", "zsnr"), [("EPS", False), ("V_PREDICTION", False), ("V_PREDICTION", True)])
def test_prediction_equals_the_hosts(outside, host, kind, zsnr):
    model = host.small_unet(kind)
    model = host.with_sampling(model, "v_prediction", zsnr) if zsnr else model
    latents = torch.zeros(1, 4, 8, 8)
    own, theirs = both_views(host, model, lambda found: found.conditioning(host.conditioning(3)[0], latents, "positive"))
    # At the last timestep of a zero-SNR schedule the host divides by a sigma of 4500, in float32.
    torch.testing.assert_close(own, theirs, rtol=1e-3, atol=2e-3 * float(theirs.abs().max()))


def small_sdxl(tmp_path):
    return load_small(write(tmp_path / "small.safetensors", unet("diffusers", SMALL)))


def test_sdxl_is_told_the_pooled_text_and_the_size_of_its_images(outside, host, tmp_path):
    model, entry = small_sdxl(tmp_path), conditioning()[0]
    wide = torch.zeros(1, 4, 8, 24)
    given = host_of(model).conditioning(entry, wide, "positive")
    pooled = entry[1]["pooled_output"]
    expected = model.model.encode_adm(pooled_output=pooled, width=192, height=64, device="cpu")
    torch.testing.assert_close(given["y"], expected)
    assert not torch.equal(given["y"], model.model.encode_adm(pooled_output=pooled, width=64, height=64, device="cpu"))
    own, theirs = both_views(host, model, lambda _: given, y=expected.expand(len(T), -1))
    torch.testing.assert_close(own, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
    with pytest.raises(TrainingError, match="no pooled output"):
        host_of(model).conditioning([entry[0], {}], wide, "positive")


@pytest.mark.parametrize("stored", [torch.float16, torch.float8_e4m3fn])
def test_weights_stored_smaller_are_cast_as_the_host_does(outside, host, unet, stored):
    import comfy.model_base
    import comfy.model_patcher
    from hyper_sd.training.lora_layers import LoraLayers

    config = unet.model.model_config
    config.set_inference_dtype(stored, torch.float32)
    inner = comfy.model_base.BaseModel(config)
    for name, tensor in host.fill(inner.diffusion_model, seed=7).named_parameters():
        tensor.data = tensor.data.to(stored if "weight" in name or "bias" in name else tensor.dtype)
    model = comfy.model_patcher.ModelPatcher(inner, torch.device("cpu"), torch.device("cpu"))
    found = host_of(model)
    layers = LoraLayers(found.network, 2)
    with torch.enable_grad(), layers.using(layers.add("student") and "student"):
        context = {"context": torch.randn(2, 5, host.CONTEXT)}
        prediction = found.denoiser.predict(torch.randn(2, 4, 8, 8), torch.tensor([900, 10]), context)
        prediction.square().mean().backward()
    layers.detach()
    student = layers.sets["student"]
    grads = student.pairs_of(student.flat.grad)[1]
    assert found.dtype == prediction.dtype == torch.float32
    assert all(bool(grad.isfinite().all()) and bool(grad.any()) for grad in grads)
    assert {p.dtype for p in found.network.parameters()} == {stored}


def test_loading_turns_inference_tensors_into_ordinary_ones_of_the_same_value(host, pack):
    from hyper_sd.nodes.training.network import host_network

    model = pack["HyperSDDemoModel"].execute().args[0]
    network = model.model.diffusion_model
    before = {name: (p.clone(), p.requires_grad) for name, p in network.named_parameters()}
    assert any(p.is_inference() for p in network.parameters())
    host_network(model).load()
    assert not any(tensor.is_inference() for tensor in (*network.parameters(), *network.buffers()))
    assert all(torch.equal(p, before[name][0]) and p.requires_grad == before[name][1] for name, p in network.named_parameters())


def test_model_that_a_node_has_loaded_can_be_trained_through_once_the_host_has_moved_it(host, pack):
    from hyper_sd.training.lora_layers import LoraLayers

    model = pack["HyperSDDemoModel"].execute().args[0]
    model.load_device = torch.device("cpu", 0)  # the same memory, but to torch another device than cpu: it moves as to a card
    with torch.inference_mode(False):
        found = host_of(model)
        layers = LoraLayers(found.network, 2)
        context = {"context": torch.randn(1, 5, found.model.model_config.unet_config["context_dim"])}
        with torch.enable_grad(), layers.using(layers.add("student") and "student"):
            found.denoiser.predict(torch.randn(1, 4, 8, 8), torch.tensor([500]), context).square().mean().backward()
        layers.detach()
        student = layers.sets["student"]
        assert all(bool(up.any()) for up in student.pairs_of(student.flat.grad)[1])
        assert len(found.fingerprint()) == 64


def test_fingerprint_tells_weights_and_predictions_apart(outside, host):
    model, other = host.small_unet(), host.small_unet("V_PREDICTION")
    first = host_of(model).fingerprint()
    assert first == host_of(model).fingerprint() == host_of(host.small_unet()).fingerprint()
    assert host_of(other).fingerprint() != first
    next(model.model.diffusion_model.parameters()).data.mul_(1.01)
    assert host_of(model).fingerprint() != first


def test_texts_of_different_lengths_in_a_batch_predict_what_each_does_alone(outside, host, unet):
    found, chunks = host_of(unet), (3, 2, 1, 3)
    states = [torch.cat([host.conditioning(10 * n + part)[0][0] for part in range(n)], 1) for n in chunks]
    entries = [[text, {}] for text in states]
    examples = found.examples([host.latent(4, seed=1, size=8)], [entries], [host.conditioning(9)])
    batch, t = examples.batch(range(4), 0), torch.tensor([999, 600, 300, 20])
    assert batch.conditioning["context"].shape[1] == 3 * 77
    together = found.denoiser.predict(batch.latents, t, batch.conditioning)
    for row in range(4):
        one = examples.batch([row], 0)
        alone = found.denoiser.predict(one.latents, t[row : row + 1], one.conditioning)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def test_examples_of_one_size_are_one_bucket_and_keep_their_captions(outside, host):
    found = host_of(host.small_unet())
    small, large, more = (host.latent(count, seed=count, size=size) for count, size in ((2, 8), (1, 16), (3, 8)))
    entries = [host.conditioning(seed)[0] for seed in range(6)]
    examples = found.examples([small, large, more], [entries[:2], entries[2:3], entries[3:]], [host.conditioning(9)])
    assert examples.buckets == [[0, 1, 2, 3, 4], [5]]
    batch = examples.batch([1, 2], 0)
    assert torch.equal(batch.latents[0], found.model.process_latent_in(small["samples"][1]))
    assert torch.equal(batch.latents[1], found.model.process_latent_in(more["samples"][0]))
    assert torch.equal(batch.conditioning["context"], torch.cat([entries[1][0], entries[3][0]]))
    assert torch.equal(batch.unconditional["context"][1:], host.conditioning(9)[0][0])
    assert torch.equal(examples.batch([5], 0).conditioning["context"], entries[2][0])


def test_relative_of_a_family_is_trained_as_the_family_is(unet):
    import comfy.supported_models
    from hyper_sd.nodes.lora_files import family_of
    from hyper_sd.nodes.training.network import host_network

    assert family_of(unet) != "sd15"  # it has one level
    assert host_network(unet).family == "sd15"
    unet.model.model_config = comfy.supported_models.SD3(dict(unet.model.model_config.unet_config))
    with pytest.raises(UnsupportedModelError, match=r"Training is made for SD1\.5 and SDXL, got a model of family"):
        host_network(unet)


@pytest.mark.parametrize("channels", [8, 9])
def test_inpainting_and_edit_models_are_refused(host, channels):
    from hyper_sd.nodes.training.network import host_network

    model = host.small_unet()
    model.model.model_config.unet_config["in_channels"] = channels
    with pytest.raises(UnsupportedModelError, match=f"4 latent channels in, got {channels}: an inpainting or edit model"):
        host_network(model)


@pytest.mark.parametrize("sampling", ["lcm", "img_to_img"])
def test_sampling_that_no_training_is_made_for_is_refused(host, sampling):
    from hyper_sd.nodes.training.network import host_network

    with pytest.raises(UnsupportedModelError, match="Take off the node that patches its sampling"):
        host_network(host.with_sampling(host.small_unet(), sampling))


def test_network_can_be_trained_through_where_the_host_splits_its_attention(outside, host, unet, monkeypatch):
    import comfy.model_management
    from hyper_sd.training.lora_layers import LoraLayers

    def free(device=None, torch_free_too=False):
        return (1000, 1000) if torch_free_too else 1000

    found = host_of(unet)
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([500]), {"context": torch.randn(1, 5, host.CONTEXT)}

    def gradients():
        layers = LoraLayers(found.network, 2)
        torch.manual_seed(3)
        with torch.enable_grad(), layers.using(layers.add("student") and "student"):
            found.denoiser.predict(x, t, context).square().mean().backward()
        layers.detach()
        student = layers.sets["student"]
        return student.pairs_of(student.flat.grad)[1]

    whole = gradients()
    monkeypatch.setattr(comfy.model_management, "get_free_memory", free)
    split = gradients()
    assert all(bool(gradient.any()) for gradient in whole)
    torch.testing.assert_close(split, whole, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_training_in_bf16_takes_weights_of_any_kind(outside, host, unet, monkeypatch, stored):
    from hyper_sd.nodes.training import network as training_network
    from hyper_sd.training.config import Stage, TrainingConfig
    from hyper_sd.training.loop import train
    from hyper_sd.training.lora_layers import LoraLayers
    from hyper_sd.training.memory import estimate

    monkeypatch.setattr(training_network, "_precision", lambda device, computed: "bf16")  # as on a card that has it
    network = unet.model.diffusion_model.to(stored)
    network.dtype = stored
    found = host_of(unet)
    examples = _examples(host, found)
    config = TrainingConfig((Stage(4, 2),), batch_size=2, rank=2, precision=found.precision)
    batch = examples.batch([0], 0)
    assert estimate(found.denoiser, 2, config, batch.latents.shape, batch.conditioning).needed(config) > 0
    layers = LoraLayers(network, 2)
    with torch.enable_grad():
        states = list(train(config, found.denoiser, layers, examples, engine=found.engine()))
    layers.detach()
    assert found.dtype == torch.bfloat16
    assert states[-1].step == 2
    assert any(bool(up.any()) for up in layers.sets["student"].up)


def _examples(host, found):
    return found.examples([host.latent(2, seed=1, size=8)], [host.conditioning(1)], [host.conditioning(2)])
