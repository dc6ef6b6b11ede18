"""What a person sees of a training while it runs: progress bar, text on the node, sheets of samples."""

import logging
import time
from collections.abc import Sequence

import comfy.model_management
import comfy.utils
from server import PromptServer

from ...training.lora_layers import LoraLayers
from ...training.phases import Job, Moment, Outcome, worded
from ...training.presets import Phase
from .previews import Previews

logger = logging.getLogger("hyper_sd")
TEXT_EVERY = 0.5  # seconds between two texts on the node
SMOOTHED = 20  # steps the loss in the text is the mean of
SHEET = 1024  # pixels of the preview on the node


class Said:
    """The text on a node, none where a program calls it that has no page to show it on."""

    def __init__(self, node_id: str | None):
        self.node_id, self.last = node_id, 0.0

    def text(self, text: str, now: bool = False) -> None:
        """Shows a text, at most every TEXT_EVERY seconds unless it has to be now; such a one is logged as well."""
        if now:
            logger.info(text)
        if not self.node_id or (not now and time.monotonic() - self.last < TEXT_EVERY):
            return
        self.last = time.monotonic()
        PromptServer.instance.send_progress_text(text, self.node_id)


class Watch:
    """Follows a run: progress bar, text, previews; ends it within one step when the host is told to stop."""

    def __init__(self, job: Job, previews: Previews, said: Said):
        self.job, self.previews, self.said = job, previews, said
        self.bar = comfy.utils.ProgressBar(job.total_steps)

    def __call__(self, moment: Moment) -> None:
        state, sheet = moment.state, None
        left = f"{int(state.eta_seconds) // 60}:{int(state.eta_seconds) % 60:02} left"
        self.said.text(
            f"{worded(moment.phase, state.stage)} {state.step} of {state.total_steps}, "
            f"loss {smoothed(moment.losses):.4g}, {state.rate:.3g} steps/s, {left}"
        )
        if self.previews.due(moment.done):
            sheet = self.previews.draw(moment.phase, moment.layers, state.stage, moment.done)
        self.bar.update_absolute(moment.done, self.job.total_steps, ("JPEG", sheet, SHEET) if sheet else None)
        comfy.model_management.throw_exception_if_processing_interrupted()


def last_sheet(job: Job, previews: Previews, phase: Phase, layers: LoraLayers) -> None:
    """Takes the sheet of a run that ended before, or draws it, and shows it."""
    previews.sheet = previews.finished() or previews.draw(phase, layers, phase.config.stages[-1], job.total_steps)
    bar = comfy.utils.ProgressBar(job.total_steps)
    bar.update_absolute(job.total_steps, preview=("JPEG", previews.sheet, SHEET) if previews.sheet else None)


def summary(job: Job, outcome: Outcome) -> str:
    """Returns the text that stays on the node."""
    return f"{job.total_steps} steps, loss {smoothed(outcome.losses):.4g}, rank {outcome.rank}, kept in {job.folder}"


def smoothed(losses: Sequence[float]) -> float:
    """Returns the mean of the last losses."""
    recent = losses[-SMOOTHED:]
    return sum(recent) / max(len(recent), 1)
