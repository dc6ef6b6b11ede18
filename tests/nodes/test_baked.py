"""A baked checkpoint in a real ComfyUI: its weights are those of the base with the host's own LoRA patches."""

import pytest
import torch
from hyper_sd.models.bake import bake
from hyper_sd.tests.models import bake_world as world
from hyper_sd.tests.models import synthetic_checkpoints

STRENGTH, TEXT_STRENGTH = 0.7, 0.4
STEP = {
    torch.float16: 2.0**-10,
    torch.float32: 2.0**-22,
}  # a step of the dtype at 1, for float32 with room for sums in another order
NAMINGS = {"kohya": False, "kohya, original names": True, "PEFT in diffusers": False, "ComfyUI": False}  # -> with lora_mid


def config_of(state, family):
    """Returns the host's configuration of the family, with the sizes that it finds in a checkpoint."""
    import comfy.model_detection
    import comfy.supported_models

    found = comfy.model_detection.detect_unet_config(state, world.UNET)
    kind = {"sd15": comfy.supported_models.SD15, "sdxl": comfy.supported_models.SDXL}[family]
    config = kind(found)
    config.unet_config.update(num_heads=4, num_head_channels=-1)
    return config


def unet_of(path, family, dtype):
    """Returns the MODEL of a checkpoint as the host loads it."""
    import comfy.model_patcher
    import comfy.utils

    state = comfy.utils.load_torch_file(str(path))
    config = config_of(state, family)
    config.set_inference_dtype(dtype, None)
    model = config.get_model(state, world.UNET)
    known = {world.UNET + key for key in model.diffusion_model.state_dict()}
    assert {key for key in state if key.startswith(world.UNET)} <= known
    model.load_model_weights(state, world.UNET)
    return comfy.model_patcher.ModelPatcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def text_encoders_of(path, family):
    """Returns the text encoders' weights under the names that the host gives them, as something that takes its patches."""
    import comfy.model_patcher
    import comfy.utils

    state = comfy.utils.load_torch_file(str(path))
    config = config_of(state, family)
    start = ("cond_stage_model.", "conditioner.")
    converted = config.process_clip_state_dict({key: tensor for key, tensor in state.items() if key.startswith(start)})
    network = synthetic_checkpoints.loaded([(key, tuple(tensor.shape)) for key, tensor in converted.items()])
    for name, tensor in converted.items():
        layer, _, last = name.rpartition(".")
        network.get_submodule(layer)._parameters[last] = torch.nn.Parameter(tensor, requires_grad=False)
    return comfy.model_patcher.ModelPatcher(network, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def patched(patcher, tensors, names, strength):
    """Returns the weights with the host's own patches, and how many of them were patched."""
    import comfy.lora
    import comfy.lora_convert

    found = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(tensors)), names)
    patcher = patcher.clone()
    taken = patcher.add_patches(found, strength)
    assert set(taken) == set(found)
    patcher.patch_model()
    weights = {key: tensor.clone() for key, tensor in patcher.model.state_dict().items()}
    patcher.unpatch_model()
    return weights, taken


def require_equal(new, host, dtype, patched_keys, plain):
    """Compares weights: those that were patched to a step of the dtype, all others exactly."""
    assert new.keys() == host.keys()
    for key, tensor in new.items():
        if key not in patched_keys:
            assert torch.equal(tensor, host[key]), key
            continue
        assert not torch.equal(tensor, plain[key]), key
        error = (tensor.double() - host[key].double()).abs()
        size = torch.maximum(tensor.double().abs(), plain[key].double().abs())
        assert bool((error <= STEP[dtype] * size + 2.0**-24).all()), (key, float(error.max()))


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize(("family", "dtype"), [("sd15", torch.float32), ("sd15", torch.float16), ("sdxl", torch.float16)])
def test_weights_are_those_of_the_hosts_own_patches(host, tmp_path, family, dtype, naming):
    import comfy.lora

    base = world.write_base(tmp_path / "base.safetensors", family, dtype)
    given = {"naming": naming, "mid": NAMINGS[naming], "alpha": None if naming == "ComfyUI" else 1.0}
    listed = world.layers(family)
    path = world.write_lora(tmp_path / "lora.safetensors", listed, **given)
    tensors = hosts_names(world.lora(listed, **given)[0])
    new = bake(base, path, tmp_path / "new.safetensors", strength=STRENGTH, text_strength=TEXT_STRENGTH)
    assert new.match.is_whole
    unets = [unet_of(file, family, dtype) for file in (base, new.path)]
    plain = {key: tensor.clone() for key, tensor in unets[0].model.state_dict().items()}
    names = comfy.lora.model_lora_keys_unet(unets[0].model, {})
    weights, keys = patched(unets[0], tensors, names, STRENGTH)
    assert len(keys) == sum(not layer.encoder for layer in listed)
    require_equal(unets[1].model.state_dict(), weights, dtype, keys, plain)
    texts = [text_encoders_of(file, family) for file in (base, new.path)]
    plain = {key: tensor.clone() for key, tensor in texts[0].model.state_dict().items()}
    weights, keys = patched(texts[0], tensors, comfy.lora.model_lora_keys_clip(texts[0].model, {}), TEXT_STRENGTH)
    assert len(keys) == sum(bool(layer.encoder) for layer in listed)
    require_equal(texts[1].model.state_dict(), weights, dtype, keys, plain)


def hosts_names(tensors):
    """Returns a LoRA's tensors under names that the host knows: of PEFT's it misses an attention's layers by itself."""
    from hyper_sd.models.lora_keys import host_keys

    names = host_keys(tensors)
    return {names[key]: tensor for key, tensor in tensors.items()}
