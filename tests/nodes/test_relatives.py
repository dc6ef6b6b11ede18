"""Models that the host has in a family's own class, or under its names, on the host's own networks of full size without memory
for their weights: told by their sizes, offered nothing of the release, and given the LoRAs that fit them."""

import dataclasses

import pytest
import torch
from hyper_sd.errors import UnsupportedModelError
from hyper_sd.tests.models.synthetic_loras import Form, write_lora
from safetensors.torch import load_file, save_file

UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "use_spatial_transformer": True,
    "legacy": False, "use_temporal_attention": False, "dtype": torch.float32, "use_linear_in_transformer": True,
    "channel_mult": [1, 2, 4], "context_dim": 2048, "adm_in_channels": 2816, "num_classes": "sequential",
}  # fmt: skip
SD35 = {
    "in_channels": 16, "patch_size": 2, "input_size": None, "adm_in_channels": 2048, "num_patches": 36864, "qk_norm": "rms",
    "pos_embed_max_size": 192, "pos_embed_scaling_factor": None, "dtype": torch.float32,
}  # fmt: skip
FLUX = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0,
    "num_heads": 24, "depth": 19, "depth_single_blocks": 38, "patch_size": 2, "axes_dim": [16, 56, 56], "theta": 10000,
    "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [], "dtype": torch.float32,
}  # fmt: skip
VIDEO = {"byt5": False, "meanflow": False, "meanflow_sum": False, "use_cond_type_embedding": False, "vision_in_dim": None}
KOALA = {"num_res_blocks": [1] * 3, "transformer_depth_middle": -2}
FLUX2 = {
    "image_model": "flux2", "in_channels": 128, "out_channels": 128, "vec_in_dim": None, "context_in_dim": 15360,
    "hidden_size": 6144, "mlp_ratio": 3.0, "num_heads": 48, "depth": 8, "depth_single_blocks": 48, "patch_size": 1,
    "axes_dim": [32] * 4, "theta": 2000, "qkv_bias": False, "txt_ids_dims": [3], "global_modulation": True, "ops_bias": False,
    "mlp_silu_act": True,
}  # fmt: skip


def embedded_by(width: int, rows: int) -> dict:
    """Returns how SD3's text states become a stream of a width."""
    return {"context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": rows, "out_features": width}}}


# name -> the host's class, its configuration, and what the model is called.
RELATIVES = {
    "SSD-1B": (
        "SSD1B",
        UNET | {"num_res_blocks": [2] * 3, "transformer_depth": [0, 0, 2, 2, 4, 4], "transformer_depth_middle": -1}
        | {"transformer_depth_output": [0, 0, 0, 1, 1, 2, 10, 4, 4]},
        "a relative of SDXL with another number of layers",
    ),
    "Vega": (
        "Segmind_Vega",
        UNET | {"num_res_blocks": [2] * 3, "transformer_depth": [0, 0, 1, 1, 2, 2], "transformer_depth_middle": -1}
        | {"transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2]},
        "a relative of SDXL with another number of layers",
    ),
    "KOALA": (
        "KOALA_700M",
        UNET | KOALA | {"transformer_depth": [0, 2, 5], "transformer_depth_output": [0, 0, 2, 2, 5, 5]},
        "a relative of SDXL with another number of layers",
    ),
    "SD3.5 Large": ("SD3", SD35 | {"depth": 38} | embedded_by(2432, 4096), "SD3.5 Large"),
    "SD3.5 Medium": (
        "SD3",
        SD35 | {"depth": 24, "x_block_self_attn_layers": list(range(13))} | embedded_by(1536, 4096),
        "SD3.5 Medium",
    ),
    "FLUX.2": ("Flux2", FLUX | FLUX2, "FLUX.2"),
    "Chroma": (
        "Chroma",
        FLUX | {"image_model": "chroma", "in_dim": 64, "out_dim": 3072, "hidden_dim": 5120, "n_layers": 5},
        "Chroma",
    ),
    "HunyuanVideo": (
        "HunyuanVideo",
        FLUX | VIDEO | {"image_model": "hunyuan_video", "depth": 20, "depth_single_blocks": 40, "patch_size": [1, 2, 2]},
        "HunyuanVideo",
    ),
}  # fmt: skip


FILL = ("FluxInpaint", FLUX | {"image_model": "flux", "in_channels": 96}, "flux")


def known_here(config: dict) -> dict:
    """Returns a configuration without what this version of the host does not take."""
    from comfy.ldm.chroma.model import ChromaParams
    from comfy.ldm.flux.model import FluxParams
    from comfy.ldm.hunyuan_video.model import HunyuanVideoParams

    kinds = {"flux": FluxParams, "flux2": FluxParams, "chroma": ChromaParams, "hunyuan_video": HunyuanVideoParams}
    if config.get("image_model") not in kinds:
        return dict(config)
    taken = {field.name for field in dataclasses.fields(kinds[config["image_model"]])} | {"image_model", "dtype"}
    return {key: value for key, value in config.items() if key in taken}


@pytest.fixture(scope="module")
def models(host):
    """The host's MODEL of a name in RELATIVES, or of FLUX.1 Fill, on the meta device."""
    import comfy.model_patcher
    import comfy.supported_models

    meta, built = torch.device("meta"), {}

    def model(name):
        kind, config, _ = (RELATIVES | {"FLUX.1 Fill": FILL})[name]
        if not hasattr(comfy.supported_models, kind):
            pytest.skip(f"this ComfyUI has no {kind}")
        if name not in built:
            inner = getattr(comfy.supported_models, kind)(known_here(config)).get_model({}, device=meta)
            built[name] = comfy.model_patcher.ModelPatcher(inner, load_device=torch.device("cpu"), offload_device=meta)
        return built[name]

    return model


@pytest.fixture
def lora(tmp_path):
    """Writes a LoRA of a family and returns its path."""
    return lambda family, naming="kohya": write_lora(tmp_path / f"{family}.safetensors", family, 1, Form(naming, 8.0))


@pytest.fixture
def own(tmp_path):
    """Writes a LoRA of the sizes that a MODEL's layers have, under the host's own names for them, and returns its path."""
    from hyper_sd.models.network_shapes import shapes_of

    def write(model):
        tensors = {}
        for name, shape in shapes_of(model.model.diffusion_model).items():
            if name.endswith(".weight") and shape and len(shape) == 2 and "blocks" in name:
                module = f"diffusion_model.{name.removesuffix('.weight')}"
                tensors[f"{module}.lora_A.weight"] = torch.ones(1, shape[1])
                tensors[f"{module}.lora_B.weight"] = torch.ones(shape[0], 1)
        save_file(tensors, tmp_path / "own.safetensors")
        return tmp_path / "own.safetensors"

    return write


@pytest.mark.parametrize("name", RELATIVES)
def test_a_relative_is_named_and_offered_nothing_of_the_release(models, pack, name):
    from hyper_sd.nodes.lora_files import family_of

    model, title = models(name), RELATIVES[name][2]
    assert family_of(model) == title
    with pytest.raises(UnsupportedModelError, match=f"There is no Hyper-SD LoRA for {title}") as caught:
        pack["HyperSDLoraLoader"].execute(model, 4, "auto", 0.0)
    assert "download" not in str(caught.value)


@pytest.mark.parametrize("name", RELATIVES)
def test_a_relatives_own_lora_is_taken_whole(models, own, name):
    from hyper_sd.nodes.lora_files import add_lora, read_file

    path = own(models(name))
    _, tensors = read_file(path, models(name))
    patched, match = add_lora(models(name), path, tensors, 1.0)
    assert match.is_whole
    assert match.matched == len(patched.patches) == len(load_file(path)) // 2


@pytest.mark.parametrize(
    ("name", "related", "sampler"), [("SSD-1B", "SDXL", "hyper_sd_tcd"), ("FLUX.2", "FLUX.1-dev", "euler")]
)
def test_a_relatives_own_lora_is_sampled_by_a_recipe_that_is_said_to_be_anothers(
    models, own, tmp_path, monkeypatch, name, related, sampler
):
    import folder_paths
    from hyper_sd.nodes.lora import choose_plan

    path, kind = own(models(name)), folder_paths.folder_names_and_paths["loras"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], kind))
    chosen, found = choose_plan(models(name), 4, "auto", path.name)
    assert (found, chosen.sampler, chosen.source) == (path, sampler, "a guess")
    assert f"No recipe is released for {RELATIVES[name][2]}, so one of {related} is taken." in chosen.reason


