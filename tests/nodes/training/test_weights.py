"""Weights that can be trained through, and those that are refused before anything is loaded or written."""

import pytest
import torch
from hyper_sd.errors import UnsupportedModelError
from hyper_sd.tests.nodes.training import packed_weights
from hyper_sd.tests.nodes.training.lora_runs import is_as_before, weights_of
from safetensors.torch import load_file, save_file


@pytest.fixture
def load(host):
    """Loads a UNet file as the host's Load Diffusion Model node does."""
    import comfy.sd

    return lambda path, **options: comfy.sd.load_diffusion_model(str(path), model_options=options)


def as_bytes(layer):
    layer.weight = torch.nn.Parameter(torch.zeros(layer.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)


@pytest.mark.parametrize(
    ("packing", "given"), [(packed_weights.pack, "PackedWeight of torch.uint8"), (as_bytes, "Parameter of torch.uint8")]
)
def test_packed_weights_are_refused_before_anything_happens(unet, train, tmp_path, monkeypatch, packing, given):
    import comfy.model_management

    monkeypatch.delattr(comfy.model_management, "load_models_gpu")
    packing(unet.model.diffusion_model.middle_block[1].transformer_blocks[0].attn2.to_q)
    with pytest.raises(UnsupportedModelError, match=rf"attn2\.to_q\.weight is a {given}\); instead of a GGUF, .* load"):
        train(unet)
    assert list(tmp_path.iterdir()) == []


def test_file_in_scaled_fp8_is_refused_where_its_layers_would_be_left_out(host, load, train_sd15, sd15_checkpoint, tmp_path):
    import comfy.ops

    if hasattr(comfy.ops, "scaled_fp8_ops"):
        pytest.skip("this ComfyUI keeps scaled fp8 as plain weights of torch's own layers, which are trained through")
    tensors = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for key, weight in load_file(sd15_checkpoint).items():
        name, is_scaled = key.removeprefix("model.diffusion_model."), key.endswith("to_q.weight")
        tensors[name] = (weight / 2).to(torch.float8_e4m3fn) if is_scaled else weight
        if is_scaled:
            tensors[name.replace("to_q.weight", "to_q.scale_weight")] = torch.tensor(2.0)
    save_file(tensors, tmp_path / "scaled.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"to_q.weight is a QuantizedTensor .* or scaled fp8 file load"):
        train_sd15(load(tmp_path / "scaled.safetensors"), "a")


def test_plain_fp8_is_trained_and_multiplying_in_fp8_is_refused(host, load, train_sd15, sd15_checkpoint):
    import comfy.ops

    model = load(sd15_checkpoint, dtype=torch.float8_e4m3fn)
    before = weights_of(model)
    assert train_sd15(model, "a").steps == 2
    assert is_as_before(model, before)
    assert model.model.diffusion_model.input_blocks[0][0].weight.dtype == torch.float8_e4m3fn
    fast = load(sd15_checkpoint, dtype=torch.float8_e4m3fn, custom_operations=comfy.ops.fp8_ops)
    with pytest.raises(UnsupportedModelError, match="fp8_e4m3fn instead of fp8_e4m3fn_fast"):
        train_sd15(fast, "a")
