"""`accelerate launch -m hyper_sd.training.launch run.toml`: trains LoRAs for a diffusers model, on one device or many machines.

Starting it again goes on where it stopped; example.toml beside this file explains every setting.
"""

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import HyperSDError, TrainingError
from ..export import save_lora
from ..loop import CHECKPOINT, TrainingState, train
from ..lora_layers import STUDENT, LoraLayers
from ..objectives.discriminator import encoder_stages
from .run_file import RunFile, read_run_file

if TYPE_CHECKING:
    from .accelerate_engine import AccelerateEngine
    from .diffusers_models import DiffusersModel

logger = logging.getLogger("hyper_sd")

LOG_SECONDS = 10.0
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
        """Meanwhile signals come here; the handlers from before are put back."""
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
    """Loads, encodes and trains; returns the exit code. Raises: HyperSDError for whatever stands in the way."""
    try:
        from .accelerate_engine import AccelerateEngine
        from .diffusers_models import load_model
        from .examples import make_examples
    except ImportError as error:
        raise TrainingError(f"Training needs more packages ({error}); install them: pip install hyper-sd[train]") from error
    request = StopRequest()
    engine = AccelerateEngine(file.training.precision, request)
    file.training.part_size(engine.world)  # what cannot work is said before hours of encoding
    one_downloads = engine.accelerator.local_main_process_first() if file.model.hub_id else nullcontext()
    with one_downloads:
        model = load_model(file.model.folder or file.model.hub_id, file.dtype, local=bool(file.model.folder))
    logger.info("%s, %s, %d process(es) on %s", model.family.name, file.dtype, engine.world, engine.device)
    if file.training.is_adversarial:
        encoder_stages(model.network)
    examples = make_examples(file, model, engine)
    checkpoint = file.output.checkpoint_folder / CHECKPOINT
    if not engine.agree(checkpoint.stat().st_size if checkpoint.exists() else 0):
        raise TrainingError(f"Not every machine sees the same {checkpoint}; choose an output.folder that all of them share.")
    layers = LoraLayers(model.network, file.training.rank, file.training.lora_alpha, model.family.excluded)
    try:
        with request.listening():
            steps = train(
                file.training, model.denoiser, layers, examples,
                folder=file.output.checkpoint_folder, engine=engine, stop=lambda: engine.stopping,
            )  # fmt: skip
            with closing(steps):
                last = _follow(steps, file, layers, model, engine)
            engine.wait()  # the main process may still be writing
    finally:
        layers.detach()
    engine.finish()
    if engine.stopping and last is not None and last.step < last.total_steps:
        logger.info("Stopped after step %d of %d; the same command goes on from there.", last.step, last.total_steps)
        return STOPPED
    logger.info(
        "Finished: the LoRAs are in %s", file.output.folder if last else f"{file.output.folder}, nothing was left to do"
    )
    return 0


def _follow(
    steps: Iterator[TrainingState], file: RunFile, layers: LoraLayers, model: "DiffusersModel", engine: "AccelerateEngine"
) -> TrainingState | None:
    """Runs through the training; the main process logs, and writes each stage's LoRA as the stage ends."""
    logged, state = -LOG_SECONDS, None
    for state in steps:
        if engine.rank:
            continue
        if state.stage_finished:
            _export(state, file, layers, model)
        if state.stage_finished or time.monotonic() - logged > LOG_SECONDS:
            logged = time.monotonic()
            losses = ", ".join(f"{name} {value:.4g}" for name, value in state.losses.items())
            left = timedelta(seconds=round(state.eta_seconds))
            logger.info("step %d/%d: %s; %.3g steps/s, %s left", state.step, state.total_steps, losses, state.rate, left)
    return state


def _export(state: TrainingState, file: RunFile, layers: LoraLayers, model: "DiffusersModel") -> None:
    segments = None if file.training.objective == "finetune" else state.stage.num_segments
    path = file.output.lora_path(segments)
    described = {"title": path.stem, "base_model": model.family.name, "trained_steps": str(state.step)}
    described |= {} if segments is None else {"num_segments": str(segments)}
    save_lora(path, layers, STUDENT, metadata=described, transformer=model.family.network == "transformer")
    logger.info("wrote %s", path)


if __name__ == "__main__":
    sys.exit(main())
