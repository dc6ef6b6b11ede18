"""Whole runs of human feedback: the reward rises, the watched one ends them, and stopping loses nothing."""

import dataclasses
import json
import math

import pytest
import torch
from hyper_sd.errors import RewardError, TrainingError
from hyper_sd.tests.training.feedback.feedback_jobs import BRIGHT, DARK, Bright, distilled_lora, drawn, feedback_job, make_judge
from hyper_sd.tests.training.jobs import Follower, make_request, make_trainee
from hyper_sd.training.checkpoint import load_checkpoint
from hyper_sd.training.config import Stage, TrainingConfig
from hyper_sd.training.data.examples import LatentExamples
from hyper_sd.training.lora_layers import APPROVED, DISTILLED, EXCLUDED, STUDENT
from hyper_sd.training.plain_config import from_plain, to_plain
from hyper_sd.training.request import fitted, merged, metadata_of
from hyper_sd.training.run import CHECKPOINT


def scores(follower, name=BRIGHT) -> list[float]:
    return [report.state.losses[name] for report in follower.reports]


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_score_that_is_learnt_from_rises_by_what_is_enough(tmp_path):
    job, follower = feedback_job(tmp_path, steps=40, brake_weight=0.01), Follower()
    outcome = follower.run(job)
    found = scores(follower)
    _, values = load_checkpoint(job.phase_folder(0) / CHECKPOINT)
    first = torch.tensor(values["held_out"]["first"][BRIGHT])
    assert sum(found[-10:]) / 10 > float(first.mean() + first.std())
    assert outcome.losses == [report.state.losses["loss"] for report in follower.reports]
    assert outcome.stages == [{"title": "human feedback", "first_step": 0}]


def test_scorers_read_the_prompts_of_the_pictures(tmp_path):
    judge = make_judge(**{BRIGHT: Bright().freeze()})
    Follower().run(feedback_job(tmp_path, judge=judge, steps=10))
    assert set(judge.scorers[BRIGHT].prompts) == {f"thing {number}" for number in range(6)}


def test_feedback_is_learnt_on_top_of_the_lora_and_leaves_it_alone(tmp_path):
    trainee = make_trainee()
    start = distilled_lora(trainee)
    job = feedback_job(tmp_path, start=start, trainee=trainee)
    outcome = Follower().run(job)
    parts, _ = load_checkpoint(job.phase_folder(0) / CHECKPOINT)
    assert {DISTILLED, STUDENT} <= parts.keys()
    assert parts[DISTILLED]["flat"].numel() != parts[STUDENT]["flat"].numel()  # each has its own rank
    assert outcome.feedback is outcome.tensors
    assert any(tensor.abs().max() > 0 for key, tensor in outcome.feedback.items() if "lora_up" in key)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0])
def test_merged_lora_draws_what_both_draw_together(tmp_path, strength):
    trainee = make_trainee()
    start = distilled_lora(trainee)
    job = feedback_job(tmp_path, start=start, trainee=trainee)
    outcome = Follower().run(job)
    one = merged(make_request(feedback_strength=strength), job, outcome)
    x = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    scaled = {key: tensor * strength if "lora_up" in key else tensor for key, tensor in outcome.feedback.items()}
    together = drawn(job, {"a": dict(start.tensors), "b": scaled}, x)
    torch.testing.assert_close(drawn(job, {"merged": one}, x), together)


def test_stopped_run_goes_on_to_the_bit(tmp_path):
    whole = Follower().run(feedback_job(tmp_path / "whole", held_out_reward=DARK, steps=6))
    first = Follower(stop_at=3)
    stopped = first.run(feedback_job(tmp_path / "parts", held_out_reward=DARK, steps=6))
    assert not stopped.is_finished
    rest = Follower().run(feedback_job(tmp_path / "parts", held_out_reward=DARK, steps=6))
    assert same(whole.feedback, rest.feedback)
    assert rest.losses == whole.losses[: len(rest.losses)]


def test_accumulated_parts_learn_what_the_whole_batch_does(tmp_path):
    outcomes = []
    for parts in (1, 2):
        job = feedback_job(tmp_path / str(parts), steps=4)
        (phase,) = job.phases
        outcomes.append(Follower().run(dataclasses.replace(job, phases=(phase.changed(accumulation=parts),))))
    for key, tensor in outcomes[0].feedback.items():
        torch.testing.assert_close(tensor, outcomes[1].feedback[key], rtol=1e-4, atol=1e-6)


def test_fall_of_the_watched_reward_ends_the_run_with_what_it_approved(tmp_path, caplog):
    job, follower = feedback_job(tmp_path, held_out_reward=DARK, steps=40), Follower()
    outcome = follower.run(job)
    assert outcome.is_finished
    taken = len(follower.reports)
    assert 4 <= taken < 40
    assert [report.state.is_last for report in follower.reports] == [False] * (taken - 1) + [True]
    parts, values = load_checkpoint(job.phase_folder(0) / CHECKPOINT)
    assert torch.equal(parts[STUDENT]["flat"], parts[APPROVED]["flat"])
    assert values["held_out"]["ended"]
    assert any("has fallen" in record.getMessage() for record in caplog.records)
    again = Follower()
    assert same(again.run(job).feedback, outcome.feedback)
    assert not again.reports


