"""A training of two phases on the tiny network: from a style to its distillation, stopped anywhere and continued."""

import dataclasses
import json

import pytest
import torch
from hyper_sd.errors import TrainingError
from hyper_sd.models.recognition import recognise
from hyper_sd.tests.training.jobs import STYLE_STEPS, Follower, make_job
from hyper_sd.tests.training.runs import Interrupted, equal
from hyper_sd.training.checkpoint import load_checkpoint
from hyper_sd.training.lora_layers import STUDENT, TEACHER, LoraLayers
from hyper_sd.training.lora_tensors import lora_state_dict
from hyper_sd.training.phases import LOSSES, SETTINGS, stage_in_words, write_settings
from hyper_sd.training.request import StartingLora
from hyper_sd.training.run import CHECKPOINT
from safetensors.torch import load_file

STEPS = 10


@pytest.fixture
def whole(tmp_path):
    """What a training that nobody stops leaves behind."""
    return Follower().run(make_job(tmp_path / "whole"))


def tensors_of(layers: LoraLayers, name: str) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in lora_state_dict(layers, name, torch.float32, str).items()}


def changes(tensors, key: str) -> torch.Tensor:
    """Returns what a LoRA adds to a module's weight."""
    down, up = tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"]
    return float(tensors[f"{key}.alpha"]) / len(down) * up.flatten(1) @ down.flatten(1)


def logged(job, number: int) -> list[float]:
    return [float(line) for line in (job.phase_folder(number) / LOSSES).read_text().split()]


def test_style_is_learnt_first_and_then_distilled(tmp_path):
    job, follower = make_job(tmp_path), Follower()
    outcome = follower.run(job)
    titles = [report.phase.title for report in follower.reports]
    assert titles == ["style"] * STYLE_STEPS + ["distillation"] * (STEPS - STYLE_STEPS)
    assert [report.steps_done for report in follower.reports] == [*range(1, STEPS + 1)]
    assert outcome.stages == [
        {"title": "style", "first_step": 0}, {"title": "2 segments", "first_step": 4}, {"title": "1 segment", "first_step": 7},
    ]  # fmt: skip
    assert (outcome.is_finished, outcome.steps_taken, outcome.rank, outcome.warning) == (True, STEPS, 2, "")
    assert outcome.losses == logged(job, 0) + logged(job, 1)
    assert outcome.losses == [report.state.losses["distance"] for report in follower.reports]
    assert [title for title, _ in follower.ends] == ["distillation"]
    assert job.begun == len(job.phases)


def test_distillation_is_taught_by_the_style(tmp_path):
    seen = {}

    class Watching(Follower):
        def on_step(self, report):
            super().on_step(report)
            seen[report.steps_done] = {name: tensors_of(report.layers, name) for name in report.layers.sets}

    Watching().run(make_job(tmp_path))
    assert TEACHER not in seen[STYLE_STEPS]
    assert equal(seen[STYLE_STEPS + 1][TEACHER], seen[STYLE_STEPS][STUDENT])
    assert equal(seen[STEPS][TEACHER], seen[STYLE_STEPS][STUDENT])
    assert not equal(seen[STEPS][STUDENT], seen[STYLE_STEPS][STUDENT])


