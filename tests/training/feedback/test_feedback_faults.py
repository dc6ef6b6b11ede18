"""Human feedback where little is there to go by: one prompt, one picture, sizes without texts, and a look cut short."""

import dataclasses
import math

import pytest
import torch
from hyper_sd.errors import TrainingError
from hyper_sd.tests.training.fakes import make_examples
from hyper_sd.tests.training.feedback.feedback_jobs import BRIGHT, DARK, Bright, distilled_lora, feedback_job, make_judge
from hyper_sd.tests.training.jobs import Follower, make_trainee
from hyper_sd.training.checkpoint import load_checkpoint
from hyper_sd.training.data.examples import Group, GroupedExamples
from hyper_sd.training.engine import LocalEngine
from hyper_sd.training.feedback import held_out
from hyper_sd.training.feedback.settings import FeedbackSettings
from hyper_sd.training.lora_layers import APPROVED, STUDENT
from hyper_sd.training.run import CHECKPOINT


def with_feedback(job, **settings):
    (phase,) = job.phases
    feedback = dataclasses.replace(phase.config.feedback, **settings)
    return dataclasses.replace(job, phases=(phase.changed(feedback=feedback),))


def first_scores(job) -> torch.Tensor:
    _, values = load_checkpoint(job.phase_folder(0) / CHECKPOINT)
    return torch.tensor(values["held_out"]["first"][BRIGHT])


def test_one_prompt_at_one_number_of_steps_is_drawn_often_enough_to_tell_a_scale(tmp_path):
    job = feedback_job(tmp_path, steps=2, held_out_reward=DARK)
    job = with_feedback(dataclasses.replace(job, examples=make_examples(1, torch.float32)), steps=(4,), num_segments=4)
    outcome = Follower().run(job)
    assert all(map(math.isfinite, outcome.losses))
    assert len(first_scores(job).unique()) == 4


def test_prompts_that_suffice_are_drawn_once_each(tmp_path):
    judge = make_judge(**{BRIGHT: Bright().freeze()})
    Follower(stop_at=0).run(feedback_job(tmp_path, judge=judge, steps=2))
    assert judge.scorers[BRIGHT].prompts == [f"thing {number}" for number in range(4)] * 2


def test_settings_that_no_look_or_no_step_could_follow_are_refused():
    with pytest.raises(TrainingError, match="check_prompts"):
        FeedbackSettings(("clip",), check_prompts=1)
    with pytest.raises(TrainingError, match="steps of feedback must be 4 or more"):
        FeedbackSettings(("clip",), steps=(2, 4), num_segments=4)


def test_texts_that_pictures_of_one_size_lack_are_missed_before_the_run(tmp_path):
    groups = []
    for size in (4, 6):
        own = make_examples(2, torch.float32, size=size)
        captions = tuple({"context": text} for text in own.conditioning["context"].split(1))
        groups.append(Group(own.latents, captions, {}, own.prompts if size == 4 else ()))
    for order in (groups, groups[::-1]):
        job, follower = feedback_job(tmp_path, steps=4), Follower()
        with pytest.raises(TrainingError, match="some of these examples have none"):
            follower.run(dataclasses.replace(job, examples=GroupedExamples(order)))
        assert not follower.reports


def test_look_that_an_interrupt_cuts_short_is_taken_again(tmp_path, monkeypatch):
    job = feedback_job(tmp_path, held_out_reward=DARK, steps=2, brake_weight=0.01)

    def interrupt(text, *values):
        if text.startswith("Step") and values[0] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(held_out.logger, "info", interrupt)
        with pytest.raises(KeyboardInterrupt):
            Follower().run(job)
    assert Follower().run(job).is_finished
    parts, values = load_checkpoint(job.phase_folder(0) / CHECKPOINT)
    assert values["held_out"]["ended"]
    assert torch.equal(parts[STUDENT]["flat"], parts[APPROVED]["flat"])


def test_error_after_a_look_names_the_checkpoint_that_there_is(tmp_path):
    class Steep(Bright):
        def rate(self, images, prompts):
            found = super().rate(images, prompts)
            return found + (images.mean((1, 2, 3)) * 0).sqrt() if len(self.prompts) > 30 else found

    judge = make_judge(**{BRIGHT: Steep().freeze(), DARK: Bright(2.0).freeze()})
    job = feedback_job(tmp_path, judge=judge, held_out_reward=DARK, steps=6)
    (phase,) = job.phases
    job = dataclasses.replace(job, phases=(phase.changed(checkpoint_every=3),))
    with pytest.raises(TrainingError, match=r"The gradient.*The last checkpoint, step 3, is kept"):
        Follower().run(job)


def test_processes_decide_by_the_mean_of_what_they_see(tmp_path):
    class Shared(LocalEngine):
        def mean(self, values):
            return values + 1 if len(values) == 8 else values  # four pictures at two numbers of steps

    alone, shared = make_trainee(), dataclasses.replace(make_trainee(), engine=Shared())
    jobs = [feedback_job(tmp_path / str(n), trainee=trainee, steps=1) for n, trainee in enumerate((alone, shared))]
    for job in jobs:
        Follower().run(job)
    torch.testing.assert_close(first_scores(jobs[1]), first_scores(jobs[0]) + 1)


def test_lora_for_exactly_one_step_is_refused_as_a_start(tmp_path):
    trainee = make_trainee()
    start = dataclasses.replace(distilled_lora(trainee), is_distilled=False, start_timestep=800)
    with pytest.raises(TrainingError, match="is for exactly one; choose one for any number"):
        feedback_job(tmp_path, start=start, trainee=trainee)
    feedback_job(tmp_path, start=dataclasses.replace(start, start_timestep=None), trainee=trainee)
