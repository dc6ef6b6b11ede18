"""Runs by preset from the command line: what a person at the terminal gets, on the embedded model and on tiny pipelines."""

import argparse
import json
import logging
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from hyper_sd.errors import TrainingError
from hyper_sd.models import embedded
from hyper_sd.models.recognition import recognise
from hyper_sd.tests.conftest import ROOT
from hyper_sd.tests.training.launch.log_spy import Spy
from hyper_sd.tests.training.launch.tiny_pipelines import save_pipeline, write_preset_run
from hyper_sd.training.launch import __main__ as launch
from hyper_sd.training.launch import by_preset
from hyper_sd.training.launch.embedded_model import load_embedded_model
from hyper_sd.training.launch.run_file import read_run_file
from hyper_sd.training.presets import TrainRequest
from hyper_sd.training.words import OBJECTIVES
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

accelerate = pytest.importorskip("accelerate")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("one_process")

LORA = "my_style_00001_.safetensors"


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines")
    for family in ("sd15", "sdxl", "sd3"):
        save_pipeline(folder / family, family)
    return folder


@pytest.fixture
def train(tmp_path):
    """Runs a file with these settings and returns the exit code; every call finds the same pictures."""

    def run(**settings):
        path = write_preset_run(tmp_path / "run.toml", **settings)
        accelerate.state.AcceleratorState._reset_state(True)
        return launch.main([str(path)])

    return run


def pairs(modules: dict[str, tuple[int, int]]) -> dict[str, torch.Tensor]:
    """A LoRA of rank 2, all zeros, by modules and their widths out and in."""
    return {
        f"{module}.{part}": torch.zeros(shape)
        for module, (rows, columns) in modules.items()
        for part, shape in {"lora_down.weight": (2, columns), "lora_up.weight": (rows, 2), "alpha": ()}.items()
    }


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def run_folder(folder: Path) -> Path:
    (only,) = (path for path in folder.iterdir() if path.is_dir())
    return only


def steps_logged(caplog) -> list[tuple[str, int]]:
    """The phase and number of each step that was taken."""
    lines = (re.match(r"(\w+)[^,]*, step (\d+)/", record.getMessage()) for record in caplog.records)
    return [(line[1], int(line[2])) for line in lines if line]


