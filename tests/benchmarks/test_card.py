from argparse import ArgumentParser
from types import SimpleNamespace

import pytest
import torch
from hyper_sd.benchmarks.card import Growth, KernelWatch, merged_length, require_device, work_of

DEVICE = torch.autograd.DeviceType


def event(name, start, end, device=DEVICE.CUDA, **more):
    return SimpleNamespace(name=name, device_type=device, time_range=SimpleNamespace(start=start, end=end), **more)


@pytest.mark.parametrize(
    ("intervals", "length"),
    [([], 0), ([(0, 2), (5, 6)], 3), ([(0, 4), (1, 2)], 4), ([(3, 5), (0, 4)], 5), ([(0, 1), (1, 2), (1, 2)], 2)],
)
def test_intervals_that_overlap_count_once(intervals, length):
    assert merged_length(intervals) == length


def test_work_is_what_the_card_ran_and_what_was_launched():
    events = [
        event("gemm", 0, 100), event("add", 50, 150), event("Memcpy HtoD (Pinned -> Device)", 300, 400),
        event("Optimizer.step#AdamW.step", 0, 1000), event("a step", 0, 1000, is_user_annotation=True),
        event("cudaLaunchKernel", 0, 9, DEVICE.CPU), event("cuLaunchKernelEx", 9, 10, DEVICE.CPU),
        event("cudaGraphLaunch", 10, 12, DEVICE.CPU), event("cudaMemcpyAsync", 12, 13, DEVICE.CPU),
    ]  # fmt: skip
    assert work_of(events) == {"kernels": 2, "copies": 1, "launches": 3, "busy_seconds": 250 / 1e6}


def test_profiler_that_saw_no_work_gives_no_figures():
    assert work_of([event("cudaLaunchKernel", 0, 9, DEVICE.CPU)]) == {}


def test_watch_on_a_processor_gives_the_time_alone():
    watch = KernelWatch("cpu")
    watch.start()
    torch.ones(8).sum()
    found = watch.stop()
    assert found.pop("profiled_seconds") > 0
    assert found == dict.fromkeys(("kernels", "copies", "launches", "busy_seconds"))


def test_growth_sees_memory_that_is_given_back_again():
    growth = Growth("cpu")
    torch.ones(2**24)  # 64 MiB
    found = growth.figures()
    if found["peak"] is None:
        pytest.skip("this system does not tell")
    assert found["growth"] > 2**25


def test_cuda_without_a_card_ends_with_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    require_device(ArgumentParser(), "cpu")
    with pytest.raises(SystemExit):
        require_device(ArgumentParser(), "cuda")
    assert "finds none; use --device cpu" in capsys.readouterr().err
