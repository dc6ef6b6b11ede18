import pytest
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from hyper_sd.errors import TrainingError
from hyper_sd.models.lora import read_lora
from hyper_sd.tests.training.fakes import TinyUNet
from hyper_sd.tests.training.test_lora_layers import SDXL
from hyper_sd.training.export import kohya_name, load_lora, lora_state_dict, save_lora
from hyper_sd.training.lora_layers import LoraLayers, adaptable_layers
from hyper_sd.training.unet_names import lora_names
from safetensors import safe_open
from safetensors.torch import load_file, save_file

SMALL = {
    "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 2,
    "cross_attention_dim": 6,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "sample_size": 8,
}  # fmt: skip


def filled(network, rank=3, lora_alpha=None, seed=1):
    layers = LoraLayers(network, rank, lora_alpha)
    torch.manual_seed(seed)
    for parameter in layers.add("student").parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return layers


def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(**SMALL).eval().requires_grad_(False)


def answer(network):
    g = torch.Generator().manual_seed(3)
    x, context = torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 5, 6, generator=g)
    return network(x, torch.tensor([900, 20]), context, return_dict=False)[0]


def test_names_are_kohyas():
    assert kohya_name("mid_block.attentions.0.to_out.0") == "lora_unet_mid_block_attentions_0_to_out_0"


def test_file_holds_three_tensors_a_layer_and_its_rank(tmp_path):
    layers = filled(unet(), rank=3, lora_alpha=1.5)
    save_lora(tmp_path / "a.safetensors", layers, metadata={"title": "test"})
    tensors = load_file(tmp_path / "a.safetensors")
    assert len(tensors) == 3 * len(layers.layers)
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    assert all(float(t) == 1.5 for k, t in tensors.items() if k.endswith(".alpha"))
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {
            "ss_network_module": "networks.lora", "ss_network_dim": "3", "ss_network_alpha": "1.5", "title": "test",
        }  # fmt: skip


def test_diffusers_loads_every_key_and_gives_the_same_output(tmp_path, caplog):
    pytest.importorskip("peft", reason="diffusers loads LoRA files through peft")
    network = unet()
    layers = filled(network, rank=3, lora_alpha=1.5)
    save_lora(tmp_path / "a.safetensors", layers, dtype=torch.float32)
    with layers.using("student"):
        expected = answer(network)
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers

    other = unet()
    state, alphas = _convert_non_diffusers_lora_to_diffusers(load_file(tmp_path / "a.safetensors"))
    other.load_lora_adapter(state, network_alphas=alphas, prefix="unet")
    assert not [r for r in caplog.records if "unexpected" in r.message.lower() or "missing" in r.message.lower()]
    assert len([m for m in other.modules() if hasattr(m, "lora_A")]) == len(layers.layers)
    assert not torch.allclose(answer(unet()), expected, atol=1e-3)
    assert torch.allclose(answer(other), expected, atol=1e-5)


def test_transformer_file_says_that_its_scale_is_folded_in_and_diffusers_loads_it(tmp_path):
    pytest.importorskip("peft", reason="diffusers loads LoRA files through peft")
    sizes = {"attention_head_dim": 8, "num_attention_heads": 4, "caption_projection_dim": 32, "joint_attention_dim": 32}
    network = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=2, pooled_projection_dim=16, **sizes
    )
    layers = filled(network, rank=4, lora_alpha=2.0)
    save_lora(tmp_path / "a.safetensors", layers, dtype=torch.float32, transformer=True)
    inputs = {"hidden_states": torch.randn(1, 4, 8, 8), "encoder_hidden_states": torch.randn(1, 5, 32)}
    inputs |= {"pooled_projections": torch.randn(1, 16), "timestep": torch.tensor([500])}
    with torch.no_grad():
        plain = network(**inputs).sample
        with layers.using("student"):
            expected = network(**inputs).sample
        layers.detach()
        network.load_lora_adapter(tmp_path / "a.safetensors", prefix="transformer")
        found = network(**inputs).sample
    assert not torch.allclose(plain, expected, atol=1e-2)
    torch.testing.assert_close(found, expected)
    assert read_lora(tmp_path / "a.safetensors").described_scale == 1.0


def test_own_file_is_loaded_back(tmp_path):
    network = unet()
    layers = filled(network, rank=3, lora_alpha=1.5)
    save_lora(tmp_path / "a.safetensors", layers, dtype=torch.float32)
    with layers.using("student"):
        expected = answer(network)
    layers.detach()
    wider = LoraLayers(network, 5, lora_alpha=20)
    load_lora(tmp_path / "a.safetensors", wider)
    with wider.using("student"):
        assert torch.allclose(answer(network), expected, atol=1e-5)


def test_file_without_alpha_has_scale_one(tmp_path):
    network = unet()
    layers = filled(network, rank=3)
    state = {k: v for k, v in lora_state_dict(layers, "student", torch.float32).items() if not k.endswith("alpha")}
    save_file(state, tmp_path / "a.safetensors")
    other = LoraLayers(network, 3)
    load_lora(tmp_path / "a.safetensors", other)
    with layers.using("student"):
        expected = answer(network)
    with other.using("student"):
        assert torch.allclose(answer(network), expected, atol=1e-6)


def test_modules_are_renamed_for_networks_in_another_layout(tmp_path):
    layers = filled(TinyUNet())
    names = lora_state_dict(layers, "student", rename=lambda module: f"other.{module}")
    assert all(name.startswith("lora_unet_other_") for name in names)


def test_sdxl_is_named_as_all_hosts_read_it():
    lora_conversion_utils = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    with torch.device("meta"):
        network = UNet2DConditionModel(**SDXL)
    layers = adaptable_layers(network)
    rename = lora_names(network)
    files = []
    for names in (rename, str):
        keys = [kohya_name(names(module)) for module in layers]
        state = {f"{key}.{part}": torch.zeros(1, 1) for key in keys for part in ("lora_down.weight", "lora_up.weight", "alpha")}
        state = lora_conversion_utils._maybe_map_sgm_blocks_to_diffusers(state, network.config)
        files.append(set(lora_conversion_utils._convert_non_diffusers_lora_to_diffusers(state)[0]))
    assert files[0] == files[1]
    assert len(files[0]) == 2 * 788
    assert rename("up_blocks.0.upsamplers.0.conv") == "output_blocks.2.2.conv"
    assert rename("down_blocks.1.resnets.0.time_emb_proj") == "input_blocks.4.0.emb_layers.1"
    assert rename("mid_block.attentions.0.transformer_blocks.3.attn1.to_q") == "middle_block.1.transformer_blocks.3.attn1.to_q"


def test_unfit_files_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_lora(path, filled(TinyUNet(), rank=4))
    with pytest.raises(TrainingError, match="does not fit this model"):
        load_lora(path, LoraLayers(unet(), 8))
    with pytest.raises(TrainingError, match="rank 4 or more"):
        load_lora(path, LoraLayers(TinyUNet(), 2))
    path.write_bytes(b"x")
    with pytest.raises(TrainingError, match="cannot be read"):
        load_lora(path, LoraLayers(TinyUNet(), 4))
    with pytest.raises(TrainingError, match="could not be written"):
        save_lora(path / "below.safetensors", filled(TinyUNet()))
