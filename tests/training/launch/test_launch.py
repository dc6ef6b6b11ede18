import logging
import signal

import pytest
import torch
from hyper_sd.models.recognition import recognise
from hyper_sd.tests.training.data.pictures import encoded, picture, shard
from hyper_sd.tests.training.launch.log_spy import Spy
from hyper_sd.tests.training.launch.tiny_pipelines import (
    ADVERSARIAL,
    PLAIN,
    PROMPTS,
    make_pipeline,
    save_pipeline,
    student,
    write_images,
    write_run,
)
from hyper_sd.training.launch import __main__ as launch
from safetensors.torch import load_file

accelerate = pytest.importorskip("accelerate")
pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_pipeline(folder / "sd15")
    save_pipeline(folder / "sdxl", "sdxl", prediction_type="v_prediction", rescale_betas_zero_snr=True)
    save_pipeline(folder / "sd3", "sd3")
    return folder


def write_data(folder, kind):
    """Returns the line of a run file that names the data."""
    if kind == "folder":
        write_images(folder / "images")
        return "folder = 'images'"
    if kind == "shards":
        for number in range(2):
            members = [(f"{n}.png", encoded(picture((80, 72), (90 * n, 90 * number, 0)))) for n in range(3)]
            members += [(f"{n}.txt", text.encode()) for n, text in enumerate(PROMPTS[:3])]
            shard(folder / f"data-00{number}.tar", members)
        return "shards = 'data-{000..001}.tar'"
    (folder / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    return "prompts = 'prompts.txt'"


def run(path):
    accelerate.state.AcceleratorState._reset_state(True)
    return launch.main([str(path)])


@pytest.mark.parametrize(
    ("model", "data", "stages", "steps"),
    [
        ("sd15", "folder", ADVERSARIAL, ["8steps", "2steps"]),
        ("sdxl", "shards", ADVERSARIAL, ["8steps", "2steps"]),
        ("sdxl", "prompts", PLAIN, ["4steps", "1step"]),
        ("sd3", "prompts", PLAIN, ["4steps", "1step"]),
    ],
)
def test_run_trains_and_writes_every_stage_for_diffusers(tmp_path, models, model, data, stages, steps):
    pytest.importorskip("peft", reason="diffusers loads LoRA files through peft")
    path = write_run(tmp_path / "run.toml", models / model, write_data(tmp_path, data), stages)
    assert run(path) == 0
    out = tmp_path / "out"
    assert {file.stem for file in out.glob("*.safetensors")} == {f"tiny-{name}" for name in steps}
    pipeline = make_pipeline(model)
    network = getattr(pipeline, "transformer" if model == "sd3" else "unet")
    written = load_file(out / f"tiny-{steps[-1]}.safetensors")
    pipeline.load_lora_weights(out, weight_name=f"tiny-{steps[-1]}.safetensors")
    loaded = {name: p.detach() for name, p in network.named_parameters() if ".lora_" in name}
    pairs = [name for name in written if not name.endswith(".alpha")]
    assert len(loaded) == len(pairs) > 50
    ups = [name for name in pairs if "lora_up" in name or "lora_B" in name]
    assert sum(bool(written[name].any()) for name in ups) > len(ups) / 2
    assert sum(float(p.abs().sum()) for p in loaded.values()) == pytest.approx(
        sum(float(written[name].float().abs().sum()) for name in pairs), rel=1e-3
    )


def test_stage_for_one_step_writes_a_file_of_its_own_that_says_where_it_starts(tmp_path, models):
    once = "{num_segments = 1, steps = 2, distance_weight = 0.0, score_weight = 0.5, pair_weight = 1.0}"
    stages = f"stages = [{{num_segments = 1, steps = 2}}, {once}]\npairs = 2\npair_steps = 2\nfake_warmup = 1\n"
    write_run(tmp_path / "run.toml", models / "sd15", write_data(tmp_path, "folder"), stages)
    assert run(tmp_path / "run.toml") == 0
    paths = {name: tmp_path / "out" / f"tiny-{name}.safetensors" for name in ("1step", "one-step")}
    unified, once = (recognise(path) for path in paths.values())
    assert (unified.variant, unified.start_timestep) == ("unified", None)
    assert (once.variant, once.steps, once.start_timestep) == ("n-step", 1, 800)
    first, second = (load_file(path) for path in paths.values())
    assert first.keys() == second.keys()
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_finetuning_writes_one_file_named_as_the_run(tmp_path, models):
    data = write_data(tmp_path, "folder")
    path = write_run(tmp_path / "run.toml", models / "sd15", data, PLAIN, "objective = 'finetune'\n")
    assert run(path) == 0
    assert [file.name for file in (tmp_path / "out").glob("*.safetensors")] == ["tiny.safetensors"]


def test_run_that_was_interrupted_ends_as_one_that_was_not_to_the_bit(tmp_path, models, caplog):
    before = signal.getsignal(signal.SIGINT)  # ignored, where tests run in a shell's background
    data = write_data(tmp_path, "folder")
    whole, parts = (write_run(tmp_path / f"{o}.toml", models / "sd15", data, out=o) for o in ("whole", "parts"))
    assert run(whole) == 0
    with Spy(r"step 2/6", lambda: signal.raise_signal(signal.SIGINT)):
        assert run(parts) == launch.STOPPED
    assert "Stopped after step 3 of 6" in caplog.text
    assert signal.getsignal(signal.SIGINT) is before
    with Spy(r"step 4/6", lambda: signal.raise_signal(signal.SIGTERM)):
        assert run(parts) == launch.STOPPED
    assert run(parts) == 0
    assert [f.name for f in sorted((tmp_path / "parts").glob("*.safetensors"))] == [
        "tiny-2steps.safetensors", "tiny-8steps.safetensors",
    ]  # fmt: skip
    for name in ("tiny-8steps.safetensors", "tiny-2steps.safetensors", "tiny/checkpoint.safetensors"):
        one, other = (load_file(tmp_path / out / name) for out in ("whole", "parts"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name


def test_finished_run_is_left_alone(tmp_path, models, caplog):
    path = write_run(tmp_path / "run.toml", models / "sd15", write_data(tmp_path, "folder"), PLAIN)
    assert run(path) == 0
    files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    assert run(path) == 0
    assert "nothing was left to do" in caplog.text
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")} == files


def test_accumulated_parts_train_the_same_weights(tmp_path, models):
    data = write_data(tmp_path, "folder")
    paths = [
        write_run(tmp_path / f"{n}.toml", models / "sd15", data, training=f"accumulation = {n}\n", out=str(n)) for n in (1, 2)
    ]
    assert [run(path) for path in paths] == [0, 0]
    one, two = (student(tmp_path / n / "tiny" / "checkpoint.safetensors") for n in "12")
    assert all(torch.allclose(one[key], two[key], atol=2e-5) for key in one)


def test_bf16_runs_with_weights_in_bf16(tmp_path, models):
    data = write_data(tmp_path, "folder")
    path = write_run(tmp_path / "run.toml", models / "sdxl", data, PLAIN, "precision = 'bf16'\n")
    assert run(path) == 0
    assert student(tmp_path / "out" / "tiny" / "checkpoint.safetensors")["student/flat"].dtype == torch.float32


@pytest.mark.parametrize(
    ("model", "data", "training", "said"),
    [
        ("none", "folder = 'images'", "", "none cannot be loaded (it holds no model_index.json)"),
        ("sd15", "folder = 'nowhere'", "", "nowhere is not a folder"),
        ("sd15", "shards = 'nowhere-*.tar'", "", "stands for no shard"),
        ("sd15", "prompts = 'nowhere.txt'", "", "nowhere.txt cannot be read"),
        ("sd15", "folder = 'images'", "accumulation = 3\n", "batch_size 4 must divide by 1 processes x 3"),
        ("sd15", "folder = 'images'", "precision = 'fp16'\n", "needs a GPU"),
        ("sd3", "folder = 'images'", "", "set adversarial_weight to 0"),
        ("sd15", "folder = 'images'", "teacher = 1\n", "Unknown settings ['teacher']"),
    ],
)
def test_bad_run_ends_with_one_line(tmp_path, models, caplog, model, data, training, said):
    write_images(tmp_path / "images", 2)
    path = write_run(tmp_path / "run.toml", models / model, data, training=training)
    assert run(path) == launch.FAILED
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert said in errors[0]
    assert "\n" not in errors[0]


def test_checkpoint_of_another_run_is_not_overwritten(tmp_path, models, caplog):
    data = write_data(tmp_path, "folder")
    assert run(write_run(tmp_path / "run.toml", models / "sd15", data, PLAIN)) == 0
    assert run(write_run(tmp_path / "run.toml", models / "sd15", data, PLAIN.replace("steps = 1}", "steps = 5}"))) == 1
    assert "belongs to a run with other settings (stages" in caplog.text


def test_second_signal_ends_the_process_unless_it_is_the_same_request(monkeypatch):
    raised, request = [], launch.StopRequest()
    with request.listening():
        signal.raise_signal(signal.SIGTERM)
        assert request()
        signal.raise_signal(signal.SIGTERM)  # forwarded by a launcher, at the same time
        request.first -= launch.SAME_REQUEST_SECONDS + 1
        handler = signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr(signal, "raise_signal", lambda number: raised.append((number, signal.getsignal(number))))
        handler(signal.SIGTERM, None)
        monkeypatch.undo()
    assert raised == [(signal.SIGTERM, signal.SIG_DFL)]
