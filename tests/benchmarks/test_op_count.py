import torch
from hyper_sd.benchmarks.op_count import OpCounter, count_step, embedded_run


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
