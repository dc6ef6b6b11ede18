"""The one-step loader on the real host: every tensor in its place, the exact start, the same image as diffusers."""

import importlib
import logging
import math

import pytest
import torch
from hyper_sd.errors import UnsupportedModelError
from hyper_sd.models.sdxl_unet import SDXL
from hyper_sd.models.unet_file import PREFIX, inspect_unet
from hyper_sd.tests.models.synthetic_unets import SMALL, checkpoint, diffusers_unet, unet, write
from hyper_sd.tests.nodes.small_sdxl import conditioning, load_small, small_config
from safetensors.torch import load_file, save_file

SIGMA_800 = 5.1110  # sqrt((1 - alpha_bar) / alpha_bar) of SDXL's schedule
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8_e4m3fn": torch.float8_e4m3fn}


@pytest.fixture
def one_step(host):
    """nodes/one_step.py, which imports the host."""
    return importlib.import_module("hyper_sd.nodes.one_step")


@pytest.fixture
def folders(host, tmp_path):
    """The host's folders diffusion_models and checkpoints, empty but for what a test puts there."""
    import folder_paths

    names = ("diffusion_models", "checkpoints")
    before = {name: folder_paths.folder_names_and_paths[name] for name in names}
    for name in names:
        (tmp_path / name).mkdir()
        folder_paths.folder_names_and_paths[name] = ([str(tmp_path / name)], before[name][1])
        folder_paths.filename_list_cache.pop(name, None)
    yield tmp_path
    folder_paths.folder_names_and_paths.update(before)
    for name in names:
        folder_paths.filename_list_cache.pop(name, None)


@pytest.fixture
def small(one_step, tmp_path):
    """(path, MODEL) of a small SDXL UNet under diffusers' names."""
    path = write(tmp_path / "small.safetensors", unet("diffusers", SMALL))
    return path, load_small(path)


def test_stop_while_the_file_is_read_ends_the_loading_without_a_progress_bar_that_asks(host, one_step, tmp_path):
    management, path = host.comfy.model_management, write(tmp_path / "small.safetensors", unet("diffusers", SMALL))
    management.interrupt_current_processing()
    try:
        with pytest.raises(management.InterruptProcessingException):
            load_small(path)
    finally:
        management.interrupt_current_processing(False)


def start_of(host, model, sampler, sigmas, image, seed=5):
    """The tensor that the model is first asked about, before the host scales it for the network."""
    watched, calls = host.watched(model)
    host.custom(watched, conditioning(), conditioning(), sampler, sigmas, seed=seed, image=image)
    assert len(calls) == 1
    return calls[0].x


def parts(one_step, model, start=800):
    sampler = one_step.UnitNoiseSampler(one_step.sample_tcd, extra_options={"eta": 0.0})
    return sampler, one_step.one_step_sigmas(model, start)


def test_host_agrees_with_every_name_and_shape(host, one_step, tmp_path):
    import comfy.model_detection
    import comfy.supported_models
    import comfy.utils

    info = inspect_unet(write(tmp_path / "unet.safetensors", unet("diffusers"), sparse=True))
    state = one_step.host_state(info)
    config = comfy.model_detection.model_config_from_unet(state, PREFIX)
    assert type(config) is comfy.supported_models.SDXL
    theirs = comfy.utils.unet_to_diffusers(config.unet_config)
    assert all(theirs[tensor.diffusers] == tensor.original for tensor in SDXL.tensors())
    network = config.get_model(state, PREFIX, device=torch.device("meta")).diffusion_model
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == {
        tensor.original: tensor.shape for tensor in SDXL.tensors()
    }


@pytest.mark.parametrize("layout", ["diffusers", "original"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_weights_equal_the_hosts_own_loading_bit_by_bit(one_step, tmp_path, layout, dtype):
    import comfy.model_management

    path = write(tmp_path / "unet.safetensors", unet(layout, SMALL), torch.float32)
    ours = load_small(path, dtype)
    info = inspect_unet(path, SMALL)
    config = small_config(info)
    config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, torch.device("cpu")))
    names = {getattr(tensor, layout): tensor.original for tensor in SMALL.tensors()}
    theirs = config.get_model({}, "", device=torch.device("cpu"))
    theirs.load_model_weights({names[name]: tensor for name, tensor in load_file(path).items()}, "")

    assert ours.model.manual_cast_dtype == theirs.manual_cast_dtype
    expected = theirs.diffusion_model.state_dict()
    read = ours.model.diffusion_model.state_dict()
    assert set(read) == set(expected)
    assert all(tensor.dtype == dtype and torch.equal(tensor.float(), expected[key].float()) for key, tensor in read.items())
    assert not any(p.is_meta for p in [*ours.model.parameters(), *ours.model.buffers()])


