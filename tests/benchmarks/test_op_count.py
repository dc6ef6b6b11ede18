import pytest
import torch
from hyper_sd.benchmarks.op_count import OpCounter, count_step, embedded_run, sdxl_run


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


# What a step took while every pair of an adapter set was two tensors of its own, cast in every layer and call: all operators,
# and those that compute, which views do not. The network alone, without adapters, is a third of the first and more.
BEFORE = {
    "embedded, tscd": (9750, 6457), "embedded, finetune": (7002, 4738),
    "sdxl, tscd": (68187, 39647), "sdxl, tscd, checkpointing": (88592, 46941),
    "sdxl, finetune": (48666, 29168), "sdxl, finetune, checkpointing": (69071, 36462),
}  # fmt: skip
ALL_OPERATORS = 0.72  # of the number before; the small embedded model has the fewest adapters for its operators


@pytest.mark.parametrize("case", BEFORE)
def test_step_takes_at_most_half_of_the_computing_operators_it_took_before(case):
    model, objective, *how = case.split(", ")
    if model == "embedded":
        counted = count_step(embedded_run(objective, "bf16"))
    else:
        with sdxl_run(objective, "bf16", bool(how)) as run:
            counted = count_step(run)
    operators, computing = BEFORE[case]
    assert counted["operators"] - counted["views"] <= 0.5 * computing
    assert counted["operators"] <= ALL_OPERATORS * operators
    assert counted["parts"]["update"] < 30  # one optimizer's kernel, one norm, whatever the number of layers


def test_moving_average_is_one_operator():
    counter, run = OpCounter(), embedded_run("tscd", "fp32", batch_size=1)
    with counter:
        run.layers.sets["target"].move_towards(run.layers.sets["student"], 0.9)
    assert counter.names["aten::lerp_"] == 1
    assert counter.parts.total() <= 2
