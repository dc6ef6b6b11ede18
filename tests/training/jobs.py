"""Trainings of one or two phases on the tiny network, as the node and the command line start them."""

import torch
from hyper_sd.tests.training.fakes import make_denoiser, make_examples
from hyper_sd.training.engine import LocalEngine
from hyper_sd.training.job import Trainee
from hyper_sd.training.phases import run_job
from hyper_sd.training.presets import TrainRequest
from hyper_sd.training.request import StartingLora, job_of, phases_of

FINGERPRINTS = {"model": "m", "data": "d", "start": "none"}
QUICK = {"steps": 10, "rank": 2, "learning_rate": 1e-2, "batch_size": 4, "stages": "2-1", "seed": 3}
STYLE_STEPS = 4  # of the ten of "style, then distil"


def make_request(**settings) -> TrainRequest:
    return TrainRequest(**QUICK | settings)


def make_trainee(family: str = "sd15", is_embedded: bool = False) -> Trainee:
    return Trainee(make_denoiser(dtype=torch.float32), LocalEngine(), family, is_embedded, "fp32", str)


def make_job(root, *, start=None, trainee=None, examples=None, fingerprints=FINGERPRINTS, judge=None, **settings):
    """Returns the job of a request with these settings."""
    request, start = make_request(**settings), start or StartingLora({})
    trainee, examples = trainee or make_trainee(), examples or make_examples(10, torch.float32)
    planned = phases_of(request, trainee, examples, start)
    return job_of(request, trainee, examples, planned, start, root=root, fingerprints=fingerprints, judge=judge)


class Follower:
    """Runs a job and keeps what it reports.

    Args:
        stop_at: number of steps, of all phases, after which the training is told to stop; None never.
        raises_at: number of steps after which on_step raises `error`.
    """

    def __init__(self, stop_at=None, raises_at=None, error=None):
        self.stop_at, self.raises_at, self.error = stop_at, raises_at, error
        self.reports, self.ends = [], []

    def on_step(self, report) -> None:
        self.reports.append(report)
        if report.steps_done == self.raises_at:
            raise self.error

    def at_end(self, phase, layers) -> None:
        self.ends.append((phase.title, sorted(layers.sets)))

    def stop(self) -> bool:
        return self.stop_at == 0 or any(report.steps_done == self.stop_at for report in self.reports)

    def run(self, job):
        """Returns the job's outcome."""
        return run_job(job, self.on_step, self.at_end, self.stop)