def test_a_v_prediction_checkpoint_stays_one(one_step, tmp_path):
    path = write(tmp_path / "v.safetensors", [*unet("original", SMALL, PREFIX), ("v_pred", ())])
    assert load_small(path).model.model_type.name == "V_PREDICTION"


@pytest.mark.parametrize("start", [800, 999, 500])
def test_empty_latent_starts_from_unit_noise_in_the_models_scale(host, one_step, small, start):
    sampler, sigmas = parts(one_step, small[1], start)
    image = host.latent()

    x = start_of(host, small[1], sampler, sigmas, image)

    assert torch.equal(x, host.initial_noise(image) * torch.sqrt(1.0 + sigmas[0] ** 2))
    assert sigmas.tolist() == [small[1].model.model_sampling.sigmas[start].item(), 0.0]


def test_start_is_nearly_two_percent_above_the_hosts(host, one_step, small):
    import comfy.samplers

    _, sigmas = parts(one_step, small[1])
    assert sigmas[0].item() == pytest.approx(SIGMA_800, abs=1e-4)
    image = host.latent()
    plain = start_of(host, small[1], comfy.samplers.KSAMPLER(one_step.sample_tcd), sigmas, image)
    ours = start_of(host, small[1], parts(one_step, small[1])[0], sigmas, image)
    assert (ours / plain).mean().item() == pytest.approx(math.sqrt(1 + SIGMA_800**2) / SIGMA_800, rel=1e-5)


def test_image_starts_as_its_own_diffusion(host, one_step, small):
    sampler, sigmas = parts(one_step, small[1])
    image = host.latent(seed=3)

    x = start_of(host, small[1], sampler, sigmas, image)

    scaled = small[1].model.process_latent_in(image["samples"])
    torch.testing.assert_close(x, scaled + sigmas[0] * host.initial_noise(image), rtol=1e-6, atol=1e-6)


