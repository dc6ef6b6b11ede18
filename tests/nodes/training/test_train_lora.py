"""Hyper-SD Train LoRA on the host's own small models: what it learns, returns, keeps, and leaves as it was."""

import json
import logging

import pytest
import torch
from hyper_sd.errors import HyperSDError
from hyper_sd.models.recognition import recognise
from hyper_sd.tests.models.synthetic_unets import SMALL, write
from hyper_sd.tests.models.synthetic_unets import unet as unet_tensors
from hyper_sd.tests.nodes.small_sdxl import conditioning, load_small
from hyper_sd.tests.nodes.training.lora_runs import OBJECTIVES, changes, is_as_before, weights_of
from hyper_sd.tests.training.runs import equal, with_kept_bytes
from safetensors.torch import load_file


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objective_trains_and_leaves_the_model_as_it_was(train, unet, objective):
    before, flags = weights_of(unet), [p.requires_grad for p in unet.model.parameters()]
    made = train(unet, objective=objective)
    assert is_as_before(unet, before)
    assert [p.requires_grad for p in unet.model.parameters()] == flags
    assert made.steps == len(made.loss_map["loss"]) == 4
    assert all(bool(change.isfinite().all()) for change in changes(made.lora).values())
    assert sum(bool(change.any()) for change in changes(made.lora).values()) > 10
    assert made.samples.ndim == 4
    assert made.samples.shape[3] == 3
    assert 0 <= made.samples.min() < made.samples.max() <= 1


def test_loss_map_names_the_stages(train, unet):
    made = train(unet, objective=OBJECTIVES[2], steps=10)
    assert made.loss_map["stages"] == [
        {"title": "style", "first_step": 0}, {"title": "4 segments", "first_step": 4}, {"title": "1 segment", "first_step": 7},
    ]  # fmt: skip


def test_gradient_checkpointing_changes_the_memory_and_not_the_lora(train, unet, tmp_path):
    (automatic, whole), (on, less) = (
        with_kept_bytes(lambda name=name: train(unet, folder=name, gradient_checkpointing=name).lora) for name in ("auto", "on")
    )
    assert equal(automatic, on)
    assert less < 0.8 * whole
    config = json.loads(next((tmp_path / "on").rglob("settings.json")).read_text(encoding="utf-8"))
    assert "gradient_checkpointing" not in str(config["phases"])  # may differ between two parts of one run


def test_cuda_graphs_may_be_switched_off_for_a_run_that_goes_on(train, unet, tmp_path):
    automatic, off = (train(unet, cuda_graphs=word) for word in ("auto", "off"))
    assert equal(automatic.lora, off.lora)
    (run,) = (tmp_path / "a" / "hyper_sd_training").iterdir()  # the second found the first one's run, which had ended
    assert "cuda_graphs" not in (run / "settings.json").read_text(encoding="utf-8")


def test_optimizer_that_is_not_there_is_refused_before_anything_starts(train, unet, tmp_path):
    with pytest.raises(HyperSDError, match=r'"adamw8bit" needs a graphics card .*or use optimizer "adamw"'):
        train(unet, optimizer="adamw8bit")
    assert not list(tmp_path.rglob("settings.json"))


@pytest.mark.parametrize("checkpointing", ["auto", "on"])
def test_adversarial_part_learns_from_the_examples_and_leaves_the_model_as_it_was(train, unet, checkpointing):
    before, wishes = weights_of(unet), {"objective": OBJECTIVES[2], "gradient_checkpointing": checkpointing}
    off, automatic, on = (train(unet, folder=name, adversarial=name, **wishes) for name in ("off", "auto", "on"))
    assert equal(off.lora, automatic.lora)  # untried on this family
    assert not equal(off.lora, on.lora)
    assert max(on.loss_map["loss"]) < 1.5  # the distance alone; a discriminator's loss begins at 2
    assert is_as_before(unet, before)


@pytest.mark.parametrize("name", ["gradient_checkpointing", "adversarial", "one_step", "cuda_graphs"])
def test_value_on_no_list_is_refused_with_the_list(train, unet, name):
    with pytest.raises(HyperSDError, match=f"{name} must be one of 'auto', 'o.*got 'nonsense'"):
        train(unet, **{name: "nonsense"})


def test_one_step_is_a_second_lora_and_changes_nothing_of_the_first(train, unet, tmp_path):
    before, wishes = weights_of(unet), {"objective": OBJECTIVES[1], "stages": "2-1"}
    off, on = train(unet, folder="off", one_step="off", **wishes), train(unet, one_step="on", **wishes | {"steps": 8})
    assert is_as_before(unet, before)
    assert equal(off.lora, on.lora)
    assert not equal(on.one_step, on.lora)
    assert on.loss_map["stages"][-1] == {"title": "one step", "first_step": 4}
    assert (on.steps, len(on.loss_map["loss"])) == (8, 8)
    said = on.one_step.metadata
    assert (said["hyper_sd_start_timestep"], said["hyper_sd_stages"], said["hyper_sd_steps"]) == ("800", "1", "8")
    assert "hyper_sd_start_timestep" not in on.lora.metadata
    (run,) = (tmp_path / "a" / "hyper_sd_training").iterdir()
    written = {path.stem: load_file(path) for path in run.glob("*.safetensors")}
    assert written.keys() == {"2-segments", "1-segment", "one-step"}
    assert equal(written["one-step"], dict(on.one_step))
    assert equal(written["1-segment"], dict(on.lora))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_output_of_one_step_blocks_with_a_sentence_where_none_was_made(train, unet, objective):
    from comfy_execution.graph_utils import ExecutionBlocker

    blocked = train(unet, objective=objective).one_step
    assert isinstance(blocked, ExecutionBlocker)
    assert blocked.message.startswith("Hyper-SD Train LoRA made no LoRA for one step. Choose the objective TSCD distillation")