def test_distillation_goes_on_from_the_style_and_the_starting_lora(tmp_path):
    first = Follower().run(make_job(tmp_path / "a", objective="style finetune", steps=4)).tensors
    start = StartingLora(first)
    slow = {"learning_rate": 1e-12}  # so slow that nothing is learnt: a style of zero, and the LoRA that it starts from
    outcome = Follower().run(make_job(tmp_path / "b", start=start, **slow))
    assert outcome.rank == 4  # the style's and the LoRA's side by side
    key = "lora_unet_mid_block_conv"
    assert bool(changes(first, key).any())
    torch.testing.assert_close(changes(outcome.tensors, key), changes(first, key), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stop_at", [2, STYLE_STEPS, STYLE_STEPS + 1, 7, STEPS - 1])
def test_training_that_is_stopped_goes_on_to_the_bit(tmp_path, whole, stop_at):
    job, first = make_job(tmp_path / "a"), Follower(stop_at=stop_at)
    stopped = first.run(job)
    assert not stopped.is_finished
    assert (stopped.steps_taken, first.ends) == (stop_at, [])
    assert stopped.losses == whole.losses[:stop_at]
    second = Follower()
    resumed = second.run(make_job(tmp_path / "a"))
    assert [report.steps_done for report in second.reports] == [*range(stop_at + 1, STEPS + 1)]
    assert resumed.is_finished
    assert resumed.losses == whole.losses == logged(job, 0) + logged(job, 1)
    assert equal(resumed.tensors, whole.tensors)
    assert len(second.ends) == 1


def test_stop_at_the_last_step_is_an_end(tmp_path, whole):
    follower = Follower(stop_at=STEPS)
    outcome = follower.run(make_job(tmp_path / "a"))
    assert outcome.is_finished
    assert equal(outcome.tensors, whole.tensors)
    assert len(follower.ends) == 1


def test_stop_before_any_step_is_no_end(tmp_path):
    follower = Follower(stop_at=0)
    outcome = follower.run(make_job(tmp_path))
    assert (outcome.is_finished, outcome.steps_taken, outcome.losses) == (False, 0, [])
    assert (follower.reports, follower.ends) == ([], [])


def test_finished_training_takes_no_step_and_gives_the_same(tmp_path, whole):
    follower = Follower()
    again = follower.run(make_job(tmp_path / "whole"))
    assert (again.is_finished, again.steps_taken, follower.reports) == (True, 0, [])
    assert equal(again.tensors, whole.tensors)
    assert again.losses == whole.losses
    assert len(follower.ends) == 1


@pytest.mark.parametrize("step", [3, 6])
def test_error_of_the_caller_saves_and_is_passed_on(tmp_path, whole, step):
    job = make_job(tmp_path / "a")
    with pytest.raises(Interrupted):
        Follower(raises_at=step, error=Interrupted()).run(job)
    number, steps_of_phase = (0, step) if step <= STYLE_STEPS else (1, step - STYLE_STEPS)
    assert load_checkpoint(job.phase_folder(number) / CHECKPOINT)[1]["step"] == steps_of_phase
    assert not any(module._forward_hooks for module in job.trainee.denoiser.network.modules())
    resumed = Follower().run(make_job(tmp_path / "a"))
    assert resumed.steps_taken == STEPS - step
    assert resumed.losses == whole.losses
    assert equal(resumed.tensors, whole.tensors)


def test_losses_of_a_longer_attempt_are_dropped(tmp_path):
    job = make_job(tmp_path)
    Follower(stop_at=2).run(job)
    with (job.phase_folder(0) / LOSSES).open("a", encoding="utf-8") as file:
        file.write("7.0\n8.0\n")
    outcome = Follower().run(make_job(tmp_path))
    assert len(outcome.losses) == STEPS
    assert not {7.0, 8.0} & set(outcome.losses)


def test_last_checkpoint_that_fails_is_a_warning_and_the_result_is_whole(tmp_path, whole, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hyper_sd.training.checkpoint.save_file", full)
    outcome = Follower().run(make_job(tmp_path / "a"))
    assert "save it now" in outcome.warning
    assert equal(outcome.tensors, whole.tensors)


ONCE = {"objective": "TSCD distillation", "one_step": "on"}


def files(job) -> dict[str, dict[str, torch.Tensor]]:
    return {path.stem: load_file(path) for path in job.folder.glob("*.safetensors")}


def halves(tensors) -> dict[str, torch.Tensor]:
    return {name: tensor.half() for name, tensor in tensors.items()}


def test_one_step_goes_on_from_the_distillation_and_is_taught_by_the_bare_network(tmp_path):
    seen = {}

    class Watching(Follower):
        def on_step(self, report):
            super().on_step(report)
            seen[report.steps_done] = {name: tensors_of(report.layers, name) for name in report.layers.sets}

    follower = Watching()
    outcome = follower.run(make_job(tmp_path, **ONCE))
    assert [stage["title"] for stage in outcome.stages] == ["2 segments", "1 segment", "one step"]
    assert list(outcome.loras) == ["distillation", "one step"]
    assert equal(outcome.tensors, seen[5]["student"])  # of five steps each
    assert equal(outcome.one_step, seen[STEPS]["student"])
    assert seen[6].keys() == {"student", "fake"}
    assert equal(seen[6]["student"], seen[5]["student"])  # the fake score learns alone at first
    assert not equal(outcome.one_step, outcome.tensors)
    assert not equal(seen[STEPS]["fake"], seen[6]["fake"])
    assert [title for title, _ in follower.ends] == ["one step"]


@pytest.mark.parametrize("stop_at", [5, 6, 8])
def test_one_step_that_is_stopped_goes_on_to_the_bit(tmp_path, stop_at):
    whole, job = Follower().run(make_job(tmp_path / "whole", **ONCE)), make_job(tmp_path / "a", **ONCE)
    assert not Follower(stop_at=stop_at).run(job).is_finished
    resumed = Follower().run(make_job(tmp_path / "a", **ONCE))
    assert (resumed.is_finished, resumed.steps_taken) == (True, STEPS - stop_at)
    assert resumed.losses == whole.losses
    assert equal(resumed.tensors, whole.tensors)
    assert equal(resumed.one_step, whole.one_step)


def test_lora_of_each_stage_is_written_as_the_stage_ends(tmp_path):
    job, written = make_job(tmp_path, **ONCE), {}

    class Watching(Follower):
        def on_step(self, report):
            super().on_step(report)
            written[report.steps_done] = {name: tensors_of(report.layers, STUDENT) for name in files(job)}

    outcome = Watching().run(job)
    assert [sorted(written[step]) for step in (1, 2, 5, STEPS)] == [
        [], ["2-segments"], ["1-segment", "2-segments"], ["1-segment", "2-segments", "one-step"],
    ]  # fmt: skip
    found = files(job)
    assert equal(found["1-segment"], halves(outcome.tensors))
    assert equal(found["one-step"], halves(outcome.one_step))
    assert equal(found["2-segments"], halves(written[2]["2-segments"]))


@pytest.mark.parametrize(("name", "expected"), [
    ("2-segments", ("n-step", 2, None)), ("1-segment", ("unified", 1, None)), ("one-step", ("n-step", 1, 800)),
])  # fmt: skip
def test_file_of_a_stage_is_recognised_by_what_it_says(tmp_path, name, expected):
    job = make_job(tmp_path, **ONCE)
    Follower().run(job)
    found = recognise(job.folder / f"{name}.safetensors")
    assert (found.variant, found.steps, found.start_timestep) == expected


def test_file_of_a_stage_that_is_gone_is_written_again(tmp_path):
    job = make_job(tmp_path, **ONCE)
    outcome = Follower().run(job)
    for path in job.folder.glob("*.safetensors"):
        path.unlink()
    Follower().run(make_job(tmp_path, **ONCE))
    assert files(job).keys() == {"1-segment", "one-step"}  # of a finished training the last of each phase is known
    assert equal(files(job)["one-step"], halves(outcome.one_step))


def test_stage_that_cannot_be_written_is_said_and_the_training_goes_on(tmp_path, caplog):
    job = make_job(tmp_path, **ONCE)
    (job.folder / "2-segments.safetensors").mkdir(parents=True)
    assert Follower().run(job).is_finished
    assert "The LoRA of this stage is not kept, and the training goes on" in caplog.text


def test_settings_are_written_for_people(tmp_path):
    job = make_job(tmp_path)
    write_settings(job, "my_style")
    written = json.loads((job.folder / SETTINGS).read_text())
    assert (written["name"], written["model"], [phase["title"] for phase in written["phases"]]) == (
        "my_style", "m", ["style", "distillation"],
    )  # fmt: skip
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TrainingError, match=r"The training did not start: .* cannot be written"):
        write_settings(dataclasses.replace(job, folder=tmp_path / "file" / "below"), "my_style")


def test_stages_are_called_by_their_segments(tmp_path):
    style, distil = make_job(tmp_path).phases
    assert stage_in_words(style, style.config.stages[0]) == "style"
    assert [stage_in_words(distil, stage) for stage in distil.config.stages] == [
        "distillation (2 segments)", "distillation (1 segment)",
    ]  # fmt: skip
