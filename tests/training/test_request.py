"""From what a person asks to the job: phases, ranks, the folder's name, memory, and what the LoRA's file says."""

import dataclasses
import hashlib
import json
import re

import pytest
import torch
from hyper_sd.errors import TrainingError
from hyper_sd.tests.repository import ROOT
from hyper_sd.tests.training.fakes import TOKENS, WIDTH, make_examples
from hyper_sd.tests.training.feedback.feedback_jobs import make_judge
from hyper_sd.tests.training.jobs import FINGERPRINTS, make_job, make_request, make_trainee
from hyper_sd.training.data.examples import Group, GroupedExamples
from hyper_sd.training.lora_layers import EXCLUDED
from hyper_sd.training.plain_config import FREE_TO_CHANGE
from hyper_sd.training.presets import TrainRequest
from hyper_sd.training.request import StartingLora, fingerprint, fitted, job_of, metadata_of, phases_of

STYLE, DISTIL, BOTH = "style finetune", "TSCD distillation", "style, then distil"


def start_of_rank(rank: int, **settings) -> StartingLora:
    key = "lora_unet_mid_block_conv"
    tensors = {f"{key}.lora_down.weight": torch.ones(rank, 8, 3, 3), f"{key}.lora_up.weight": torch.ones(8, rank, 1, 1)}
    return StartingLora(tensors, **settings)


@pytest.mark.parametrize(("name", "value", "words"), [
    ("objective", "distil", r"objective must be one of 'style, then distil', 'style finetune', .*, got 'distil'"),
    ("preset", "Large", r"preset must be one of 'Small', 'Medium', 'Thorough', got 'Large'"),
    ("gradient_checkpointing", "off", r"gradient_checkpointing must be one of 'auto', 'on', got 'off'"),
    ("adversarial", "maybe", r"adversarial must be one of 'auto', 'on', 'off', got 'maybe'"),
    ("one_step", "maybe", r"one_step must be one of 'auto', 'on', 'off', got 'maybe'"),
    ("cuda_graphs", "on", r"cuda_graphs must be one of 'auto', 'off', got 'on'"),
    ("optimizer", "sgd", r"optimizer must be one of 'adamw', 'adamw8bit', got 'sgd'"),
])  # fmt: skip
def test_value_that_a_list_does_not_have_is_refused_with_what_it_has(name, value, words):
    with pytest.raises(TrainingError, match=words):
        TrainRequest(**{name: value})


@pytest.mark.parametrize(("objective", "ranks"), [(STYLE, [2]), (DISTIL, [2]), (BOTH, [2, 2])])
def test_ranks_without_a_starting_lora_are_those_asked_for(objective, ranks):
    request, examples = make_request(objective=objective), make_examples(10)
    assert [p.config.rank for p in phases_of(request, make_trainee(), examples, StartingLora({}))] == ranks


@pytest.mark.parametrize(("objective", "rank", "ranks"), [
    (STYLE, 1, [2]), (STYLE, 6, [6]), (DISTIL, 6, [6]), (BOTH, 6, [2, 8]), (BOTH, 1, [2, 3]),
])  # fmt: skip
def test_ranks_have_room_for_the_lora_that_is_started_from(objective, rank, ranks):
    planned = phases_of(make_request(objective=objective), make_trainee(), make_examples(10), start_of_rank(rank))
    assert [phase.config.rank for phase in planned] == ranks


def test_phases_follow_the_network_the_examples_and_the_start():
    request = TrainRequest(objective=BOTH)
    plain = phases_of(request, make_trainee(), make_examples(3), StartingLora({}))
    assert {phase.config.batch_size for phase in plain} == {2}  # the preset's of SD1.5
    embedded = phases_of(request, make_trainee(is_embedded=True), make_examples(3), StartingLora({}))
    assert {phase.config.batch_size for phase in embedded} == {3}  # its preset has 8, there are 3 examples
    assert embedded[1].config.is_adversarial
    assert not plain[1].config.is_adversarial
    distilled = phases_of(request, make_trainee(), make_examples(3), start_of_rank(1, is_distilled=True))
    assert [stage.num_segments for stage in distilled[1].config.stages] == [1]
    half = dataclasses.replace(make_trainee(), precision="bf16")
    assert {phase.config.precision for phase in phases_of(request, half, make_examples(3), StartingLora({}))} == {"bf16"}


