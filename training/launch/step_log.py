"""How a training goes, as lines of a log every few seconds."""

import logging
import time

from ...models.progress import format_duration
from ..loop import TrainingState

logger = logging.getLogger("hyper_sd")
LOG_SECONDS = 10.0


class StepLog:
    """Writes a line for the first step, and then every LOG_SECONDS."""

    def __init__(self) -> None:
        self._latest = -LOG_SECONDS

    def write(self, state: TrainingState, what: str = "", now: bool = False) -> None:
        """Writes a line about a step, when it is time for one.

        Args:
            state: after the step.
            what: the words that the line begins with, "" for none.
            now: whether to write it in any case.
        """
        if not now and time.monotonic() - self._latest < LOG_SECONDS:
            return
        self._latest = time.monotonic()
        losses = ", ".join(f"{name} {value:.4g}" for name, value in state.losses.items())
        left = format_duration(state.eta_seconds)
        step = f"{what} step" if what else "step"
        logger.info("%s %d/%d: %s; %.3g steps/s, %s left", step, state.step, state.total_steps, losses, state.rate, left)
