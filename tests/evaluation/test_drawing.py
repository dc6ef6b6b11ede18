"""Pictures are drawn once, kept whole, and never mixed with those of another plan."""

import os
from dataclasses import replace

import pytest
from hyper_sd.errors import EvaluationError
from hyper_sd.evaluation import drawing
from hyper_sd.evaluation.drawing import Drawn, draw, missing, prepare, read_drawn, seconds_of
from hyper_sd.evaluation.plan import LoraUse
from hyper_sd.tests.evaluation.evaluations import LORA, Painter, make_plan


def run(plan, out, painter=None, **options):
    painter = painter or Painter()
    list(draw(plan, out, missing(plan, out, **options), painter))
    return painter.drawn


def test_interrupted_run_goes_on_and_draws_nothing_twice(tmp_path):
    plan, stopped = make_plan(), Painter(stop_after=11)
    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path, stopped)
    assert len(missing(plan, tmp_path)) == 24 - 11
    rest = run(plan, tmp_path)
    assert len(stopped.drawn) == 11
    assert len(rest) == 13
    assert set(stopped.drawn).isdisjoint(rest)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert run(plan, tmp_path) == []
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert len(before) == 24
    assert not list(tmp_path.rglob("*.part"))


def test_plan_that_grows_keeps_what_is_there(tmp_path):
    run(make_plan(("pear", "wolf"), 1), tmp_path)
    drawn = run(make_plan(("pear", "wolf", "tiger"), 2), tmp_path)
    assert len(drawn) == 18 - 6
    assert not [name for _, name in drawn if name in ("0001-0", "0002-0")]


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": ("pear", "wolf", "lion", "penguin")},
        {"through": "comfyui"},
        {"model": replace(make_plan().model, mark="other")},
        {"arms": (*make_plan().arms[:2], replace(make_plan().arms[2], loras=(replace(LORA, strength=1.0),)))},
        {"arms": (*make_plan().arms[:2], replace(make_plan().arms[2], loras=(LORA, LoraUse(LORA.path, 1.0, "more"))))},
    ],
)
def test_changed_plan_is_refused_changes_nothing_and_is_drawn_anew_only_when_told(tmp_path, change):
    plan = make_plan()
    run(plan, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    changed = replace(plan, **change)
    with pytest.raises(EvaluationError, match=r"with another model, LoRA, prompt or setting.*--out.*--again"):
        missing(changed, tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    drawn = run(changed, tmp_path, again=True)
    assert 0 < len(drawn) <= 24
    assert missing(changed, tmp_path) == []


def test_damaged_picture_is_not_taken_for_drawn(tmp_path):
    plan = make_plan()
    run(plan, tmp_path)
    path = tmp_path / "images" / "few-4-steps" / "0002-1.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(EvaluationError, match=r"few-4-steps.0002-1\.png"):
        missing(plan, tmp_path)
    assert run(plan, tmp_path, again=True) == [("few, 4 steps", "0002-1")]


def test_picture_tells_what_it_was_drawn_by_and_its_prompt_stands_beside_it(tmp_path):
    plan = make_plan()
    run(plan, tmp_path)
    job = plan.jobs_of(plan.arms[0])[1]
    drawn = read_drawn(job.path(tmp_path))
    assert drawn == Drawn(plan.key(job), drawn.seconds, first=False, together=1)
    assert job.path(tmp_path).with_suffix(".txt").read_text(encoding="utf-8") == "wolf"
    assert read_drawn(tmp_path / "none.png") is None


def test_several_of_one_arm_are_drawn_together_and_share_the_seconds(tmp_path):
    plan, parts = make_plan(), []

    def paint(jobs):
        parts.append([job.arm.label for job in jobs])
        return Painter()(jobs)

    told = list(draw(plan, tmp_path, missing(plan, tmp_path), paint, together=5))
    assert [len(part) for part in parts] == [5, 3] * 3
    assert all(len(set(part)) == 1 for part in parts)
    assert [progress.done for progress in told] == [0, 5, 8, 13, 16, 21, 24]
    assert told[0].seconds_left is None
    assert told[-1].seconds_left == 0
    seconds = [read_drawn(job.path(tmp_path)).seconds for job in plan.jobs_of(plan.arms[0])]
    assert len(set(seconds[:5])) == len(set(seconds[5:])) == 1


def test_seconds_leave_out_the_first_picture_of_an_arm_where_there_are_others(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(drawing.time, "perf_counter", lambda: now[0])

    def paint(jobs):
        now[0] += 9.0 if jobs[0].name == "0001-0" else 2.0
        return Painter()(jobs)

    plan = make_plan()
    list(draw(plan, tmp_path, missing(plan, tmp_path), paint))
    assert {slug: [seconds for _, seconds in found] for slug, found in seconds_of(plan, tmp_path).items()} == {
        arm.slug: [2.0] * 7 for arm in plan.arms
    }
    alone = make_plan(("pear",), 1)
    assert [seconds for _, seconds in seconds_of(alone, tmp_path)["few-4-steps"]] == [9.0]


def test_time_left_follows_how_often_the_network_is_called(tmp_path, monkeypatch):
    now, plan = [0.0], make_plan(("pear",), 1)
    monkeypatch.setattr(drawing.time, "monotonic", lambda: now[0])

    def paint(jobs):
        now[0] += jobs[0].arm.cost + drawing.AROUND
        return Painter()(jobs)

    told = list(draw(plan, tmp_path, missing(plan, tmp_path), paint))
    assert [progress.seconds_left for progress in told] == [
        None,
        62,
        8,
        0,
    ]  # 2, 50 and 4 calls, and as much as 4 for the rest of each


def test_full_disk_ends_with_what_is_kept_and_what_to_do(tmp_path, monkeypatch):
    plan, kept, whole = make_plan(), [], drawing.keep

    def keep(job, *rest):
        if len(kept) == 3:
            raise OSError(28, "No space left on device")
        kept.append(whole(job, *rest))

    monkeypatch.setattr(drawing, "keep", keep)
    with pytest.raises(EvaluationError, match=r"too full.*goes on with the 3 pictures"):
        run(plan, tmp_path)
    monkeypatch.setattr(drawing, "keep", whole)
    assert len(run(plan, tmp_path)) == 21


def test_folder_that_cannot_be_written_is_told_before_anything_is_drawn(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EvaluationError, match="results cannot be kept"):
        prepare(make_plan(), tmp_path / "file" / "out")
    prepare(make_plan(), tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["plan.json"]