@pytest.mark.parametrize(
    ("name", "family"), [("FLUX.2", "flux"), ("SD3.5 Large", "sd3"), ("HunyuanVideo", "flux"), ("Chroma", "sdxl")]
)
def test_a_lora_of_a_familys_sizes_is_refused_on_a_relative_of_others(models, lora, name, family):
    from hyper_sd.nodes.lora_files import add_lora, read_file

    path = lora(family, "transformer" if family in {"flux", "sd3"} else "kohya")
    with pytest.raises(UnsupportedModelError, match=rf"{family}.safetensors (was made for|has a place)|No module of {family}"):
        add_lora(models(name), path, read_file(path, models(name))[1], 1.0)


def test_a_lora_of_sdxl_is_taken_as_far_as_it_fits_a_relative_and_the_rest_is_said(models, lora):
    from hyper_sd.nodes.lora_files import add_lora, read_file

    path = lora("sdxl")
    patched, match = add_lora(models("SSD-1B"), path, read_file(path, models("SSD-1B"))[1], 1.0)
    assert 0 < match.matched == len(patched.patches) < 788
    assert "tensors have no place in this model" in str(match)


def test_layers_of_other_sizes_are_left_out_and_said(models, lora):
    """SD3.5 Medium's first 13 blocks modulate three more parts than SD3's."""
    from hyper_sd.nodes.lora_files import add_lora, fit, read_file

    model, path = models("SD3.5 Medium"), lora("sd3", "transformer")
    tensors = read_file(path, model)[1]
    patched, match = add_lora(model, path, tensors, 1.0)
    assert (match.matched, match.modules, len(match.misfits)) == (328, 341, 13)
    assert (
        "13 modules of other sizes are left out, such as transformer.transformer_blocks.0.norm1.linear "
        "(its sizes are 9216 x 1536, the model's layer has 13824 x 1536)"
    ) in str(match)
    assert len(patched.patches) < 341
    assert not any("norm1.linear" in key for key in fit(model, path, tensors).tensors if "blocks.0." in key)


def test_a_flux_lora_fits_flux_fill_but_for_the_layer_that_also_reads_the_mask(models, lora):
    from hyper_sd.nodes.lora_files import add_lora, family_of, read_file

    model, path = models("FLUX.1 Fill"), lora("flux", "transformer")
    assert family_of(model) == "flux"
    match = add_lora(model, path, read_file(path, model)[1], 1.0)[1]
    assert (match.matched, match.modules, list(match.misfits)) == (503, 504, ["transformer.x_embedder"])
