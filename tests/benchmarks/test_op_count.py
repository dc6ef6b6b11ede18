import pytest
import torch
from hyper_sd.benchmarks.op_count import BEFORE, OpCounter, count_case, count_step, embedded_run


def test_operators_of_both_passes_are_counted_by_part_and_views_apart():
    weight, counter = torch.ones(2, 3, requires_grad=True), OpCounter()
    with counter:
        loss = (weight.t() * 2).sum()
        counter.during("backward", loss.backward)()
    assert counter.names["aten::mul"] == 2  # forward, and backward for the weight
    assert counter.parts["forward"] == 3
    assert counter.parts["backward"] >= 3
    assert counter.views >= 2


def test_step_counts_the_same_each_time_and_leaves_the_engine_as_it_was():
    run = embedded_run("finetune", "fp32", batch_size=1)
    first, second = count_step(run), count_step(run)
    assert first == second
    assert sum(first["parts"].values()) == first["operators"] > 1000
    assert not {"backward", "update"} & vars(run.engine).keys()


ALL_OPERATORS = 0.72  # of the number before; the small embedded model has the fewest adapters for its operators


@pytest.mark.parametrize("case", BEFORE)
def test_step_takes_at_most_half_of_the_computing_operators_it_took_before(case):
    counted = count_case(case)
    assert counted["ratio"]["computing"] <= 0.5
    assert counted["ratio"]["operators"] <= ALL_OPERATORS
    assert counted["parts"]["update"] < 30  # one optimizer's kernel, one norm, whatever the number of layers


def test_moving_average_is_one_operator():
    counter, run = OpCounter(), embedded_run("tscd", "fp32", batch_size=1)
    with counter:
        run.layers.sets["target"].move_towards(run.layers.sets["student"], 0.9)
    assert counter.names["aten::lerp_"] == 1
    assert counter.parts.total() <= 2
