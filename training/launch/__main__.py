"""`accelerate launch -m hyper_sd.training.launch run.toml`: trains LoRAs for a diffusers model, on one device or many machines.

On one device `python -m hyper_sd.training.launch run.toml` does the same without accelerate, on a card with CUDA graphs.
Starting it again goes on where it stopped; example.toml beside this file explains every setting.
"""

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from ...errors import HyperSDError, TrainingError
from .run_file import RunFile, read_run_file

logger = logging.getLogger("hyper_sd")

SAME_REQUEST_SECONDS = 2.0  # launchers and batch systems forward a signal that the process got already
FAILED, STOPPED = 1, 130


class StopRequest:
    """Turns SIGINT and SIGTERM into a question the loop asks; a second one ends the process at once."""

    def __init__(self) -> None:
        self.first: float | None = None

    def __call__(self) -> bool:
        return self.first is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Returns a context in which signals come here; the handlers from before are put back at its end."""
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = now
            logger.warning("Stopping after this step; a second signal ends at once, and loses the steps since the last save.")
        elif now - self.first > SAME_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the file that the command line names; returns 0 when it is finished, 1 for an error, 130 when it was stopped."""
    parser = argparse.ArgumentParser(prog="accelerate launch -m hyper_sd.training.launch", description=__doc__)
    parser.add_argument("file", type=Path, help="the run's TOML file, for example training/launch/example.toml")
    path = parser.parse_args(arguments).file
    rank = int(os.environ.get("RANK", "0"))  # set by the launcher, before accelerate knows of the others
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logger.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    try:
        return run(read_run_file(path))
    except HyperSDError as error:
        logger.error("%s%s", f"Process {rank}: " if rank else "", error)  # each: the launcher ends all at the first to fail
        return FAILED
    except KeyboardInterrupt:
        return STOPPED


def run(file: RunFile) -> int:
    """Loads, encodes and trains, and returns the exit code.

    Raises: HyperSDError for whatever stands in the way.
    """
    try:
        from . import by_preset, by_stages
        from .diffusers_models import load_model
        from .embedded_model import load_embedded_model
        from .examples import make_examples
        from .one_process import OneProcess, runs_alone

        if runs_alone():
            make_engine = OneProcess
        else:
            from .accelerate_engine import AccelerateEngine as make_engine
    except ImportError as error:
        raise TrainingError(f"Training needs more packages ({error}); install them: pip install hyper-sd[train]") from error
    request, way = StopRequest(), by_preset if file.is_by_preset else by_stages
    file = file.on(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    engine = make_engine(file.precision, request)
    with engine.first_here() if file.model.hub_id else nullcontext():  # one process downloads
        if file.model.embedded:
            model = load_embedded_model(file.dtype)
        else:
            model = load_model(file.model.folder or file.model.hub_id, file.dtype, local=bool(file.model.folder))
    logger.info("%s, %s, %d process(es) on %s", model.name, file.dtype, engine.world, engine.device)
    way.check(file.training, model, engine)
    examples = make_examples(file, model, engine)
    with request.listening():
        is_finished = way.train(file, model, examples, engine)
        engine.wait()  # the main process may still be writing
    engine.finish()
    return 0 if is_finished else STOPPED


if __name__ == "__main__":
    sys.exit(main())
