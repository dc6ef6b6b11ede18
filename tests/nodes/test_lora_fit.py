"""How much of a LoRA goes into a MODEL of the host, and what is left out."""

import torch


def load(pack, model, steps=4, variant="auto", strength=0.0, **options):
    return pack["HyperSDLoraLoader"].execute(model, steps, variant, strength, **options).args


def test_convolutions_flattened_by_the_hosts_own_training_are_taken(worlds, unet, tmp_path):
    from hyper_sd.nodes.lora_files import fit

    good = worlds.small_lora(unet)
    flat = {name: tensor.flatten(1) if name.endswith("lora_down.weight") else tensor for name, tensor in good.items()}
    assert any(flat[name].ndim < tensor.ndim for name, tensor in good.items())
    assert fit(unet, tmp_path / "own.safetensors", flat).match.matched == len(good) // 3


def test_a_module_of_another_size_is_left_out_as_the_host_does_and_said(host, worlds, pack, loras):
    """The first convolution of an inpainting model reads 9 channels."""
    import comfy.sd

    tensors = worlds.small_lora(host.small_unet())
    name = worlds.write(loras / "plain.safetensors", tensors)
    model, _, _, _, text = load(pack, host.small_unet(channels=9), 4, "unified", 1.0, lora_name=name)
    assert f"{len(tensors) // 3 - 1} of {len(tensors) // 3} modules matched" in text
    left_out = "lora_unet_conv_in (its sizes are 32 x 36, the model's layer has 32 x 81)"
    assert f"1 modules of other sizes are left out, such as {left_out}" in text
    hosts = comfy.sd.load_lora_for_models(host.small_unet(channels=9), None, tensors, 1.0, 0.0)[0]
    for patched in (model, hosts):
        patched.patch_model()
    assert all(torch.equal(own, other) for own, other in zip(*(m.model.parameters() for m in (model, hosts)), strict=True))


def test_text_encoder_modules_without_alpha_do_not_refuse_a_whole_network(worlds, pack, unet, loras, own):
    text = {f"lora_te_text_model_x.lora_{part}.weight": torch.ones(2, 2) for part in ("down", "up")}
    name = worlds.write(loras / "text.safetensors", own[1] | text)
    shown = load(pack, unet, 4, "unified", lora_name=name)[4]
    assert f"{len(own[1]) // 3} of {len(own[1]) // 3 + 1} modules matched; 2 tensors have no place in this model" in shown


def test_packed_weights_are_compared_by_the_sizes_they_stand_for(host, worlds, pack, unet, own):
    """As ComfyUI-GGUF keeps them: bytes, more or fewer a row than values, with the shape written on the tensor."""
    packed = host.small_unet()
    for layer in packed.model.diffusion_model.modules():
        if isinstance(layer, torch.nn.Linear):
            weight = torch.zeros(layer.out_features, layer.in_features + 2, dtype=torch.uint8)
            layer.weight = torch.nn.Parameter(weight, requires_grad=False)
            layer.weight.tensor_shape = torch.Size([layer.out_features, layer.in_features])
    patches = [load(pack, model, 4, "unified", lora_name=own[0])[0].patches for model in (unet, packed)]
    assert patches[0].keys() == patches[1].keys()
    assert len(patches[0]) == len(own[1]) // 3
