"""What a person sees of a training while it runs: progress bar, text on the node, sheets of samples."""

import logging
import time

import comfy.model_management
import comfy.utils

from ...training.losses import smoothed
from ...training.phases import Job, Outcome, StepReport, stage_in_words
from ...training.preview import Previews
from ..schema import show_text

logger = logging.getLogger("hyper_sd")
TEXT_EVERY = 0.5  # seconds between two texts on the node
SHEET = 1024  # pixels of the preview on the node


class NodeText:
    """The text on a node, none where a program calls it that has no page to show it on."""

    def __init__(self, node_id: str | None):
        self.node_id, self.last = node_id, 0.0

    def show(self, text: str, now: bool = False) -> None:
        """Shows a text, at most every TEXT_EVERY seconds unless it has to be now; such a one is logged as well."""
        if now:
            logger.info(text)
        if not now and time.monotonic() - self.last < TEXT_EVERY:
            return
        self.last = time.monotonic()
        show_text(text, self.node_id)


class Watch:
    """Follows a training: progress bar, text, previews; ends it within one step when the host is told to stop."""

    def __init__(self, job: Job, previews: Previews, node_text: NodeText):
        self.job, self.previews, self.node_text = job, previews, node_text
        self.bar = comfy.utils.ProgressBar(job.total_steps)

    def __call__(self, report: StepReport) -> None:
        state, sheet = report.state, None
        left = f"{int(state.eta_seconds) // 60}:{int(state.eta_seconds) % 60:02} left"
        self.node_text.show(
            f"{stage_in_words(report.phase, state.stage)} {state.step} of {state.total_steps}, "
            f"loss {smoothed(report.losses):.4g}, {state.rate:.3g} steps/s, {left}"
        )
        if self.previews.due(report.steps_done):
            sheet = self.previews.draw_sheet(report.phase, report.layers, state.stage, report.steps_done)
        self.bar.update_absolute(report.steps_done, self.job.total_steps, ("JPEG", sheet, SHEET) if sheet else None)
        comfy.model_management.throw_exception_if_processing_interrupted()


def show_last_sheet(job: Job, previews: Previews) -> None:
    """Shows the sheet at a training's end on the node."""
    bar = comfy.utils.ProgressBar(job.total_steps)
    bar.update_absolute(job.total_steps, preview=("JPEG", previews.sheet, SHEET) if previews.sheet else None)


def summary(job: Job, outcome: Outcome) -> str:
    """Returns the text that stays on the node."""
    return f"{job.total_steps} steps, loss {smoothed(outcome.losses):.4g}, rank {outcome.rank}, kept in {job.folder}"
