"""Training in two processes on the CPU, started by accelerate's own launcher, beside the same training in one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hyper_sd.tests.training.fakes import make_denoiser, make_examples
from hyper_sd.tests.training.feedback.feedback_jobs import BRIGHT, DARK, make_judge
from hyper_sd.tests.training.launch.tiny_pipelines import PROMPTS, save_pipeline, write_preset_run, write_run
from hyper_sd.training.launch import __main__ as launch
from hyper_sd.training.loop import train
from hyper_sd.training.lora_layers import LoraLayers
from hyper_sd.training.plain_config import from_plain
from safetensors.torch import load_file

AcceleratorState = pytest.importorskip("accelerate").state.AcceleratorState

STAGES = [
    {"num_segments": 8, "steps": 3},
    {"num_segments": 2, "steps": 5, "adversarial_weight": 0.2},
    {"num_segments": 1, "steps": 2},
]
SETTINGS = {"stages": STAGES, "batch_size": 8, "rank": 2, "learning_rate": 1e-2, "warmup_steps": 2, "train_backbone": True}
ONE_STEP = {
    "batch_size": 8, "rank": 2, "learning_rate": 1e-2, "warmup_steps": 2, "fake_warmup": 1, "pairs": 12, "pair_steps": 4,
    "stages": [
        {"num_segments": 2, "steps": 2},
        {
            "num_segments": 2, "steps": 4, "distance_weight": 0.5, "score_weight": 0.5, "pair_weight": 1.0,
            "adversarial_weight": 0.2,
        },
    ],
}  # fmt: skip
FEEDBACK = {
    "batch_size": 4, "rank": 2, "learning_rate": 1e-2, "warmup_steps": 2, "objective": "feedback",
    "stages": [{"num_segments": 1, "steps": 6}],
    "feedback": {"rewards": [BRIGHT], "held_out": DARK, "steps": [1, 2, 4], "check_every": 2, "check_prompts": 3},
}  # fmt: skip
LONG = [{"num_segments": 8, "steps": 10**6}]


def start(script, *arguments):
    """Starts `script` in two processes, on the CPU whatever the machine has."""
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"USE_LIBUV": "0"} if sys.platform == "win32" else {}  # not in every build of torch for Windows
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
        str(Path(__file__).parent / script), *map(str, arguments),
    ]  # fmt: skip
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )


def finish(process, seconds=300):
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return said


def start_scenarios(folder, scenarios):
    path = folder / "scenarios.json"
    path.write_text(json.dumps(scenarios), encoding="utf-8")
    return start("two_processes.py", path, folder)


def alone(folder, settings):
    """The same run in this process, without accelerate."""
    torch.set_default_dtype(torch.float64)
    try:
        config, denoiser = from_plain(settings), make_denoiser()
        layers = LoraLayers(denoiser.network, config.rank, dtype=torch.float64)
        judge = make_judge() if config.feedback else None
        list(train(config, denoiser, layers, make_examples(), folder=folder, judge=judge))
    finally:
        torch.set_default_dtype(torch.float32)
    return load_file(folder / "checkpoint.safetensors")


def apart(one, other):
    """The greatest distance between two tensors of a checkpoint, relative to their size, and whose it is."""
    assert one.keys() == other.keys()
    return max((float((one[key] - other[key]).norm() / one[key].norm().clamp(min=1e-30)), key) for key in one)


def test_two_processes_train_the_weights_of_one(tmp_path):
    split = SETTINGS | {"accumulation": 2, "gradient_checkpointing": True}
    scenarios = {
        "whole": {"folder": "whole", "settings": SETTINGS},
        "split": {"folder": "split", "settings": split},
        "stopped": {"folder": "stopped", "settings": split, "stop_at": 5},
        "resumed": {"folder": "stopped", "settings": split},
    }
    process = start_scenarios(tmp_path, scenarios)
    expected = alone(tmp_path / "alone", SETTINGS)
    said = finish(process)
    assert process.returncode == 0, said
    whole, parts, resumed = (load_file(tmp_path / n / "checkpoint.safetensors") for n in ("whole", "split", "stopped"))
    for found in (whole, parts):
        assert apart(expected, found)[0] < 1e-9, apart(expected, found)
    for trained in ("student/flat", "target/flat", "discriminator/flat", "optimizer/1.exp_avg_sq"):
        assert any(bool(tensor.any()) for key, tensor in expected.items() if key.startswith(trained)), trained
    assert all(torch.equal(parts[key], resumed[key]) for key in parts)
    steps = [json.loads((tmp_path / f"steps-{rank}.json").read_text()) for rank in range(2)]
    assert steps[0] == steps[1]
    assert steps[0]["stopped"] == [1, 2, 3, 4, 5]
    assert steps[0]["resumed"] == [6, 7, 8, 9, 10]


def test_two_processes_train_one_step_as_one_does(tmp_path):
    split = ONE_STEP | {"accumulation": 2, "train_backbone": True}
    scenarios = {
        "whole": {"folder": "whole", "settings": split},
        "stopped": {"folder": "stopped", "settings": split, "stop_at": 4},
        "resumed": {"folder": "stopped", "settings": split},
    }
    process = start_scenarios(tmp_path, scenarios)
    expected = alone(tmp_path / "alone", ONE_STEP | {"train_backbone": True})
    said = finish(process)
    assert process.returncode == 0, said
    whole, resumed = (load_file(tmp_path / n / "checkpoint.safetensors") for n in ("whole", "stopped"))
    # Pairs are kept in float32, and a different split of the batch may round them differently.
    assert apart(expected, whole)[0] < 1e-5, apart(expected, whole)
    for trained in ("student/flat", "fake/flat", "heads/", "optimizer/1.exp_avg_sq", "fake_optimizer/0.exp_avg_sq"):
        assert any(bool(tensor.any()) for key, tensor in expected.items() if key.startswith(trained)), trained
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    steps = [json.loads((tmp_path / f"steps-{rank}.json").read_text()) for rank in range(2)]
    assert steps[0] == steps[1] == {"whole": [1, 2, 3, 4, 5, 6], "stopped": [1, 2, 3, 4], "resumed": [5, 6]}


def test_two_processes_learn_from_feedback_what_one_does(tmp_path):
    split = FEEDBACK | {"accumulation": 2}
    scenarios = {
        "whole": {"folder": "whole", "settings": split},
        "stopped": {"folder": "stopped", "settings": split, "stop_at": 3},
        "resumed": {"folder": "stopped", "settings": split},
    }
    process = start_scenarios(tmp_path, scenarios)
    expected = alone(tmp_path / "alone", FEEDBACK)
    said = finish(process)
    assert process.returncode == 0, said
    whole, resumed = (load_file(tmp_path / n / "checkpoint.safetensors") for n in ("whole", "stopped"))
    assert apart(expected, whole)[0] < 1e-6, apart(expected, whole)
    assert bool(expected["student/flat"].any())
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal for another process alone")
def test_interrupted_launcher_saves_and_both_processes_stop_at_one_step(tmp_path):
    process = start_scenarios(tmp_path, {"long": {"folder": "long", "settings": SETTINGS | {"stages": LONG}}})
    for line in process.stdout:
        if line.startswith("step 3"):
            process.send_signal(signal.SIGINT)
            break
    said = finish(process)
    steps = [json.loads((tmp_path / f"steps-{rank}.json").read_text())["long"] for rank in range(2)]
    assert steps[0] == steps[1], said
    assert 3 <= len(steps[0]) < 10**6
    kept = load_file(tmp_path / "long" / "checkpoint.safetensors")
    assert float(kept["optimizer/0.step"]) == len(steps[0])


def test_launched_run_of_two_processes_equals_one(tmp_path, monkeypatch):
    """The whole way: a run file, a pipeline's folder, prompts drawn by the teacher, an adversarial stage, LoRA files."""
    save_pipeline(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    paths = [
        write_run(tmp_path / f"{n}.toml", "model", f"prompts = 'prompts.txt'\ncache = 'cache-{n}'", out=str(n)) for n in (1, 2)
    ]
    process = start("launch_module.py", paths[1])
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(True)
    assert launch.main([str(paths[0])]) == 0
    AcceleratorState._reset_state(True)
    said = finish(process)
    assert process.returncode == 0, said
    assert "2 process(es)" in said
    one, two = (load_file(tmp_path / n / "tiny" / "checkpoint.safetensors") for n in "12")
    one, two = ({key: t for key, t in each.items() if not key.startswith("optimizer/")} for each in (one, two))
    assert apart(one, two)[0] < 1e-3, apart(one, two)  # Adam magnifies the rounding of float32 where gradients are small
    assert [f.name for f in sorted((tmp_path / "2").glob("*.safetensors"))] == [
        "tiny-2steps.safetensors", "tiny-8steps.safetensors",
    ]  # fmt: skip


def test_launched_run_by_preset_of_two_processes_equals_one(tmp_path, monkeypatch):
    settings = {"adversarial": "on", "stages": "2-1", "learning_rate": 1e-4}
    paths = [write_preset_run(tmp_path / f"{n}.toml", out=str(n), **settings) for n in (1, 2)]
    process = start("launch_module.py", paths[1])
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(True)
    assert launch.main([str(paths[0])]) == 0
    AcceleratorState._reset_state(True)
    said = finish(process)
    assert process.returncode == 0, said
    assert "2 process(es)" in said
    for pattern in ("*.safetensors", "*/samples_000006.png", "*/phase_2/losses.txt"):
        assert [len(list((tmp_path / n).glob(pattern))) for n in "12"] == [1, 1], pattern
    one, two = (load_file(tmp_path / n / "my_style_00001_.safetensors") for n in "12")
    assert apart(one, two)[0] < 1e-2, apart(one, two)
