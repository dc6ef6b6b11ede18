"""Hyper-SD Train LoRA that is stopped, queued again, or goes wrong: nothing is lost, and the host stays usable."""

import logging
import re

import pytest
import torch
from hyper_sd.errors import TrainingError, UnsupportedModelError
from hyper_sd.tests.nodes.training.lora_runs import OBJECTIVES, is_as_before, weights_of
from hyper_sd.tests.training.runs import equal

FULL = OSError(28, "No space left on device")


@pytest.fixture
def on_step(host):
    """Sets what is called with the number of steps done; cleared afterwards."""

    def set_hook(at: int, action):
        host.on_progress(lambda value, total: action() if value == at else None)

    yield set_hook
    host.on_progress(None)


@pytest.fixture
def interrupt(host):
    """Raises the host's flag, as its Stop button does; cleared afterwards."""
    management = host.comfy.model_management
    yield lambda: management.interrupt_current_processing(True)
    management.interrupt_current_processing(False)


@pytest.fixture
def steps_taken(monkeypatch):
    """The numbers of the optimizer steps, as they are taken."""
    from hyper_sd.training.run import Run

    taken, original = [], Run.advance

    def counted(self):
        losses = original(self)
        taken.append(self.step)
        return losses

    monkeypatch.setattr(Run, "advance", counted)
    return taken


@pytest.fixture
def folder_of(train, unet, monkeypatch):
    """Returns the folder a run would be kept in."""

    class Told(Exception):
        pass

    def tell(job, *_):
        raise Told(job.folder)

    def ask(model=None, **changes):
        with pytest.raises(Told) as told:
            train(model or unet, **changes)
        return told.value.args[0]

    monkeypatch.setattr("hyper_sd.nodes.training.train_lora.run_job", tell)
    return ask


@pytest.mark.parametrize(("objective", "at"), [(OBJECTIVES[0], 2), (OBJECTIVES[2], 1), (OBJECTIVES[2], 3)])
def test_stopped_run_goes_on_to_the_same_lora(train, host, unet, on_step, interrupt, steps_taken, objective, at):
    stop = host.comfy.model_management.InterruptProcessingException
    whole, before = train(unet, objective=objective, folder="whole"), weights_of(unet)
    on_step(at, interrupt)
    with pytest.raises(stop):
        train(unet, objective=objective)
    assert is_as_before(unet, before)
    assert not host.comfy.model_management.processing_interrupted()
    host.on_progress(None)
    steps_taken.clear()
    resumed = train(unet, objective=objective)
    assert len(steps_taken) == 4 - at
    assert equal(resumed.lora, whole.lora)
    assert resumed.loss_map == whole.loss_map


def test_stop_while_a_checkpoint_is_written_leaves_it_whole(train, host, unet, interrupt, steps_taken):
    from hyper_sd.training import checkpoint

    whole, written, original = train(unet, objective=OBJECTIVES[2], folder="whole"), [], checkpoint.save_file

    def stopped_in_the_middle(tensors, path, metadata):
        if not written:
            interrupt()
        original(tensors, path, metadata)
        written.append(path)

    steps_taken.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_file", stopped_in_the_middle)
        with pytest.raises(host.comfy.model_management.InterruptProcessingException):
            train(unet, objective=OBJECTIVES[2])
    assert [path.name for path in written[0].parent.iterdir() if path.suffix == ".safetensors"] == ["checkpoint.safetensors"]
    assert not written[0].exists()  # it has its final name
    assert len(steps_taken) < 4  # a style's two steps are kept when they are done
    assert equal(train(unet, objective=OBJECTIVES[2]).lora, whole.lora)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_stop_within_a_step_keeps_the_one_before(train, host, unet, interrupt, monkeypatch, steps_taken, checkpointing):
    from hyper_sd.training import request as training_request

    def fit(found, free, config):
        return training_request.replace(config, gradient_checkpointing=checkpointing)

    monkeypatch.setattr(training_request, "fit", fit)
    before, layer, calls, hooks = weights_of(unet), unet.model.diffusion_model.middle_block[0].in_layers[2], [], []

    def count(*_):
        if torch.is_grad_enabled():
            calls.append(1)
            if len(calls) == (6 if checkpointing else 3):  # checkpointed, a layer runs twice a step: this is the backward pass
                interrupt()

    original = training_request.fitted

    def watched(job, free_bytes):
        fitted = original(job, free_bytes)
        hooks.append(layer.register_forward_hook(count))
        return fitted

    monkeypatch.setattr("hyper_sd.nodes.training.train_lora.fitted", watched)
    with pytest.raises(host.comfy.model_management.InterruptProcessingException):
        train(unet)
    hooks.pop().remove()
    assert is_as_before(unet, before)
    # Where the host's layers do not ask whether to stop (0.3.64), the step is ended first, and kept.
    assert steps_taken == [1, 2, 3][: 2 if hasattr(host.comfy.ops, "run_every_op") else 3]
    monkeypatch.setattr("hyper_sd.nodes.training.train_lora.fitted", original)
    train(unet)
    assert steps_taken == [1, 2, 3, 4]