@pytest.mark.parametrize(("switch", "is_on"), [("auto", False), ("on", True)])
def test_gradient_checkpointing_is_turned_on_in_every_phase(tmp_path, switch, is_on):
    job = make_job(tmp_path, gradient_checkpointing=switch)
    assert [phase.config.gradient_checkpointing for phase in job.phases] == [is_on, is_on]


def test_layers_that_the_starting_lora_changes_are_trained_as_well():
    changed = frozenset({"conv_in", "time_embedding.linear_1", "mid_block.conv"})
    assert set(EXCLUDED) - set(StartingLora({}, changed=changed).excluded) == {"conv_in", "time_embedding.*"}
    assert StartingLora({}).excluded == EXCLUDED


@pytest.mark.parametrize("changed", [
    {"objective": STYLE}, {"steps": 11}, {"rank": 3}, {"learning_rate": 2e-2}, {"stages": "4-1"}, {"batch_size": 2},
    {"teacher_cfg": 4.0}, {"seed": 4}, {"adversarial": "on"}, {"steps": 0, "preset": "Medium"},
])  # fmt: skip
def test_setting_that_decides_what_is_learnt_is_another_folder(tmp_path, changed):
    plain, other = make_job(tmp_path), make_job(tmp_path, **changed)
    assert plain.folder == make_job(tmp_path).folder
    assert other.folder != plain.folder
    assert other.folder.parent == tmp_path
    assert re.fullmatch(r"my_style-[0-9a-f]{8}", other.folder.name)


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_another_model_other_data_or_another_start_is_another_folder(tmp_path, name):
    other = make_job(tmp_path, fingerprints=FINGERPRINTS | {name: "another"})
    assert other.folder != make_job(tmp_path).folder
    assert other.settings[name] == "another"


def test_another_taste_is_another_folder_and_scorers_of_which_there_is_one_keep_that_of_older_runs(tmp_path):
    def job_with(version):
        judge = make_judge()
        for scorer in judge.scorers.values():
            scorer.version = version
        return make_job(tmp_path, judge=judge)

    assert job_with("").folder == make_job(tmp_path).folder
    assert len({job_with(version).folder for version in ("", "one", "other", "one")}) == 3


def test_another_optimizer_is_another_folder_and_the_usual_one_keeps_that_of_older_runs(tmp_path):
    request, trainee, examples, start = make_request(), make_trainee(), make_examples(10), StartingLora({})
    jobs = [make_job(tmp_path)]
    for name in ("adamw", "adamw8bit"):
        planned = tuple(phase.changed(optimizer=name) for phase in phases_of(request, trainee, examples, start))
        jobs.append(job_of(request, trainee, examples, planned, start, root=tmp_path, fingerprints=FINGERPRINTS))
    assert "optimizer" not in str(jobs[0].settings)
    assert jobs[0].folder == jobs[1].folder != jobs[2].folder


def test_optimizer_that_is_not_there_is_refused_as_the_phases_are_planned():
    with pytest.raises(TrainingError, match=r'"adamw8bit" needs a graphics card .*or use optimizer "adamw"'):
        phases_of(make_request(optimizer="adamw8bit"), make_trainee(), make_examples(10), StartingLora({}))


@pytest.mark.parametrize(
    "changed", [{"gradient_checkpointing": "on"}, {"cuda_graphs": "off"}, {"preview_every": 3}, {"preset": "Medium"}]
)
def test_setting_that_changes_nothing_that_is_learnt_keeps_the_folder(tmp_path, changed):
    assert make_job(tmp_path, **changed).folder == make_job(tmp_path).folder