def test_mask_keeps_the_image_outside_it(host, one_step, small):
    sampler, sigmas = parts(one_step, small[1])
    image = host.latent(seed=3)
    mask = torch.zeros(1, 1, host.SIZE, host.SIZE)
    mask[..., : host.SIZE // 2] = 1
    made = host.custom(small[1], conditioning(), conditioning(), sampler, sigmas, image=image | {"noise_mask": mask})
    half = host.SIZE // 2
    torch.testing.assert_close(made[..., half:], image["samples"][..., half:], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(made[..., :half], image["samples"][..., :half], atol=0.1)


def test_one_sampler_serves_several_images_in_turn(host, one_step, small):
    sampler, sigmas = parts(one_step, small[1])
    empty, image = host.latent(), host.latent(seed=3)
    first = start_of(host, small[1], sampler, sigmas, empty)
    start_of(host, small[1], sampler, sigmas, image)
    assert torch.equal(first, start_of(host, small[1], sampler, sigmas, empty))


def test_sigmas_follow_a_patch_of_the_models_sampling(host, one_step, small):
    patched = host.with_sampling(small[1], "eps", zero_terminal_snr=True)
    table = patched.get_model_object("model_sampling").sigmas
    assert one_step.one_step_sigmas(patched, 800)[0] == table[800] != small[1].model.model_sampling.sigmas[800]


def diffusers_step(path, noise, states, vector):
    """diffusers' UNet with the file's weights, TCDScheduler at timestep 800, noise of deviation 1: its result, and its eps."""
    models = pytest.importorskip("diffusers")
    network = diffusers_unet(SMALL)
    network.load_state_dict(load_file(path), assign=True)
    scheduler = models.TCDScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    scheduler.set_timesteps(timesteps=[800])
    sizes = torch.full((1, 6), float(noise.shape[-1] * 8))
    sizes[:, 2:4] = 0
    added = {"text_embeds": vector, "time_ids": sizes}
    noise_pred = network(noise, 800, encoder_hidden_states=states, added_cond_kwargs=added).sample
    return scheduler.step(noise_pred, 800, noise, eta=0.0).prev_sample, noise_pred


def test_one_step_from_800_gives_the_image_of_diffusers(host, one_step, small):
    path, model = small
    sampler, sigmas = parts(one_step, model)
    condition, image = conditioning(), host.latent()
    noise = host.initial_noise(image)

    theirs, eps = diffusers_step(path, noise, condition[0][0], condition[0][1]["pooled_output"])
    sigma_0 = model.model.model_sampling.sigmas[0]  # diffusers ends on alpha_bar[0], a trace of noise above the clean image
    scale = torch.sqrt(1 + sigma_0**2)

    clean = host.custom(model, condition, condition, sampler, sigmas)
    same_end = host.custom(model, condition, condition, sampler, torch.stack([sigmas[0], sigma_0]))

    assert theirs.std() > 0.5
    torch.testing.assert_close(model.model.process_latent_in(clean), theirs * scale - sigma_0 * eps, rtol=0, atol=1e-4)
    torch.testing.assert_close(model.model.process_latent_in(same_end), theirs * scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp16", 0.005), ("bf16", 0.03), ("fp8_e4m3fn", 0.3)])
def test_smaller_dtypes_give_nearly_the_same_image(host, one_step, small, dtype, tolerance):
    path, model = small
    sampler, sigmas = parts(one_step, model)
    exact = host.custom(model, conditioning(), conditioning(), sampler, sigmas)
    made = host.custom(load_small(path, DTYPES[dtype]), conditioning(), conditioning(), sampler, sigmas)
    assert 0 < (made - exact).std() / exact.std() < tolerance


def test_patches_are_applied_to_it_and_taken_back(host, one_step, small):
    sampler, sigmas = parts(one_step, small[1], start=999)
    plain = host.custom(small[1], conditioning(), conditioning(), sampler, sigmas)
    patched = small[1].clone()
    taken = patched.add_patches({"diffusion_model.out.2.bias": ("diff", (torch.ones(4),))}, 0.5)
    assert taken == ["diffusion_model.out.2.bias"]
    shifted = host.custom(patched, conditioning(), conditioning(), sampler, sigmas)
    expected = -0.5 * sigmas[0] * torch.ones_like(plain)  # eps is half a unit higher everywhere
    torch.testing.assert_close(small[1].model.process_latent_in(shifted - plain), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(plain, host.custom(small[1], conditioning(), conditioning(), sampler, sigmas))


def test_files_of_both_folders_are_listed_and_one_step_unets_come_first(one_step, folders):
    assert one_step.file_options() == [one_step.NONE]
    for name in ("a.safetensors", "old.ckpt", "Hyper-SDXL-1step-Unet-Comfyui.fp16.safetensors"):
        (folders / "checkpoints" / name).touch()
    for name in ("b.safetensors", "Hyper-SDXL-1step-Unet.safetensors"):
        (folders / "diffusion_models" / name).touch()
    import folder_paths

    folder_paths.filename_list_cache.clear()
    assert one_step.file_options() == [
        "diffusion_models/Hyper-SDXL-1step-Unet.safetensors",
        "checkpoints/Hyper-SDXL-1step-Unet-Comfyui.fp16.safetensors",
        "diffusion_models/b.safetensors",
        "checkpoints/a.safetensors",
    ]


def test_a_missing_file_names_the_way_to_get_it(one_step, folders):
    for option in (one_step.NONE, "checkpoints/gone.safetensors", "../etc/passwd", "checkpoints/../../x.safetensors"):
        with pytest.raises(UnsupportedModelError, match=r"install\.py download hyper-sdxl-1step-unet"):
            one_step.file_path(option)
        assert "Hyper-SD models" in one_step.HyperSDOneStepLoader.validate_inputs(option)


def test_a_nan_stops_the_loading(one_step, small):
    path, _ = small
    tensors = load_file(path)
    tensors["mid_block.resnets.0.conv1.weight"][0, 0, 0, 0] = math.nan
    save_file(tensors, path)
    with pytest.raises(UnsupportedModelError, match=r"not finite in middle_block\.0\.in_layers\.2\.weight"):
        load_small(path)


@pytest.mark.parametrize("form", ["unet", "checkpoint"])
def test_the_released_forms_load_whole_and_without_a_warning(host, one_step, folders, caplog, form):
    if form == "unet":
        write(folders / "diffusion_models" / "Hyper-SDXL-1step-Unet.safetensors", unet("diffusers"), sparse=True)
        option = "diffusion_models/Hyper-SDXL-1step-Unet.safetensors"
    else:
        write(folders / "checkpoints" / "full.safetensors", checkpoint(), torch.float16, sparse=True)
        option = "checkpoints/full.safetensors"
    assert one_step.HyperSDOneStepLoader.validate_inputs(option) is True
    with caplog.at_level(logging.WARNING):
        model, clip, vae, _, sigmas, cfg = one_step.HyperSDOneStepLoader.execute(option, "fp8_e4m3fn").args

    assert caplog.messages == []
    weights = model.model.diffusion_model.state_dict()
    assert {tensor.dtype for tensor in weights.values()} == {torch.float8_e4m3fn}
    assert len(weights) == 1680
    assert (model.model_dtype(), model.model.device, model.load_device) == (torch.float8_e4m3fn, *[torch.device("cpu")] * 2)
    assert (sigmas.tolist(), cfg) == ([pytest.approx(SIGMA_800, abs=1e-4), 0.0], 1.0)
    if form == "checkpoint":
        assert clip.encode_from_tokens(clip.tokenize("a cat")).shape == (1, 77, 2048)
        assert vae.first_stage_model is not None
    else:
        assert "holds a UNet and no CLIP; take the CLIP from DualCLIPLoader (type sdxl)" in clip.message
        assert "holds a UNet and no VAE; take the VAE from VAELoader" in vae.message