def test_finished_run_is_not_trained_again(train, unet, steps_taken):
    first = train(unet, objective=OBJECTIVES[2])
    steps_taken.clear()
    again = train(unet, objective=OBJECTIVES[2])
    assert steps_taken == []
    assert equal(again.lora, first.lora)
    assert again.loss_map == first.loss_map
    assert torch.equal(again.samples, first.samples)


@pytest.mark.parametrize("changed", [{"seed": 1}, {"rank": 3}, {"steps": 5}, {"learning_rate": 2e-3}, {"batch_size": 1}])
def test_another_setting_is_another_run(folder_of, changed):
    assert folder_of(**changed) != folder_of() == folder_of()


def test_other_images_texts_and_models_are_other_runs(folder_of, host):
    folders = [
        folder_of(),
        folder_of(latents=[host.latent(3, seed=2, size=8)]),
        folder_of(positive=[host.conditioning(9)]),
        folder_of(host.small_unet("V_PREDICTION")),
        folder_of(name="people/ada"),
    ]
    assert len({path.name.rpartition("-")[2] for path in folders[:4]}) == 4
    assert folders[4].name.startswith("people-ada-")
    assert folder_of(preview_every=2) == folders[0]


def test_error_in_the_middle_leaves_the_model_as_it_was(train, unet, on_step, steps_taken):
    before = weights_of(unet)

    def fail():
        raise RuntimeError("the page is gone")

    on_step(3, fail)
    with pytest.raises(RuntimeError, match="the page is gone"):
        train(unet)
    assert is_as_before(unet, before)
    on_step(99, fail)
    steps_taken.clear()
    train(unet)
    assert steps_taken == [4]


def test_full_disk_during_the_run_loses_nothing(train, unet, monkeypatch, caplog):
    whole = train(unet, objective=OBJECTIVES[2], folder="whole")

    def full(*_, **__):
        raise FULL

    monkeypatch.setattr("hyper_sd.training.checkpoint.save_file", full)
    with caplog.at_level(logging.WARNING):
        made = train(unet, objective=OBJECTIVES[2])
    assert "save it now" in caplog.text
    assert equal(made.lora, whole.lora)


def test_too_little_room_is_said_before_the_start(train, unet, monkeypatch, steps_taken):
    from hyper_sd import disk

    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(TrainingError, match="make room, or choose a lower rank"):
        train(unet)
    assert steps_taken == []


def test_too_little_memory_is_said_before_the_start(train, unet, monkeypatch, steps_taken):
    import comfy.model_management

    def free(device=None, torch_free_too=False):
        return (1000, 1000) if torch_free_too else 1000

    monkeypatch.setattr(comfy.model_management, "get_free_memory", free)
    before = weights_of(unet)
    with pytest.raises(TrainingError, match="GB of free memory"):
        train(unet)
    assert steps_taken == []
    assert is_as_before(unet, before)