def test_demo_model_makes_one_step_by_itself_and_its_file_starts_where_it_was_trained(
    train, host, pack, demo, tmp_path, monkeypatch
):
    import folder_paths

    model, clip, vae = demo
    captions = clip.encode_from_tokens_scheduled(clip.tokenize("red heart"))
    empty = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    made = train(
        model, latents=[host.latent(2, seed=1)], positive=[captions], negative=[empty], vae=vae, steps=6,
        objective=OBJECTIVES[1], start_from="Hyper-SD unified", stages="auto", rank=4,
    )  # fmt: skip
    assert [stage["title"] for stage in made.loss_map["stages"]] == ["1 segment", "one step"]
    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda name: [str(tmp_path / "loras")])
    pack["HyperSDSaveLora"].execute(made.one_step, "once")
    found = recognise(tmp_path / "loras" / "once_00001_.safetensors")
    assert (found.variant, found.steps, found.start_timestep) == ("n-step", 1, 800)


def test_inputs_and_outputs_of_saved_workflows_keep_their_places(pack):
    schema = pack["HyperSDTrainLora"].define_schema()
    assert [given.id for given in schema.inputs][-9:] == [
        "adversarial", "one_step", "cuda_graphs", "optimizer", "reward", "second_reward", "held_out_reward",
        "perceptual_weight", "feedback_strength",
    ]  # fmt: skip
    assert [made.id for made in schema.outputs] == [
        "trained_model",
        "lora",
        "loss_map",
        "total_steps",
        "samples",
        "one_step_lora",
        "feedback_lora",
    ]


def test_metadata_says_what_was_trained(train, unet):
    metadata = train(unet, objective=OBJECTIVES[2], seed=7).lora.metadata
    expected = {
        "hyper_sd_base": "sd15", "hyper_sd_objective": OBJECTIVES[2], "hyper_sd_steps": "4", "hyper_sd_rank": "2",
        "hyper_sd_stages": "4-1", "hyper_sd_teacher_cfg": "5", "hyper_sd_start_from": "none", "hyper_sd_seed": "7",
        "hyper_sd_images": "3", "ss_network_module": "networks.lora", "ss_network_dim": "2", "ss_network_alpha": "2",
        "ss_base_model_version": "sd_v1",
    }  # fmt: skip
    assert {key: metadata[key] for key in expected} == expected
    assert [phase["title"] for phase in json.loads(metadata["hyper_sd_settings"])] == ["style", "distillation"]
    assert all(isinstance(value, str) for value in metadata.values())
    other = train(unet, objective=OBJECTIVES[0]).lora.metadata
    assert other["hyper_sd_model_hash"] == metadata["hyper_sd_model_hash"]
    assert other["hyper_sd_stages"] == "none"


def test_hosts_loader_matches_the_lora_whole_and_draws_as_the_models_output(train, host, unet, positive, caplog):
    from comfy_extras.nodes_train import LoraModelLoader

    made = train(unet)
    with caplog.at_level(logging.WARNING):
        loaded = host.run_node(LoraModelLoader, model=unet, lora=made.lora, strength_model=1.0)[0]
    assert not [r.message for r in caplog.records if "not loaded" in r.message]
    assert len(loaded.patches) == len(changes(made.lora)) == len(made.model.patches)
    theirs, own, plain = (host.ksampler(m, positive, positive, steps=2) for m in (loaded, made.model, unet))
    assert torch.equal(theirs, own)
    assert not torch.allclose(plain, own, atol=1e-4)


def test_hosts_node_can_save_the_lora(train, host, unet, tmp_path):
    from comfy_extras.nodes_train import SaveLoRA

    made = train(unet)
    host.run_node(SaveLoRA, lora=made.lora, prefix="loras/ComfyUI_trained_lora", steps=made.steps)
    (path,) = (tmp_path / "a" / "loras").glob("*.safetensors")
    assert equal(load_file(path), dict(made.lora))


def test_network_is_trained_where_it_is(train, unet, monkeypatch):
    from hyper_sd.training import phases as training_run

    seen, original = [], training_run.train

    def watched(config, denoiser, *arguments, **named):
        seen.append(denoiser.network)
        return original(config, denoiser, *arguments, **named)

    monkeypatch.setattr(training_run, "train", watched)
    train(unet)
    pointers = [p.data_ptr() for p in unet.model.diffusion_model.parameters()]
    train(unet, seed=1)
    assert all(network is unet.model.diffusion_model for network in seen)
    assert len(seen) == 2
    assert [p.data_ptr() for p in unet.model.diffusion_model.parameters()] == pointers