@pytest.mark.parametrize(("name", "value"), [
    ("checkpoint_every", 7), ("gradient_checkpointing", True), ("accumulation", 2), ("cuda_graphs", "off"),
])  # fmt: skip
def test_what_may_change_between_two_parts_of_a_run_keeps_the_folder(tmp_path, name, value):
    assert name in FREE_TO_CHANGE
    job = make_job(tmp_path)
    changed = tuple(phase.changed(**{name: value}) for phase in job.phases)
    start = StartingLora({})
    again = job_of(make_request(), job.trainee, job.examples, changed, start, root=tmp_path, fingerprints=FINGERPRINTS)
    assert again.phases != job.phases
    assert again.folder == job.folder


def test_name_is_the_folders_first_part(tmp_path):
    plain, named = make_job(tmp_path), make_job(tmp_path, name="people/ada")
    assert named.folder.name == plain.folder.name.replace("my_style", "people-ada")


def groups(*sides: int) -> GroupedExamples:
    """Returns two examples of each of these sizes."""
    captions = ({"context": torch.ones(1, TOKENS, WIDTH)},) * 2
    return GroupedExamples([Group(torch.zeros(2, 2, side, side), captions, captions[0]) for side in sides])


def needed_for(tmp_path, examples, free=10**12) -> int:
    job = make_job(tmp_path, examples=examples)
    asked = []
    _, needed, found = fitted(job, lambda needed: asked.append(needed) or free)
    assert found == free
    assert asked == [needed]
    return needed


def test_memory_is_measured_on_the_largest_images(tmp_path):
    small, large = (needed_for(tmp_path, groups(side)) for side in (16, 32))
    assert large > 1.5 * small
    assert needed_for(tmp_path, groups(16, 32)) == needed_for(tmp_path, groups(32, 16)) == large


def test_memory_is_measured_with_the_longest_caption(tmp_path):
    short, long = ({"context": torch.ones(1, tokens, WIDTH)} for tokens in (3, 3000))
    latents = torch.zeros(2, 2, 16, 16)
    needed = [needed_for(tmp_path, GroupedExamples([Group(latents, texts, short)])) for texts in ((short,) * 2, (short, long))]
    assert needed[1] > 1.5 * needed[0]


def test_settings_that_do_not_fit_are_changed_in_every_phase(tmp_path):
    job = make_job(tmp_path, examples=groups(32))
    _, most, _ = fitted(job, lambda needed: 10**12)
    changed, needed, _ = fitted(job, lambda needed: most - 1)
    assert needed < most
    assert [phase.config.accumulation > 1 or phase.config.gradient_checkpointing for phase in changed.phases][-1]
    assert changed.folder == job.folder
    with pytest.raises(TrainingError, match="GB of free memory"):
        fitted(job, lambda needed: 1000)


def test_heads_of_a_discriminator_are_counted_into_the_job(tmp_path):
    free = {"free_bytes": lambda needed: 10**12}
    assert fitted(make_job(tmp_path), **free)[0].heads == 0
    assert fitted(make_job(tmp_path, adversarial="on"), **free)[0].heads > 1000


def test_fingerprint_is_the_one_that_older_runs_are_named_after():
    tensors = {"a": torch.arange(40.0), "b": torch.tensor([[1.5, 2]]).half(), "c": torch.tensor(3)}
    plain = b"a [40] torch.float32b [1, 2] torch.float16c [] torch.int64"
    values = [torch.arange(0.0, 40, 2), torch.tensor([1.5, 2.0]), torch.tensor([3.0])]
    assert fingerprint(tensors) == hashlib.sha256(plain + b"".join(v.numpy().tobytes() for v in values)).hexdigest()
    assert fingerprint({}) == hashlib.sha256().hexdigest()


def test_fingerprint_follows_names_shapes_and_values():
    plain = {"a": torch.zeros(4, 4), "b": torch.ones(3)}
    others = [
        {"a": torch.zeros(4, 4), "c": torch.ones(3)}, {"a": torch.zeros(16), "b": torch.ones(3)},
        {"a": torch.zeros(4, 4).half(), "b": torch.ones(3)}, {"a": torch.zeros(4, 4), "b": torch.tensor([1, 1, 2.0])},
    ]  # fmt: skip
    assert len({fingerprint(tensors) for tensors in (plain, *others)}) == 5
    assert fingerprint({name: tensor.clone() for name, tensor in plain.items()}) == fingerprint(plain)