def test_loss_that_is_not_finite_is_an_error_that_leaves_the_model_as_it_was(train, host, unet):
    before = weights_of(unet)
    huge = {"samples": host.latent(3, seed=1, size=8)["samples"] * 1e30}
    with pytest.raises(TrainingError, match="not a number any more at step 1"):
        train(unet, latents=[huge])
    assert is_as_before(unet, before)


def wrong(host) -> dict[str, tuple[dict, str]]:
    """Returns inputs the node must refuse, and what it says."""
    broken = host.latent(3, seed=1, size=8)["samples"].clone()
    broken[1, 0, 0, 0] = float("nan")
    other = host.conditioning(1)
    return {
        "nan rate": ({"learning_rate": float("nan")}, "learning_rate must lie in"),
        "no negative": ({"objective": OBJECTIVES[1], "negative": None}, "wire the negative output of Hyper-SD Training Data"),
        "counts": ({"positive": [host.conditioning(1) * 2]}, "got 3 latents and 2 entries"),
        "channels": ({"latents": [host.latent(3, channels=16, size=8)]}, r"\[count, 4, height, width\].* got \[3, 16, 8, 8\]"),
        "broken latent": ({"latents": [{"samples": broken}]}, "Latent 2 of 3 has values that are not finite"),
        "other clip": ({"positive": [[[other[0][0][..., :16], {}]]]}, "made by the CLIP of another model: it has 16 values"),
        "controlnet": ({"positive": [[[other[0][0], {"control": object()}]]]}, "goes through a ControlNet"),
        "stages": ({"objective": OBJECTIVES[1], "stages": "1-8"}, "numbers of segments"),
        "name": ({"name": "../up"}, "name must be a file's name"),
        "nothing": ({"latents": [{"samples": torch.zeros(0, 4, 8, 8)}]}, "got 0 latents"),
    }


CASES = (
    "nan rate", "no negative", "counts", "channels", "broken latent", "other clip", "controlnet", "stages", "name", "nothing",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_wrong_input_is_refused_with_the_way_out(train, host, unet, case):
    before = weights_of(unet)
    inputs, message = wrong(host)[case]
    with pytest.raises(TrainingError, match=message):
        train(unet, **inputs)
    assert is_as_before(unet, before)


def test_distillation_without_guidance_needs_no_negative(train, unet):
    assert train(unet, objective=OBJECTIVES[1], negative=None, teacher_cfg=1.0).steps == 4


def test_name_is_refused_before_the_run(pack):
    node = pack["HyperSDTrainLora"]
    assert node.validate_inputs(name=["my_style"]) is True
    assert "name must be" in node.validate_inputs(name=["../up"])
    assert node.validate_inputs() is True


def test_other_families_are_refused_by_name(train, host):
    with pytest.raises(UnsupportedModelError, match=r"made for SD1\.5 and SDXL, got a model of family sd3"):
        train(host.small_mmdit())


def test_text_on_the_node_tells_phase_step_loss_rate_and_time(train, unet, pack, monkeypatch):
    from hyper_sd.nodes import schema
    from hyper_sd.nodes.training import progress as training_progress

    class Page:
        client_id = "page"

        def send_sync(self, event, data, client_id):
            texts.append((data["node"], data["text"]))

    texts = []
    monkeypatch.setattr(schema.PromptServer, "instance", Page(), raising=False)
    monkeypatch.setattr(training_progress, "TEXT_EVERY", 0.0)
    said = training_progress.NodeText("7")
    monkeypatch.setattr("hyper_sd.nodes.training.train_lora.NodeText", lambda node_id: said)
    train(unet)
    assert {node_id for node_id, _ in texts} == {"7"}
    assert "free memory" in texts[0][1]
    assert "style 2 of 4, loss " in texts[2][1]
    assert re.search(r" steps/s, \d+ s left$", texts[2][1])
    assert texts[-1][1].startswith("4 steps, loss ")
