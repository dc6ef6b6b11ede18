import pytest
import torch
from hyper_sd.benchmarks import step_watch, train_lora_cases, train_lora_report


def turns(*figures: float) -> list[dict[str, float]]:
    return [{"wall": figure} for figure in figures]


def test_steps_are_what_lies_between_reports_the_first_two_left_out():
    stamps = [(10.0, 1.0, 1), (15.0, 2.0, 2), (17.0, 2.5, 6), (20.0, 3.5, 8)]
    assert step_watch.per_step(stamps) == [(2.0, 0.5, 4), (3.0, 1.0, 2)]


def test_watch_takes_one_stamp_a_step_and_counts_the_rows_before_it():
    watch = step_watch.Watch()
    for value in (1, 1, 2, 3, 3):
        watch.asked(None, (torch.zeros(4, 1),))
        watch.progress(value, 3, None, node_id=None)
    assert [rows for _, _, rows in watch.stamps] == [4, 12, 16]


def test_trained_counts_modules_of_both_sides_and_leaves_out_alpha():
    ours = {"a.lora_down.weight": torch.zeros(2, 5), "a.lora_up.weight": torch.zeros(3, 2), "a.alpha": torch.tensor(2.0)}
    assert train_lora_report.trained(ours) == {"modules": 1, "parameters": 16}
    theirs = {**ours, "a.diff_b": torch.zeros(3), "norm.diff": torch.zeros(7), "norm.diff_b": torch.zeros(7)}
    assert train_lora_report.trained(theirs) == {"modules": 2, "parameters": 33}


def test_ratio_is_to_the_best_host_within_each_turn():
    ours, plain, checkpointing = turns(1, 2, 6), turns(2, 8, 8), turns(4, 4, 10)
    assert train_lora_report.ratios(ours, [plain], "wall") == {"each": [0.5, 0.25, 0.75], "median": 0.5}
    assert train_lora_report.ratios(ours, [plain, checkpointing], "wall") == {"each": [0.5, 0.5, 0.75], "median": 0.5}


@pytest.mark.parametrize("case", train_lora_cases.CASES.values(), ids=str)
def test_both_sides_are_given_the_same_run(case):
    ours = train_lora_cases.settings(case, train_lora_cases.OURS)
    for host in case.hosts:
        theirs = train_lora_cases.settings(case, host)
        shared = {"steps", "rank", "learning_rate", "seed"}
        assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}
        assert theirs["batch_size"] * theirs["grad_accumulation_steps"] == ours["batch_size"]
    assert ours["preview_every"] > case.steps


class Kernels:
    """Stands for what watches a card, and notes what it is asked."""

    def __init__(self):
        self.asked = []

    def wait(self):
        self.asked.append("wait")

    def start(self):
        self.asked.append("start")

    def stop(self):
        self.asked.append("stop")
        return {"kernels": 3, "busy_seconds": 1.0}


def test_last_step_is_profiled_and_not_timed(monkeypatch):
    kernels, times = Kernels(), iter([10.0, 12.0, 14.0, 17.0, 50.0])
    monkeypatch.setattr(step_watch.time, "perf_counter", lambda: next(times))
    watch = step_watch.Watch(5, kernels)
    for step in range(1, 6):
        watch.progress(step)
    assert kernels.asked == ["wait"] * 4 + ["start", "wait", "stop"]
    found = step_watch.figures_of(watch, start=4.0)
    assert (found["wall"], found["measured_steps"]) == (2.5, 2)
    assert found["walls"] == {"min": 2.0, "median": 2.5, "max": 3.0}
    assert (found["before_first"], found["until_first"], found["until_usual"]) == (6.0, 3.5, 3.0)
    assert found["work"] == {"kernels": 3, "busy_seconds": 1.0, "busy_share": 0.4}


def test_eager_side_turns_graphs_off_and_nothing_else():
    case = train_lora_cases.CASES["sdxl"]
    plain, eager = (train_lora_cases.settings(case, side) for side in (train_lora_cases.OURS, train_lora_cases.EAGER))
    assert eager == plain | {"cuda_graphs": "off"}
    assert (train_lora_cases.EAGER in case.sides) == train_lora_cases.has_graphs()