def test_file_says_how_it_was_trained(tmp_path):
    request = make_request(start_from="a.safetensors", teacher_cfg=4.5)
    metadata = metadata_of(request, make_job(tmp_path, teacher_cfg=4.5), 6)
    said = {name.removeprefix("hyper_sd_"): value for name, value in metadata.items() if name.startswith("hyper_sd_")}
    settings, date, version = (json.loads(said.pop("settings")), said.pop("date"), said.pop("version"))
    assert said == {
        "base": "sd15", "prediction": "epsilon", "model_hash": "m", "data_hash": "d", "images": "10", "objective": BOTH,
        "steps": "10", "rank": "6", "stages": "2-1", "learning_rate": "0.01, 0.01", "teacher_cfg": "4.5",
        "start_from": "a.safetensors", "seed": "3",
    }  # fmt: skip
    assert [phase["title"] for phase in settings] == ["style", "distillation"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", date)
    assert f'\nversion = "{version}"\n' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    kohya = {"ss_network_module": "networks.lora", "ss_network_dim": "6", "ss_network_alpha": "6"}
    assert metadata | kohya | {"ss_base_model_version": "sd_v1"} == metadata


def test_file_of_a_style_names_no_stages_and_no_guidance(tmp_path):
    job = make_job(tmp_path, objective=STYLE, trainee=make_trainee("sdxl"))
    metadata = metadata_of(make_request(objective=STYLE), job, 2)
    assert (metadata["hyper_sd_stages"], metadata["hyper_sd_teacher_cfg"]) == ("none", "none")
    assert metadata["ss_base_model_version"].startswith("sdxl")


def test_file_says_that_the_noise_ends_without_signal(tmp_path):
    trainee = make_trainee()
    diffusion = trainee.denoiser.diffusion
    alpha = diffusion.alpha.clone()
    alpha[-1] = 0
    denoiser = dataclasses.replace(trainee.denoiser, diffusion=dataclasses.replace(diffusion, alpha=alpha))
    job = make_job(tmp_path, trainee=dataclasses.replace(trainee, denoiser=denoiser))
    assert metadata_of(make_request(), job, 2)["hyper_sd_prediction"] == "epsilon, zero terminal SNR"


def test_file_of_one_step_says_where_the_step_starts_and_the_other_one_does_not(tmp_path):
    job, request = make_job(tmp_path, objective=DISTIL, one_step="on"), make_request(objective=DISTIL, one_step="on")
    plain, once = (metadata_of(request, job, 2, one_step=one_step) for one_step in (False, True))
    assert "hyper_sd_start_timestep" not in plain
    assert (plain["hyper_sd_stages"], plain["hyper_sd_steps"]) == ("2-1", "5")
    assert (once["hyper_sd_start_timestep"], once["hyper_sd_stages"], once["hyper_sd_steps"]) == ("800", "1", "10")
    assert [phase["title"] for phase in json.loads(once["hyper_sd_settings"])] == ["distillation", "one step"]


@pytest.mark.parametrize(("rank", "ranks"), [(0, [2, 2]), (1, [2, 2]), (6, [6, 6])])
def test_one_step_has_the_rank_of_the_distillation_that_it_goes_on_from(rank, ranks):
    start = start_of_rank(rank) if rank else StartingLora({})
    request = make_request(objective=DISTIL, one_step="on")
    assert [p.config.rank for p in phases_of(request, make_trainee(), make_examples(10), start)] == ranks


def test_memory_of_one_step_is_that_of_its_fake_score_and_two_passes(tmp_path):
    (_, plain, _), (_, once, _) = (
        fitted(make_job(tmp_path, examples=groups(32), objective=DISTIL, one_step=word), lambda needed: 10**12)
        for word in ("off", "on")
    )
    assert 1.5 * plain < once < 2.5 * plain
