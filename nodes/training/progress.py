"""What a person sees of a training while it runs: a progress bar, a text on the node, and sheets of samples."""

import logging
import time

import comfy.model_management
import comfy.utils

from ...models.progress import format_duration
from ...training.job import Job
from ...training.losses import smoothed
from ...training.phases import Outcome, StepReport, stage_in_words
from ...training.preview import Previews
from ..schema import show_text

logger = logging.getLogger("hyper_sd")
TEXT_EVERY = 0.5  # seconds between two texts on the node
SHEET = 1024  # pixels of the preview on the node


class NodeText:
    """The text on a node; where a program without a page calls the node, it is not shown."""

    def __init__(self, node_id: str | None):
        self.node_id, self.last = node_id, 0.0

    def show(self, text: str, now: bool = False) -> None:
        """Shows a text, at most one in TEXT_EVERY seconds; with `now` it is shown in any case, and logged as well."""
        if now:
            logger.info(text)
        if not now and time.monotonic() - self.last < TEXT_EVERY:
            return
        self.last = time.monotonic()
        show_text(text, self.node_id)


class Watch:
    """Shows how a training goes after each step, and ends it when the host is told to stop."""

    def __init__(self, job: Job, previews: Previews, node_text: NodeText):
        self.job, self.previews, self.node_text = job, previews, node_text
        self.bar = comfy.utils.ProgressBar(job.total_steps)

    def __call__(self, report: StepReport) -> None:
        state, sheet = report.state, None
        self.node_text.show(
            f"{stage_in_words(report.phase, state.stage)} {state.step} of {state.total_steps}, "
            f"loss {smoothed(report.losses):.4g}, {state.rate:.3g} steps/s, {format_duration(state.eta_seconds)} left"
        )
        if self.previews.due(report.steps_done):
            sheet = self.previews.draw_sheet(report.phase, report.layers, state.stage, report.steps_done)
        self.bar.update_absolute(report.steps_done, self.job.total_steps, ("JPEG", sheet, SHEET) if sheet else None)
        comfy.model_management.throw_exception_if_processing_interrupted()


def show_last_sheet(job: Job, previews: Previews) -> None:
    """Shows the last sheet of a training on the node."""
    bar = comfy.utils.ProgressBar(job.total_steps)
    bar.update_absolute(job.total_steps, preview=("JPEG", previews.sheet, SHEET) if previews.sheet else None)


def summary(job: Job, outcome: Outcome) -> str:
    """Returns the text that stays on the node."""
    stages = sum(len(phase.config.stages) for phase in job.phases if phase.config.objective == "tscd")
    kept = f"kept in {job.folder}" + (", with the LoRA of each stage" if stages > 1 else "")
    return f"{job.total_steps} steps, loss {smoothed(outcome.losses):.4g}, rank {outcome.rank}, {kept}"