def test_stopped_run_goes_on_with_the_same_file_to_the_same_lora(train, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert train(out="whole", steps=10) == 0
    taken = [steps_logged(caplog)]
    for phase, step in (("style", 1), ("style", 3), ("distillation", 2)):  # within the style, at its end, and after it
        caplog.clear()
        with Spy(rf"{phase}.* step {step}/", lambda: signal.raise_signal(signal.SIGINT)):
            assert train(steps=10) == launch.STOPPED
        assert "the same command goes on from there" in caplog.text
        assert files(tmp_path / "loras") == []
        taken.append(steps_logged(caplog))
        assert taken[-1][-1] == (phase, step + 1)
    caplog.clear()
    assert train(steps=10) == 0
    assert taken[1] + taken[2] + taken[3] + steps_logged(caplog) == taken[0]
    whole, resumed = (load_file(tmp_path / folder / LORA) for folder in ("whole", "loras"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    losses = [(run_folder(tmp_path / folder) / "phase_2" / "losses.txt").read_text() for folder in ("whole", "loras")]
    assert losses[0] == losses[1]


def test_finished_run_trains_nothing_again_and_writes_no_second_file(train, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert train(objective=OBJECTIVES[1], preview_every=2) == 0
    samples = sorted(path.name for path in run_folder(tmp_path / "loras").glob("*.png"))
    assert samples == ["samples_000002.png", "samples_000004.png", "samples_000006.png"]
    with Image.open(run_folder(tmp_path / "loras") / samples[-1]) as sheet:
        assert len(sheet.convert("RGB").getcolors(sheet.width * sheet.height)) > 100  # pictures, no empty page
    caplog.clear()
    assert train(objective=OBJECTIVES[1], preview_every=2) == 0
    assert steps_logged(caplog) == []
    assert files(tmp_path / "loras") == [LORA]


def test_one_step_is_a_second_file_that_is_recognised_and_goes_on_after_a_stop(train, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    wishes = {"objective": OBJECTIVES[2], "one_step": True, "steps": 8, "stages": "2-1"}
    assert train(out="whole", **wishes) == 0
    assert files(tmp_path / "whole") == ["my_style-one-step_00001_.safetensors", LORA]
    assert files(run_folder(tmp_path / "whole")) == ["1-segment.safetensors", "2-segments.safetensors", "one-step.safetensors"]
    assert "for exactly one step, from timestep 800" in caplog.text
    unified, once = (recognise(tmp_path / "whole" / name) for name in (LORA, "my_style-one-step_00001_.safetensors"))
    assert (unified.variant, unified.steps, unified.start_timestep) == ("unified", 1, None)
    assert (once.variant, once.steps, once.start_timestep) == ("n-step", 1, 800)
    with Spy(r"one step.* step 2/", lambda: signal.raise_signal(signal.SIGINT)):
        assert train(**wishes) == launch.STOPPED
    assert train(**wishes) == train(**wishes) == 0
    assert files(tmp_path / "loras") == files(tmp_path / "whole")
    for name in files(tmp_path / "whole"):
        whole, resumed = (load_file(tmp_path / folder / name) for folder in ("whole", "loras"))
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_another_setting_is_another_run_and_another_file(train, tmp_path):
    assert train(objective=OBJECTIVES[1]) == 0
    older = (tmp_path / "loras" / LORA).read_bytes()
    assert train(objective=OBJECTIVES[1], seed=1) == 0
    assert files(tmp_path / "loras") == [LORA, "my_style_00002_.safetensors"]
    assert (tmp_path / "loras" / LORA).read_bytes() == older
    assert len([path for path in (tmp_path / "loras").iterdir() if path.is_dir()]) == 2


def test_file_says_how_it_was_trained(train, tmp_path):
    assert train(seed=7, teacher_cfg=3.0, learning_rate=0.001) == 0
    with safe_open(tmp_path / "loras" / LORA, "pt") as file:
        metadata = file.metadata()
    expected = {
        "hyper_sd_base": "sd15",
        "hyper_sd_prediction": "epsilon",
        "hyper_sd_images": "2",
        "hyper_sd_objective": "style, then distil",
        "hyper_sd_steps": "6",
        "hyper_sd_rank": "2",
        "hyper_sd_stages": "4-1",
        "hyper_sd_learning_rate": "0.001, 0.001",
        "hyper_sd_teacher_cfg": "3",
        "hyper_sd_start_from": "none",
        "hyper_sd_seed": "7",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "2",
    }
    assert {name: metadata[name] for name in expected} == expected
    assert [phase["title"] for phase in json.loads(metadata["hyper_sd_settings"])] == ["style", "distillation"]
    assert json.loads((run_folder(tmp_path / "loras") / "settings.json").read_text())["data"] == metadata["hyper_sd_data_hash"]


@pytest.mark.parametrize("start_from", ["Hyper-SD unified", str(embedded.lora_file("unified", 1)), "renamed.safetensors"])
def test_training_starts_from_a_lora_and_its_file_says_so(train, tmp_path, start_from):
    shutil.copy(embedded.lora_file("unified", 1), tmp_path / "renamed.safetensors")
    assert train(objective=OBJECTIVES[2], rank=1, start_from=start_from, steps=2) == 0
    with safe_open(tmp_path / "loras" / LORA, "pt") as file:
        metadata = file.metadata()
    start = load_file(embedded.lora_file("unified", 1))
    rank = next(len(tensor) for name, tensor in start.items() if name.endswith("lora_down.weight"))
    assert metadata["ss_network_dim"] == str(rank)  # the starting LoRA's, which is higher than what was asked for
    assert metadata["hyper_sd_objective"] == OBJECTIVES[2]
    assert metadata["hyper_sd_stages"] == "1"  # it is distilled already
    assert metadata["hyper_sd_start_from"].endswith(start_from)
    trained = load_file(tmp_path / "loras" / LORA)
    name = next(name for name in start if name.endswith("lora_down.weight"))
    assert (trained[name].float() - start[name].float()).abs().mean() < 0.1 * start[name].float().abs().mean()


def test_starting_lora_goes_without_its_text_encoder_and_says_so(train, tmp_path, caplog):
    text = {"lora_te_text_model_encoder_layers_0_mlp_fc1": (8, 8)}
    save_file(load_file(embedded.lora_file("unified", 1)) | pairs(text), tmp_path / "both.safetensors")
    assert train(objective=OBJECTIVES[2], start_from="both.safetensors", steps=4) == 0
    assert caplog.text.count("both.safetensors also changes a text encoder") == 1
    assert load_file(tmp_path / "loras" / LORA).keys() == load_file(embedded.lora_file("unified", 1)).keys()


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_lora_of_a_pipeline_loads_in_diffusers(train, tmp_path, pipelines, family):
    assert train(model=f"folder = {str(pipelines / family)!r}", objective=OBJECTIVES[2], stages="2-1", steps=4) == 0
    pipeline = diffusers.DiffusionPipeline.from_pretrained(pipelines / family, local_files_only=True)
    before = {name: tensor.clone() for name, tensor in pipeline.unet.state_dict().items()}
    pipeline.load_lora_weights(str(tmp_path / "loras"), weight_name=LORA, local_files_only=True)
    pipeline.fuse_lora()
    adapted = [name for name, tensor in pipeline.unet.state_dict().items() if "base_layer.weight" in name]
    assert len(adapted) == len(load_file(tmp_path / "loras" / LORA)) // 3
    assert any(not torch.equal(pipeline.unet.state_dict()[n], before[n.replace(".base_layer", "")]) for n in adapted)


BAD = [
    ({"objective": "styl"}, "objective must be one of 'style, then distil'"),
    ({"preset": "Huge"}, "preset must be one of 'Small', 'Medium', 'Thorough', got 'Huge'"),
    ({"stages": "1-8"}, "stages must be numbers of segments from 8 down to 1"),
    ({"cuda_graphs": "on"}, "cuda_graphs must be one of 'auto', 'off', got 'on'"),
    ({"optimizer": "adamw8bit"}, 'optimizer "adamw8bit" needs a graphics card'),
    ({"one_step": "maybe"}, "one_step must be one of 'auto', 'on', 'off', got 'maybe'"),
    ({"one_step": True}, 'one_step "on" needs the objective "TSCD distillation", got "style, then distil"'),
    ({"adversarial": "maybe"}, "adversarial must be one of 'auto', 'on', 'off', got 'maybe'"),
    ({"gradient_checkpointing": "of"}, "gradient_checkpointing must be one of 'auto', 'on', got 'of'"),
    ({"precision": "fp8"}, "training.precision must be one of fp32, bf16, fp16, got 'fp8'"),
    ({"steps": 2.5}, "training.steps must be a whole number, got 2.5"),
    ({"steps": 1}, "steps"),
    ({"learning_rate": -1.0}, "learning_rate must lie in"),
    ({"teacher": 1}, "unknown ['teacher']"),
    ({"name": "other"}, "the run is called as output.name says"),
    ({"start_from": "nowhere.safetensors"}, "nowhere.safetensors cannot be read"),
]


@pytest.mark.parametrize(("changes", "said"), BAD, ids=[" ".join(map(str, next(iter(changes.items())))) for changes, _ in BAD])
def test_bad_setting_ends_with_one_line_before_anything_is_encoded(train, tmp_path, caplog, changes, said):
    assert train(**changes) == launch.FAILED
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert said in errors[0]
    assert "\n" not in errors[0]
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "loras").exists()


UNUSABLE = {
    "LoKr": ({"lora_unet_x.lokr_w1": torch.zeros(2, 2), "lora_unet_x.lokr_w2": torch.zeros(2, 2)}, "is a LoKr"),
    "foreign modules": (pairs({"lora_unet_mid_block_nowhere": (8, 8)}), "has not"),
    "text encoder alone": (pairs({"lora_te_text_model_encoder_layers_0_mlp_fc1": (8, 8)}), "has not"),
    "other sizes": (pairs({"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q": (8, 8)}), "choose another LoRA"),
}


@pytest.mark.parametrize(("tensors", "said"), UNUSABLE.values(), ids=UNUSABLE)
def test_lora_that_cannot_be_started_from_is_refused_by_its_name(train, tmp_path, caplog, tensors, said):
    save_file(tensors, tmp_path / "other.safetensors")
    assert train(start_from="other.safetensors") == launch.FAILED
    assert "other.safetensors" in caplog.text
    assert said in caplog.text
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("sd3", {}, "family must be one of 'sd15', 'sdxl', 'embedded', got 'sd3'"),
        ("sd15", {"start_from": "Hyper-SD unified"}, "download hyper-sd15-1step-lora --into FOLDER"),
        ("sdxl", {"start_from": str(embedded.lora_file("unified", 1))}, "the model is SDXL"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_encoded(
    train, tmp_path, pipelines, caplog, family, changes, said
):
    assert train(model=f"folder = {str(pipelines / family)!r}", **changes) == launch.FAILED
    assert said in caplog.text
    assert not (tmp_path / "cache").exists()


def test_batch_that_processes_cannot_share_is_refused_before_anything_is_encoded():
    request, engine = TrainRequest(batch_size=3), argparse.Namespace(world=2, device=torch.device("cpu"))
    with pytest.raises(TrainingError, match="batch_size 3 must divide by 2 processes"):
        by_preset.check(request, load_embedded_model("fp32"), engine)


@pytest.mark.parametrize(
    ("value", "checkpointing", "adversarial"), [(True, "on", "on"), (False, "auto", "off"), ("on", "on", "on")]
)
def test_switches_may_be_true_false_or_a_word(tmp_path, value, checkpointing, adversarial):
    path = write_preset_run(tmp_path / "run.toml", gradient_checkpointing=value, adversarial=value, one_step=value)
    request = read_run_file(path).training
    assert (request.gradient_checkpointing, request.adversarial) == (checkpointing, adversarial)
    assert request.one_step == adversarial
    assert request.objective == OBJECTIVES[0]


@pytest.mark.parametrize(("value", "word"), [(True, "auto"), (False, "off"), ("auto", "auto"), ("off", "off")])
def test_cuda_graphs_may_be_true_false_or_a_word(tmp_path, value, word):
    assert read_run_file(write_preset_run(tmp_path / "run.toml", cuda_graphs=value)).training.cuda_graphs == word


def test_example_by_preset_is_a_valid_file_names_every_setting_and_shows_the_usual_values():
    path = ROOT / "training" / "launch" / "preset.toml"
    text, file = path.read_text(encoding="utf-8"), read_run_file(path)
    assert file.training == TrainRequest(name="my_style")
    for name in vars(file.training).keys() - {"name"}:
        assert re.search(rf"^(?:# )?{name} +=|^(?:# )?{name} =", text, re.MULTILINE), name