def test_model_of_a_loader_node_is_trained_though_its_weights_are_inference_tensors(train, host, pack):
    model, clip, vae = pack["HyperSDDemoModel"].execute().args
    assert all(p.is_inference() for p in model.model.diffusion_model.parameters())
    before = weights_of(model)
    captions = [entry for text in ("red heart", "a dog") for entry in clip.encode_from_tokens_scheduled(clip.tokenize(text))]
    empty = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    made = train(
        model, latents=[host.latent(2, seed=1)], positive=[captions], negative=[empty], vae=vae, steps=2,
        objective=OBJECTIVES[1], start_from="Hyper-SD unified", stages="auto", rank=4, learning_rate=1e-8, one_step="off",
    )  # fmt: skip
    assert is_as_before(model, before)
    assert made.lora.metadata["ss_network_dim"] == "16"  # what it started from
    assert made.loss_map["stages"] == [{"title": "1 segment", "first_step": 0}]
    own = pack["HyperSDDemoModel"].execute("unified, 1 to 8 steps").args[0]
    one, other = (host.ksampler(m, captions[:1], empty, steps=1) for m in (made.model, own))
    assert (one - other).abs().mean() < 0.1 * other.abs().mean()


def test_patched_model_is_trained_with_its_patches_and_unpatches_to_the_original(train, unet):
    import comfy.model_management
    import comfy.sd
    from hyper_sd.tests.nodes.lora_world import small_lora

    before = weights_of(unet)
    styled = comfy.sd.load_lora_for_models(unet, None, small_lora(unet), 1.0, 0.0)[0]
    made, plain = train(styled), train(unet)
    assert made.lora.metadata["hyper_sd_model_hash"] != plain.lora.metadata["hyper_sd_model_hash"]
    assert not equal(changes(made.lora), changes(plain.lora))
    assert max(map(len, made.model.patches.values())) == 2
    comfy.model_management.unload_all_models()
    assert is_as_before(unet, before)


def test_groups_of_two_sizes_and_texts_of_two_lengths_are_trained_together(train, host, unet):
    short, long = host.conditioning(1)[0], host.conditioning(2)[0]
    long = [torch.cat([long[0]] * 2, 1), long[1]]
    groups = [host.latent(2, seed=1, size=8), host.latent(1, seed=2, size=16), host.latent(1, seed=3, size=8)]
    made = train(unet, latents=groups, positive=[[short, long], [long], [short]], objective=OBJECTIVES[1])
    assert made.lora.metadata["hyper_sd_images"] == "4"
    assert len(made.loss_map["loss"]) == 4


def test_one_caption_serves_all_images(train, host, unet):
    one = train(unet, positive=[host.conditioning(1)], folder="one")
    three = train(unet, positive=[host.conditioning(1)] * 3, folder="three")
    assert equal(one.lora, three.lora)


def test_sdxl_model_learns_with_pooled_text_and_sizes_under_its_own_names(train, tmp_path, host, caplog):
    import comfy.lora

    model = load_small(write(tmp_path / "small.safetensors", unet_tensors("diffusers", SMALL)))
    before = weights_of(model)
    made = train(model, positive=[conditioning()], negative=[conditioning()], objective=OBJECTIVES[2])
    assert is_as_before(model, before)
    assert any("input_blocks" in name for name in made.lora)
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    with caplog.at_level(logging.WARNING):
        assert len(comfy.lora.load_lora(made.lora, keys)) == len(changes(made.lora))
    assert not [r.message for r in caplog.records if "not loaded" in r.message]
    assert made.lora.metadata["ss_base_model_version"] == "sdxl_base_v1-0"


@pytest.mark.parametrize(("kind", "zsnr"), [("V_PREDICTION", False), ("V_PREDICTION", True)])
def test_velocity_models_are_trained(train, host, unet, kind, zsnr):
    model = host.small_unet(kind)  # of the size that the fixture unet has set
    model = host.with_sampling(model, "v_prediction", zsnr) if zsnr else model
    made = train(model, objective=OBJECTIVES[1])
    assert made.lora.metadata["hyper_sd_prediction"] == "v_prediction" + (", zero terminal SNR" if zsnr else "")


def test_previews_come_as_often_as_asked_and_on_the_last_step(train, unet, tmp_path):
    train(unet, preview_every=3)
    (run,) = (tmp_path / "a" / "hyper_sd_training").iterdir()
    assert sorted(p.name for p in run.glob("samples_*.png")) == ["samples_000003.png", "samples_000004.png"]


class BrokenVae:
    """A VAE that cannot decode."""

    def decode(self, latents):
        raise RuntimeError("VAE of another model")


def test_preview_that_fails_does_not_end_the_training(train, unet, caplog):
    with caplog.at_level(logging.WARNING):
        made = train(unet, vae=BrokenVae(), preview_every=2)
    assert "VAE of another model" in caplog.text
    assert made.samples.shape == (1, 64, 64, 3)
    assert equal(made.lora, train(unet, folder="b").lora)
