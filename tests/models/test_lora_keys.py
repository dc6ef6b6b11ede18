"""The names of LoRA tensors: taken apart, and changed where the host would drop them."""

import pytest
from hyper_sd.errors import UnsupportedModelError
from hyper_sd.models.lora import host_keys
from hyper_sd.models.lora_keys import layer_path, split_key
from hyper_sd.tests.models.synthetic_loras import NAMINGS, layers


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("lora_unet_x.lora_down.weight", "lora_unet_x.lora_down.weight"),
        ("lora_te1_x.alpha", "lora_te1_x.alpha"),
        ("transformer.proj_out.lora_A.weight", "transformer.proj_out.lora_A.weight"),
        ("diffusion_model.double_blocks.0.x.lora_A.weight", "diffusion_model.double_blocks.0.x.lora_A.weight"),
        ("unet.mid_block.a.attn1.processor.to_out_lora.up.weight", "unet.mid_block.a.attn1.processor.to_out_lora.up.weight"),
        ("unet.mid_block.a.attn1.to_q.lora.down.weight", "lora_unet_mid_block_a_attn1_to_q.lora_down.weight"),
        ("unet.mid_block.a.attn1.to_out.0.lora_B.weight", "lora_unet_mid_block_a_attn1_to_out_0.lora_up.weight"),
        ("unet.base_model.model.conv_in.lora_A.default.weight", "lora_unet_conv_in.lora_down.weight"),
        ("unet.mid_block.a.attn1.to_q.alpha", "lora_unet_mid_block_a_attn1_to_q.alpha"),
        ("base_model.model.transformer_blocks.0.x.lora_A.weight", "transformer.transformer_blocks.0.x.lora_down.weight"),
        ("transformer.base_model.model.norm_out.linear.lora_B.weight", "transformer.norm_out.linear.lora_up.weight"),
        ("lora_unet_single_transformer_blocks_0_proj_mlp.alpha", "lora_transformer_single_transformer_blocks_0_proj_mlp.alpha"),
        ("double_blocks.0.img_mlp.0.lora_A.weight", "diffusion_model.double_blocks.0.img_mlp.0.lora_down.weight"),
        ("model.diffusion_model.input_blocks.1.x.lora_A.weight", "diffusion_model.input_blocks.1.x.lora_down.weight"),
        ("text_encoder.base_model.model.text_model.x.lora_A.weight", "text_encoder.text_model.x.lora_down.weight"),
        ("text_encoder.text_model.x.lora_linear_layer.up.weight", "text_encoder.text_model.x.lora_linear_layer.up.weight"),
        ("something.else", "something.else"),
    ],
)  # fmt: skip
def test_names_the_host_would_drop_are_changed_and_others_kept(old, new):
    assert host_keys([old]) == {old: new}
    assert host_keys([new]) == {new: new}


def test_several_adapters_in_one_file_are_refused():
    keys = [f"transformer.proj_out.lora_A.{name}.weight" for name in ("default_0", "default_1")]
    with pytest.raises(UnsupportedModelError, match="twice, by the adapters default_0, default_1"):
        host_keys(keys)


def test_flux_control_loras_are_left_to_the_host():
    keys = ["img_in.lora_A.weight", "double_blocks.0.img_attn.qkv.lora_B.bias", "double_blocks.0.img_attn.qkv.lora_A.weight"]
    assert list(host_keys(keys).values()) == keys


def test_layer_paths_agree_in_all_namings():
    layer = layers("sdxl")[20]
    paths = {layer_path(split_key(name).module) for make in NAMINGS.values() for name, _, _ in make(layer, 1, 1.0)}
    assert paths == {layer.path.replace(".", "_")}
