"""Human feedback from the command line: prompts alone, two LoRAs, and another strength without another training."""

import logging
import re

import pytest
import torch
from hyper_sd.errors import TrainingError
from hyper_sd.models.recognition import recognise
from hyper_sd.tests.training.launch.tiny_pipelines import write_preset_run
from hyper_sd.training.launch import __main__ as launch
from hyper_sd.training.launch.run_file import read_run_file
from safetensors.torch import load_file

accelerate = pytest.importorskip("accelerate")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("one_process")

BOTH, ALONE = "my_style_00001_.safetensors", "my_style-feedback_00001_.safetensors"


def test_feedback_needs_prompts_alone_and_writes_both_loras(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "prompts.txt").write_text("red apple\nrocket\n", encoding="utf-8")
    path = write_preset_run(
        tmp_path / "run.toml",
        objective="human feedback",
        steps=2,
        batch_size=1,
        start_from="Hyper-SD unified",
        seed=1,
        held_out_reward="none",
    )
    text = path.read_text(encoding="utf-8").replace("folder = 'images'", "prompts = 'prompts.txt'")
    path.write_text(text, encoding="utf-8")
    assert launch.main([str(path)]) == 0
    assert sorted(path.name for path in (tmp_path / "loras").glob("*.safetensors")) == sorted([ALONE, BOTH])
    assert not any("drawn by the teacher" in record.getMessage() for record in caplog.records)
    ranks = [
        max(len(tensor) for key, tensor in load_file(tmp_path / "loras" / name).items() if "lora_down" in key)
        for name in (ALONE, BOTH)
    ]
    assert ranks[0] == 2 < ranks[1]
    assert recognise(tmp_path / "loras" / BOTH).variant == "unified"
    before = load_file(tmp_path / "loras" / BOTH)
    text = path.read_text(encoding="utf-8") + "\nfeedback_strength = 0.5"
    path.write_text(text, encoding="utf-8")
    caplog.clear()
    accelerate.state.AcceleratorState._reset_state(True)
    assert launch.main([str(path)]) == 0  # merged anew, not trained anew
    assert not any(", step " in record.getMessage() for record in caplog.records)
    again = load_file(tmp_path / "loras" / "my_style_00002_.safetensors")
    assert any(not torch.equal(before[key], again[key]) for key in before)


def test_stages_in_detail_send_feedback_to_a_preset(tmp_path):
    path = write_preset_run(tmp_path / "run.toml", objective="feedback")
    text = path.read_text(encoding="utf-8").replace("preset = 'Small'", "stages = [{num_segments = 1, steps = 1}]")
    text = re.sub(r"^(steps|adversarial|one_step) = .*\n", "", text, flags=re.MULTILINE)
    path.write_text(f"{text}\nfeedback = {{rewards = ['embedded_match']}}", encoding="utf-8")
    with pytest.raises(TrainingError, match="goes by preset"):
        read_run_file(path)
