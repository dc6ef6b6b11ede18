"""What is drawn: every arm the same prompts on the same noise, under the same names."""

from dataclasses import replace

import pytest
from hyper_sd.errors import EvaluationError
from hyper_sd.evaluation.arms import base_arms
from hyper_sd.evaluation.plan import Plan, mark_of, slug, unique_slugs
from hyper_sd.tests.evaluation.evaluations import LORA, MODEL, make_plan


def test_arms_are_paired_by_name_prompt_and_noise(tmp_path):
    plan = make_plan()
    told = [[(job.name, job.prompt, job.noise_seed) for job in plan.jobs_of(arm)] for arm in plan.arms]
    assert told[0] == told[1] == told[2]
    assert len({seed for _, _, seed in told[0]}) == len(told[0]) == 8
    assert told[0][0] == ("0001-0", "pear", 1)
    paths = [job.path(tmp_path) for job in plan.jobs()]
    assert len(set(paths)) == 24
    assert paths[0] == tmp_path / "images" / "base-1-step" / "0001-0.png"
    assert [arm.slug for arm in plan.arms] == ["base-1-step", "base-25-steps", "few-4-steps"]


def test_noise_of_a_prompt_stays_when_prompts_and_seeds_are_added():
    few, many = make_plan(("pear", "wolf"), 1), make_plan(("pear", "wolf", "tiger"), 5)
    noise = {(job.number, job.seed): job.noise_seed for job in many.jobs()}
    assert all(noise[job.number, job.seed] == job.noise_seed for job in few.jobs())


def test_key_follows_everything_that_a_picture_depends_on_and_nothing_else():
    plan = make_plan()
    arm = plan.arms[2]
    job = plan.jobs_of(arm)[0]
    same = [
        plan.key(replace(job, arm=replace(arm, label="other", series="other", slug="other"))),
        replace(plan, prompts=("pear",), seeds=1).key(job),
        replace(plan, model=replace(MODEL, title="renamed")).key(job),
    ]
    assert set(same) == {plan.key(job)}
    changed = [
        plan.key(replace(job, prompt="apple")), plan.key(replace(job, number=2)), plan.key(replace(job, seed=1)),
        *(plan.key(replace(job, arm=replace(arm, **change))) for change in (
            {"steps": 5}, {"cfg": 2.0}, {"eta": 0.5}, {"num_segments": 2}, {"start_timestep": 800}, {"loras": ()},
            {"loras": (replace(LORA, strength=1.0),)}, {"loras": (replace(LORA, mark="other"),)}, {"loras": (LORA, LORA)},
        )),
        replace(plan, model=replace(MODEL, mark="other")).key(job), replace(plan, model=replace(MODEL, size=256)).key(job),
        replace(plan, through="comfyui").key(job),
    ]  # fmt: skip
    assert len({*changed, plan.key(job)}) == len(changed) + 1


def test_base_is_the_one_without_lora_at_most_steps():
    assert make_plan().base.label == "base, 25 steps"
    assert make_plan(arms=make_plan().arms[2:]).base is None


def test_arms_of_one_name_get_folders_of_their_own_and_the_same_arm_is_refused():
    one, other = base_arms((4,), 4.0)[0], base_arms((4,), 2.0)[0]
    assert [(arm.slug, arm.label) for arm in unique_slugs([one, other])] == [
        ("base-4-steps", "base, 4 steps"), ("base-4-steps-2", "base, 4 steps #2"),
    ]  # fmt: skip
    with pytest.raises(EvaluationError, match="given twice"):
        unique_slugs([one, one])


@pytest.mark.parametrize(
    ("change", "what"), [({"arms": ()}, "way to draw"), ({"prompts": ()}, "prompt"), ({"seeds": 0}, "seed")]
)
def test_plan_of_nothing_is_refused(change, what):
    with pytest.raises(EvaluationError, match=f"at least one {what}, got none"):
        make_plan(**change)


def test_slug_is_a_name_for_a_folder_everywhere():
    assert slug('A "Über" LoRA: v1/2 + feedback, 4 steps') == "a-ber-lora-v1-2-feedback-4-steps"
    assert slug("雪") == "arm"
    assert len(slug("a" * 300)) == 60


def test_mark_follows_a_files_size_and_both_its_ends(tmp_path):
    path = tmp_path / "a.safetensors"
    marks = []
    for content in (b"a" * 4000000, b"a" * 4000001, b"b" + b"a" * 3999999, b"a" * 3999999 + b"b"):
        path.write_bytes(content)
        marks.append(mark_of(path))
    assert len(set(marks)) == 4
    (tmp_path / "b.txt").write_text("not weights")
    assert mark_of(tmp_path) != marks[3]
    with pytest.raises(EvaluationError, match="cannot be read"):
        mark_of(tmp_path / "none.safetensors")


def test_plan_in_its_file_tells_no_folder_of_this_machine(tmp_path):
    lora = replace(LORA, path=tmp_path / "few.safetensors")
    arm = replace(make_plan().arms[2], loras=(lora,))
    plan = Plan(replace(MODEL, path=tmp_path / "model.safetensors"), "comfyui", (arm,), ("a",), 1, tmp_path / "prompts.txt")
    assert str(tmp_path) not in str(plan.as_plain())
    assert plan.as_plain()["arms"][0]["loras"] == [{"path": "few.safetensors", "strength": 0.75, "mark": "def"}]
