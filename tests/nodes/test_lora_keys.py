"""LoRAs of every family and naming on the host's own networks of full size, built without memory for their weights."""

import logging
import math

import pytest
import torch
from hyper_sd.models.lora import host_keys, read_lora
from hyper_sd.models.lora_fit import match
from hyper_sd.tests.models.synthetic_loras import MODULES, NAMINGS, RELEASED, Form, write_lora

UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "use_spatial_transformer": True,
    "legacy": False, "use_temporal_attention": False, "dtype": torch.float32,
}  # fmt: skip
CONFIGS = {
    "sd15": UNET | {
        "num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4], "context_dim": 768, "use_linear_in_transformer": False,
        "transformer_depth": [1] * 6 + [0, 0], "transformer_depth_middle": 1, "transformer_depth_output": [1] * 9 + [0] * 3,
        "adm_in_channels": None,
    },
    "sdxl": UNET | {
        "num_res_blocks": [2] * 3, "channel_mult": [1, 2, 4], "context_dim": 2048, "use_linear_in_transformer": True,
        "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "adm_in_channels": 2816, "num_classes": "sequential",
    },
    "sd3": {
        "in_channels": 16, "patch_size": 2, "depth": 24, "input_size": None, "adm_in_channels": 2048, "num_patches": 36864,
        "pos_embed_max_size": 192, "pos_embed_scaling_factor": None, "dtype": torch.float32,
        "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}},
    },
    "flux": {
        "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096,
        "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19, "depth_single_blocks": 38, "patch_size": 2,
        "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True, "guidance_embed": True, "dtype": torch.float32,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def networks(host):
    """The host's model of a family, on the meta device."""
    import comfy.supported_models as supported
    from comfy.ldm.flux.model import FluxParams

    later = {"txt_ids_dims": []} if "txt_ids_dims" in FluxParams.__dataclass_fields__ else {}  # hosts from 0.10 on ask for it
    configs = CONFIGS | {"flux": CONFIGS["flux"] | later}
    kinds, built = {"sd15": supported.SD15, "sdxl": supported.SDXL, "sd3": supported.SD3, "flux": supported.Flux}, {}

    def network(family):
        if family not in built:
            built[family] = kinds[family](configs[family]).get_model({}, device=torch.device("meta"))
        return built[family]

    return network


@pytest.fixture
def load(networks, caplog):
    """Loads a file with the host's own functions: (patches by weight, tensors dropped, names the host offers)."""
    import comfy.lora
    import comfy.lora_convert
    import comfy.utils

    def run(path, family, convert=False):
        offered = comfy.lora.model_lora_keys_unet(networks(family), {})
        tensors = comfy.utils.load_torch_file(str(path))
        if convert:
            names = host_keys(tensors)
            tensors = {names[key]: tensor for key, tensor in tensors.items()}
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(tensors), offered)
        dropped = [r.message.rpartition(" ")[2] for r in caplog.records if "not loaded" in r.message]
        return patches, dropped, match(tensors, dict.fromkeys(offered))

    return run


def _misfits(network, patches) -> list[str]:
    """Returns the weights, or the rows of them that a patch names, that do not have the shape of up @ down."""
    weights, found = network.state_dict(), []
    for target, adapter in patches.items():
        key, rows = (target[0], target[1]) if isinstance(target, tuple) else (target, None)
        shape = list(weights[key].shape)
        if rows:
            shape[rows[0]] = rows[2]
        up, down = adapter.weights[:2]
        if (up.shape[0], math.prod(down.shape[1:])) != (shape[0], math.prod(shape[1:])):
            found.append(key)
    return found


@pytest.mark.parametrize("family", MODULES)
def test_every_module_of_the_released_form_is_matched_as_it_is(load, networks, family, tmp_path):
    path = write_lora(tmp_path / "a.safetensors", family, 2)
    patches, dropped, found = load(path, family)
    assert (len(patches), dropped) == (MODULES[family], [])
    assert (found.matched, found.modules, found.dropped) == (MODULES[family], MODULES[family], ())
    assert not _misfits(networks(family), patches)
    alphas = {adapter.weights[2] for adapter in patches.values()}
    assert alphas == {RELEASED[family].alpha}
    assert load(path, family, convert=True)[0].keys() == patches.keys()


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("family", MODULES)
def test_every_module_is_matched_after_conversion(load, networks, family, naming, tmp_path):
    path = write_lora(tmp_path / "a.safetensors", family, 1, Form(naming, 8.0))
    patches, dropped, found = load(path, family, convert=True)
    assert (len(patches), dropped) == (MODULES[family], [])
    assert sorted(found.dropped) == sorted(dropped)
    assert not _misfits(networks(family), patches)
    assert {adapter.weights[2] for adapter in patches.values()} == {8.0}


@pytest.mark.parametrize(("family", "naming"), [("sd15", "unet"), ("sdxl", "unet"), ("sdxl", "peft default"), ("flux", "peft")])
def test_host_alone_drops_modules_and_match_tells_which(load, family, naming, tmp_path):
    path = write_lora(tmp_path / "a.safetensors", family, 1, Form(naming))
    patches, dropped, found = load(path, family)
    assert len(patches) == found.matched < MODULES[family] == found.modules
    assert sorted(found.dropped) == sorted(dropped)


def test_family_that_is_read_is_the_one_the_host_takes(load, tmp_path):
    for family in MODULES:
        path = write_lora(tmp_path / f"{family}.safetensors", family, 1)
        assert read_lora(path).family == family
        assert load(path, family)[2].matched == MODULES[family]
