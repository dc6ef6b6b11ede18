"""The Hyper-SD node and the checkpoint it is wired to: found by the wires, known by its note or its name, said."""

import json

import pytest
import torch
from hyper_sd.errors import ScheduleError
from hyper_sd.models.inside import few_step_note
from hyper_sd.models.recognition import Recognition
from hyper_sd.tests.models.synthetic_unets import write
from hyper_sd.tests.nodes.model_world import until
from safetensors.torch import save_file


def wired(pack, folder, name="realvis_LCM.safetensors", metadata=None, **between):
    """The node as the host makes it for a run, behind a loader of the file and whatever nodes."""
    save_file({"x": torch.zeros(2)}, folder / name, metadata)
    graph = {
        "1": {"inputs": {"ckpt_name": name}},
        **between,
        "9": {"inputs": {"model": ["5" if between else "1", 0], "steps": 4}},
    }
    return node_in(pack, graph)


def node_in(pack, graph, node_id="9"):
    from comfy_api.latest import io

    told = {io.Hidden.prompt: graph, io.Hidden.unique_id: node_id}
    return pack["HyperSDLoraLoader"].PREPARE_CLASS_CLONE({**told, "hidden_inputs": told})  # newer hosts put it one level down


@pytest.fixture
def checkpoints(host, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "checkpoints", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.clear()
    return tmp_path


def test_merged_checkpoint_is_known_by_its_name_and_gets_no_lora(pack, unet, checkpoints):
    model, sampler, sigmas, cfg, text = wired(pack, checkpoints).execute(unet, 4, "auto", 0.0).args
    assert (model, cfg, len(sigmas)) == (unet, 1.0, 5)
    assert sampler.extra_options == {"eta": 1.0, "num_segments": 1, "to_clean": True}
    assert text.startswith("no LoRA (merged checkpoint), 4 steps")
    assert "realvis_LCM.safetensors has LCM inside by its name alone, so no LoRA is added. If not, choose a variant." in text


def test_a_baked_lora_is_known_by_the_checkpoints_note(pack, unet, checkpoints):
    note = few_step_note(Recognition("mine.safetensors", "metadata", "n-step", 4), 0.9)
    node = wired(pack, checkpoints, "portraits.safetensors", note)
    model, sampler, _, _, text = node.execute(unet, 4, "auto", 0.0).args
    assert (model, sampler.extra_options["num_segments"]) == (unet, 4)
    assert "portraits.safetensors has mine.safetensors at strength 0.9 inside by its metadata, so no LoRA is added." in text
    assert "no LoRA is added" in node.execute(unet, 4, "merged checkpoint", 0.0).args[4]


def test_a_lora_on_top_is_said_and_loaded(pack, unet, own, checkpoints):
    model, *_, text = wired(pack, checkpoints).execute(unet, 4, "unified", 0.0, lora_name=own[0]).args
    assert model.patches
    assert "Two few-step LoRAs at once often burn the picture: realvis_LCM.safetensors has LCM inside by its name alone" in text
    assert (
        "Two few-step"
        not in wired(pack, checkpoints, "a.safetensors").execute(unet, 4, "unified", 0.0, lora_name=own[0]).args[4]
    )


def test_a_few_step_lora_that_was_loaded_into_such_a_checkpoint_is_said(pack, unet, loras, worlds, checkpoints):
    import comfy.sd

    tensors = worlds.small_lora(unet, seed=5)
    name = worlds.write(loras / "tcd-lora-copy.safetensors", tensors)
    loaded, _ = comfy.sd.load_lora_for_models(unet, None, tensors, 0.7, 0.0)
    text = wired(pack, checkpoints).execute(loaded, 4, "auto", 0.0).args[4]
    assert f"{name} is in this model already, and realvis_LCM.safetensors has LCM inside" in text
    merged = node_in(pack, {}).execute(loaded, 4, "merged checkpoint", 0.0, method="TCD").args[4]
    assert "Two few-step" not in merged  # the person may mean that very LoRA


@pytest.mark.parametrize("strength", [0.7, 0])
def test_a_few_step_lora_beside_the_weights_is_said_by_the_workflow(pack, unet, own, loras, worlds, checkpoints, strength):
    import comfy.sd

    if not hasattr(comfy.sd, "load_bypass_lora_for_models"):
        pytest.skip("this ComfyUI has no bypass")
    few, style = worlds.small_lora(unet, seed=5), worlds.small_lora(unet, seed=6)
    worlds.write(loras / "style.safetensors", style)
    name = worlds.write(loras / "tcd-lora-copy.safetensors", few)
    loaded = comfy.sd.load_bypass_lora_for_models(unet, None, few if strength else style, 0.7, 0)[0]
    node = wired(pack, checkpoints, "a.safetensors", **{
        "4": {"inputs": {"model": ["1", 0], "lora_name": name, "strength_model": strength}},
        "5": {"inputs": {"model": ["4", 0], "lora_name": "style.safetensors", "strength_model": 1}},
    })  # fmt: skip
    text = node.execute(loaded, 4, "unified", 0.0, lora_name=own[0]).args[4]
    assert (f"{name} is in this model already" in text) == bool(strength)
    assert "Two few-step" not in node.execute(unet, 4, "unified", 0.0, lora_name=own[0]).args[4]  # by the wires alone


def test_the_persons_method_counts_before_the_name(pack, unet, checkpoints):
    node = wired(pack, checkpoints)
    assert node.execute(unet, 4, "merged checkpoint", 0.0, method="TCD").args[1].extra_options["to_clean"] is False


def test_too_many_steps_say_that_the_name_was_a_guess(pack, unet, checkpoints):
    node = wired(pack, checkpoints, "hyper_mix.safetensors")
    with pytest.raises(ScheduleError, match=r"has Hyper-SD inside by its name alone.*takes 1 to 8 steps, got 12"):
        node.execute(unet, 12, "auto", 0.0)


LORA = {"inputs": {"model": ["1", 0], "lora_name": "style"}}
WAYS = {
    "through a LoRA loader and a patch": {"4": LORA, "5": {"inputs": {"model": ["4", 0], "shift": 3}}},
    "through a reroute": {"5": {"inputs": {"": ["1", 0]}}},
}
NO_WAYS = {
    "two models merged": {"2": {"inputs": {"ckpt_name": "b"}}, "5": {"inputs": {"model1": ["1", 0], "model2": ["2", 0]}}},
    "a ring": {"4": {"inputs": {"model": ["5", 0]}}, "5": {"inputs": {"model": ["4", 0]}}},
    "a node that is not in the workflow": {"5": {"inputs": {"model": ["77", 0]}}},
    "no wire": {"5": {"inputs": {"seed": 3}}},
    "odd inputs": {"5": {"inputs": {"ckpt_name": ["x", 0, 1], "model": "text"}}},
}


@pytest.mark.parametrize("way", WAYS)
def test_wires_are_followed_to_the_loader(pack, unet, checkpoints, way):
    text = wired(pack, checkpoints, **WAYS[way]).execute(unet, 4, "merged checkpoint", 0.0).args[4]
    assert "realvis_LCM.safetensors has LCM inside" in text


def test_the_packs_own_one_step_loader_is_a_loader_too(checkpoints, pack):
    from hyper_sd.nodes.checkpoint import checkpoint_of

    file = checkpoints / "below" / "x.safetensors"
    file.parent.mkdir()
    file.touch()
    loader = {"class_type": "HyperSDOneStepLoader", "inputs": {"file": "checkpoints/below/x.safetensors"}}
    graph = {"1": loader, "9": {"inputs": {"model": ["1", 0]}}}
    assert checkpoint_of(node_in(pack, graph)) == file
    loader["inputs"]["file"] = "elsewhere/x.safetensors"
    assert str(checkpoint_of(node_in(pack, graph))) == "x.safetensors"
    assert checkpoint_of(node_in(pack, {**graph, "1": {**loader, "class_type": "Other"}})) is None


@pytest.mark.parametrize("way", NO_WAYS)
def test_where_the_wires_lead_to_no_one_loader_nothing_is_claimed(pack, unet, checkpoints, way):
    text = wired(pack, checkpoints, **NO_WAYS[way]).execute(unet, 4, "merged checkpoint", 0.0).args[4]
    assert "inside by its name" not in text
    assert "Hyper-SD is in the checkpoint already" in text


def _small_sd15(path):
    """A UNet as deep and as wide as SD1.5's first level, by which the host knows it; its zeros take no room on the disk."""
    from comfy.ldm.modules.diffusionmodules import openaimodel

    with torch.device("meta"):
        network = openaimodel.UNetModel(
            image_size=32, in_channels=4, out_channels=4, model_channels=320, num_res_blocks=[2] * 4, channel_mult=[1] * 4,
            transformer_depth=[1] * 6 + [0] * 2, transformer_depth_output=[1] * 9 + [0] * 3, transformer_depth_middle=1,
            context_dim=768, num_heads=8, use_spatial_transformer=True, legacy=False, use_linear_in_transformer=False,
            adm_in_channels=None,
        )  # fmt: skip
    write(path, [(name, tuple(value.shape)) for name, value in network.state_dict().items()], torch.float16, sparse=True)


def test_a_running_host_tells_the_node_its_checkpoint(host, world):
    (world.base / "models" / "diffusion_models").mkdir(exist_ok=True)
    _small_sd15(world.base / "models" / "diffusion_models" / "tiny_lcm.safetensors")
    graph = {
        "load": {"class_type": "UNETLoader", "inputs": {"unet_name": "tiny_lcm.safetensors", "weight_dtype": "default"}},
        "zsnr": {"class_type": "ModelSamplingDiscrete", "inputs": {"model": ["load", 0], "sampling": "eps", "zsnr": False}},
        "node": {
            "class_type": "HyperSDLoraLoader",
            "inputs": {"model": ["zsnr", 0], "steps": 4, "variant": "auto", "strength": 0.0},
        },
        "seen": {"class_type": "PreviewAny", "inputs": {"source": ["node", 4]}},
    }
    status, answer = world.ask("/prompt", {"prompt": graph})
    assert status == 200, answer
    record = until(lambda: world.ask(f"/history/{answer['prompt_id']}")[1].get(answer["prompt_id"]))
    assert record["status"]["status_str"] == "success", json.dumps(record["status"])[-2000:]
    (text,) = record["outputs"]["seen"]["text"]
    assert "tiny_lcm.safetensors has LCM inside by its name alone, so no LoRA is added." in text
