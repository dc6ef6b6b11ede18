"""What the tests of the command line share."""

import logging

import pytest
from hyper_sd.training.launch import step_log


@pytest.fixture
def one_process(monkeypatch):
    """accelerate keeps its state for the process; every run starts anew, on the CPU, and logs every step."""
    accelerate = pytest.importorskip("accelerate")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(step_log, "LOG_SECONDS", 0.0)
    logger = logging.getLogger("hyper_sd")
    before = logger.level
    yield
    logger.setLevel(before)
    accelerate.state.AcceleratorState._reset_state(True)
