import json

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, PNDMScheduler
from hyper_sd.errors import TrainingError, UnsupportedModelError
from hyper_sd.samplers.schedule import NoiseSchedule
from hyper_sd.tests.training.launch.tiny_pipelines import make_pipeline, save_pipeline
from hyper_sd.training.diffusion import Diffusion
from hyper_sd.training.launch.diffusers_models import DiffusersModel, diffusion_of, fingerprint, load_model
from hyper_sd.training.lora_layers import LoraLayers

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_diffusion_is_that_of_the_hosts_for_sd_schedulers(kind, prediction):
    found = diffusion_of(kind(**BETAS, prediction_type=prediction))
    expected = Diffusion.from_schedule(NoiseSchedule.from_betas(), prediction)
    assert found.prediction_type == prediction
    assert torch.allclose(found.alpha, expected.alpha, rtol=1e-5)
    assert torch.allclose(found.sigma, expected.sigma, rtol=1e-5)


def test_zero_terminal_snr_is_read_from_the_scheduler():
    found = diffusion_of(DDIMScheduler(**BETAS, prediction_type="v_prediction", rescale_betas_zero_snr=True))
    expected = Diffusion.from_schedule(NoiseSchedule.from_betas(zero_terminal_snr=True), "v_prediction")
    assert float(found.alpha[-1]) < 3e-4
    assert torch.allclose(found.alpha, expected.alpha, atol=1e-5)


def test_flow_schedule_is_shifted_as_the_scheduler_says():
    found = diffusion_of(FlowMatchEulerDiscreteScheduler(shift=3.0))
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert found.prediction_type == "flow"
    assert torch.allclose(found.sigma, 3 * t / (1 + 2 * t), atol=1e-6)


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        (DDIMScheduler(num_train_timesteps=100), "has 100 timesteps"),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "shifts its times"),
        (EDMEulerScheduler(), "has no betas"),
    ],
)
def test_schedules_of_other_models_are_refused(scheduler, said):
    with pytest.raises(UnsupportedModelError, match=said):
        diffusion_of(scheduler)


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sd3"])
def test_encoders_and_call_are_those_of_the_pipeline(kind):
    """The pipeline is left to run one guided step; our pieces must give its network the same arguments."""
    pipeline = make_pipeline(kind)
    pipeline.set_progress_bar_config(disable=True)
    model, seen = DiffusersModel(pipeline), []
    hook = model.network.register_forward_hook(lambda m, a, k, out: seen.append((a, k, out[0])), with_kwargs=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    pipeline("a fox", height=64, width=64, num_inference_steps=1, guidance_scale=2.0, latents=noise, output_type="latent")
    args, kwargs, theirs = seen.pop()
    hook.remove()
    x = args[0] if args else kwargs["hidden_states"]
    t = args[1] if len(args) > 1 else kwargs["timestep"]
    encoders = model.encoders_on(torch.device("cpu"))
    with torch.no_grad():
        context = encoders.prompts(["", "a fox"])
        ours = model.denoiser.call(model.network, x, torch.as_tensor(t).expand(2), context)
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("kind", ["sd15", "sd3"])
def test_latents_are_what_the_pipeline_decodes(kind):
    pipeline = make_pipeline(kind)
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        latents = DiffusersModel(pipeline).encoders_on(torch.device("cpu")).images(pixels)
        config, vae = pipeline.vae.config, pipeline.vae
        decoded = latents / config.scaling_factor + (config.shift_factor or 0)
        assert torch.allclose(decoded, vae.encode(pixels).latent_dist.mode(), atol=1e-6)
    assert latents.shape == (2, 4, 8, 8)


def test_sdxl_is_told_the_size_of_the_bucket():
    model, seen = DiffusersModel(make_pipeline("sdxl")), []
    model.network.register_forward_pre_hook(lambda m, a, k: seen.append(k["added_cond_kwargs"]["time_ids"]), with_kwargs=True)
    with torch.no_grad():
        context = model.encoders_on(torch.device("cpu")).prompts(["a", "b"])
        model.denoiser.predict(torch.zeros(2, 4, 8, 16), torch.tensor([1, 2]), context)
    assert seen[0].tolist() == [[64, 128, 0, 0, 64, 128]] * 2


def test_sd3_adapts_the_layers_of_the_released_loras():
    model = DiffusersModel(make_pipeline("sd3"))
    layers = LoraLayers(model.network, 2, excluded=model.kind.excluded)
    blocks = sum(name.startswith("transformer_blocks.") for name in layers.layers)
    assert (len(layers.layers) - blocks, blocks) == (8, 14 + 11)  # 24 blocks in the released model: 8 + 23 * 14 + 11 = 341


def test_fingerprint_tells_weights_and_types_apart():
    layer = torch.nn.Linear(40, 40)
    name = fingerprint([layer])
    assert fingerprint([layer]) == name
    assert fingerprint([torch.nn.Linear(40, 40)]) != name
    assert fingerprint([layer.half()]) != name


def test_released_encoders_give_their_memory_back():
    model = DiffusersModel(make_pipeline("sdxl"))
    model.release_encoders()
    assert model.pipeline.vae is model.pipeline.text_encoder is model.pipeline.text_encoder_2 is None


def broken(folder, change):
    if change == "empty":
        folder.mkdir()
        return folder
    save_pipeline(folder)
    index = json.loads((folder / "model_index.json").read_text())
    if change == "class":
        index["_class_name"] = "FluxPipeline"
        (folder / "model_index.json").write_text(json.dumps(index))
    elif change == "json":
        (folder / "model_index.json").write_text("{")
    else:
        weights = next((folder / "unet").glob("*.safetensors"))
        if change == "weights":
            weights.unlink()
        else:
            weights.write_bytes(weights.read_bytes()[:1000])
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("empty", "it holds no model_index.json"),
        ("class", "is a FluxPipeline; what can be trained are StableDiffusionPipeline, "),
        ("json", "cannot be loaded"),
        ("weights", "cannot be loaded"),
        ("cut", "cannot be loaded"),
    ],
)
def test_folder_that_cannot_be_loaded_is_refused_in_one_line(tmp_path, change, said):
    with pytest.raises((TrainingError, UnsupportedModelError), match=said) as error:
        load_model(str(broken(tmp_path / "model", change)), "fp32", local=True)
    assert "\n" not in str(error.value)


def test_folder_is_loaded_as_saved_the_autoencoder_in_float32(tmp_path):
    saved = make_pipeline("sd15")
    saved.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), "bf16", local=True)
    assert model.kind.family == "sd15"
    assert next(model.network.parameters()).dtype == torch.bfloat16
    assert {p.dtype for p in model.pipeline.vae.parameters()} == {torch.float32}
    for name, tensor in saved.unet.state_dict().items():
        assert torch.equal(tensor.bfloat16(), model.network.state_dict()[name])


def test_hub_id_that_cannot_be_had_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TrainingError, match=r"nobody/nothing cannot be loaded .*hub id such as owner/name") as error:
        load_model("nobody/nothing", "fp32", local=False)
    assert "\n" not in str(error.value)