def test_watched_reward_that_holds_ends_nothing_and_is_looked_at_to_the_end(tmp_path):
    judge = make_judge(**{BRIGHT: Bright().freeze(), DARK: Bright(2.0).freeze()})  # it likes it bright, too
    job, follower = feedback_job(tmp_path, judge=judge, held_out_reward=DARK, steps=6), Follower()
    assert follower.run(job).is_finished
    assert len(follower.reports) == 6
    _, values = load_checkpoint(job.phase_folder(0) / CHECKPOINT)
    assert (values["held_out"]["seen"], values["held_out"]["falls"]) == (6, 0)


def test_score_that_is_not_a_number_ends_the_run_and_keeps_the_last_checkpoint(tmp_path):
    class Sick(Bright):
        def rate(self, images, prompts):
            found = super().rate(images, prompts)
            return found * math.nan if len(self.prompts) > 20 else found

    job = feedback_job(tmp_path, judge=make_judge(**{BRIGHT: Sick().freeze()}), steps=30)
    with pytest.raises(RewardError, match="not a number"):
        Follower().run(job)


def test_interrupt_while_a_picture_is_looked_at_keeps_what_was_learnt(tmp_path):
    class Stops(Bright):
        def rate(self, images, prompts):
            if len(self.prompts) > 20:
                raise KeyboardInterrupt
            return super().rate(images, prompts)

    follower = Follower()
    job = feedback_job(tmp_path, judge=make_judge(**{BRIGHT: Stops().freeze()}), steps=30)
    with pytest.raises(KeyboardInterrupt):
        follower.run(job)
    _, values = load_checkpoint(job.phase_folder(0) / CHECKPOINT)
    assert values["step"] == len(follower.reports) > 0


def test_run_without_its_scorers_or_without_prompts_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="aesthetic is not there"):
        Follower().run(feedback_job(tmp_path, judge=make_judge(**{BRIGHT: Bright().freeze()}), second_reward=DARK))
    job = feedback_job(tmp_path / "mute")
    mute = LatentExamples(job.examples.latents, job.examples.conditioning)
    with pytest.raises(TrainingError, match="have none"):
        Follower().run(dataclasses.replace(job, examples=mute))


def test_files_say_who_judged_and_at_which_strength(tmp_path):
    job = feedback_job(tmp_path, second_reward=DARK)
    request = make_request(objective="human feedback", feedback_strength=0.7)
    both, alone = metadata_of(request, job, 5), metadata_of(request, job, 2, feedback_alone=True)
    assert both["hyper_sd_rewards"] == alone["hyper_sd_rewards"] == f"{BRIGHT}, {DARK}"
    assert (both["hyper_sd_stages"], alone["hyper_sd_stages"]) == ("1", "none")
    assert both["hyper_sd_feedback_strength"] == "0.7"
    assert "hyper_sd_feedback_strength" not in alone
    assert "hyper_sd_rewards" not in metadata_of(request, feedback_free(tmp_path), 2)


def feedback_free(root):
    from hyper_sd.tests.training.jobs import make_job

    return make_job(root / "style", objective="style finetune")


def test_settings_survive_json_and_older_runs_do_not_have_them(tmp_path):
    (phase,) = feedback_job(tmp_path, held_out_reward=DARK).phases
    assert from_plain(json.loads(json.dumps(to_plain(phase.config)))) == phase.config
    assert "feedback" not in to_plain(TrainingConfig((Stage(1, 1),)))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"rewards": "clip"}, "list of texts"),
        ({"rewards": ["clip"], "steps": [1.5]}, "list of whole numbers"),
        ({"rewards": ["clip"], "noised_to": [1]}, "two numbers"),
        ({"rewards": ["clip"], "reech": 2}, "reech"),
        (3, "must be a table"),
    ],
)
def test_table_of_feedback_that_cannot_be_is_refused(table, said):
    with pytest.raises(TrainingError, match=said):
        from_plain({"objective": "feedback", "stages": [{"num_segments": 1, "steps": 1}], "feedback": table})


def test_settings_and_objective_belong_together():
    with pytest.raises(TrainingError, match="belong together"):
        TrainingConfig((Stage(1, 1),), objective="feedback")


def test_memory_counts_decoding_scoring_and_the_lora_beneath(tmp_path):
    trainee = make_trainee()
    job = feedback_job(tmp_path, start=distilled_lora(trainee, rank=4), trainee=trainee, held_out_reward=DARK)
    plenty = 1e12
    _, needed, _ = fitted(job, lambda needed: plenty)
    _, bare, _ = fitted(dataclasses.replace(job, start={}), lambda needed: plenty)
    layers = trainee.layers(2, None, EXCLUDED)
    weights = layers.add(STUDENT).flat.numel()
    layers.detach()
    assert needed - bare == 4 * 2 * weights  # rank 4 beneath rank 2, in float32
    _, blind, _ = fitted(dataclasses.replace(job, judge=None), lambda needed: plenty)
    pixels = 3 * 16 * 16 * 4  # of one picture
    assert needed - blind > 2 * pixels
    with pytest.raises(TrainingError, match="GB of free memory"):
        fitted(job, lambda needed: 10.0)
