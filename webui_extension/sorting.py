"""The option "Sort by score": scores every picture of a job before it is saved, and puts the best first in gallery and grid."""

import logging
import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from modules import script_callbacks, shared
from PIL import Image

from ..errors import HyperSDError
from ..rewards.ranking import best_first, score_note
from . import host, scoring
from .settings_table import SCORE_KEY, UNSORTED

SORTING = "hyper_sd_sorting"  # the Sorting on the host's processing object
FAULTS = (HyperSDError, RuntimeError, MemoryError, OSError)  # after these the pictures are delivered as they came
LISTS = ("all_prompts", "all_negative_prompts", "all_seeds", "all_subseeds")  # of the host's result, one entry a picture
SCRIPT = "Hyper-SD: the pictures are scored, but stay in the order of the script that is chosen, which lays them out itself."
INCOMPLETE = "not every picture has a score, or another extension has changed their number; the console may say more."
_OPEN: "weakref.WeakSet[Sorting]" = weakref.WeakSet()  # whose grid has not been drawn; the host's callback does not say whose
_log = logging.getLogger("hyper_sd")


@dataclass(eq=False)
class Sorting:
    """One job.

    Args:
        scoring: gives the scores.
        is_reordered: whether the pictures are sorted, and not only scored.
        scores: of the pictures so far.
        notes: what their infotexts say of it, by number of the batch and number in it.
        each: pictures that the host delivers for one; it adds masks when it is set so.
        problem: why the job's pictures are not sorted, "" where they are.
    """

    scoring: scoring.Scoring
    is_reordered: bool = True
    scores: list[float] = field(default_factory=list)
    notes: dict[tuple[int, int], str] = field(default_factory=dict)
    each: int = 1
    problem: str = ""

    def note(self, p: Any = None, use_main_prompt: bool = False, **_: Any) -> str | None:
        """Returns what an infotext says of the score; the host asks while it writes one, and a grid has none."""
        place = getattr(p, "iteration", None), getattr(p, "batch_index", None)
        return None if use_main_prompt else self.notes.get(place)

    def fits(self, images: list[Any]) -> bool:
        """Whether these are all pictures of the job, and shall be sorted."""
        return self.is_reordered and not self.problem and 0 < len(self.scores) * self.each <= len(images)

    def sorted(self, values: list[Any], each: int = 1) -> list[Any]:
        """Returns a list with the entries of the best picture first; what comes behind those of all pictures stays there."""
        order = best_first(torch.tensor(self.scores))
        first = [value for i in order for value in values[i * each : (i + 1) * each]]
        return first + list(values[len(order) * each :])

    def fail(self, p: Any, reason: str) -> None:
        """Ends the scoring, says why, and lets the job go on."""
        self.problem = f"Hyper-SD: the pictures are not sorted. {reason}"
        _log.warning("%s", self.problem)
        host.warn(p, self.problem)


def begin(p: Any, scorer_id: str) -> None:
    """Prepares a job; files that are missing are told at once. Without a scorer it only forgets the job before."""
    setattr(p, SORTING, None)
    if scorer_id == UNSORTED:
        return
    job = Sorting(scoring.Scoring(scorer_id), is_reordered=not host.has_chosen_script(p))
    setattr(p, SORTING, job)
    if problem := scoring.problem_of(scorer_id):
        job.fail(p, problem)
        return
    if not job.is_reordered:
        p.comment(SCRIPT)
    p.extra_generation_params[SCORE_KEY] = job.note
    _OPEN.add(job)


def score(p: Any, picture: Image.Image) -> None:
    """Scores the picture that the host is about to save, for its infotext. Without a sorting job it does nothing."""
    job = getattr(p, SORTING, None)
    if job is None or job.problem:
        return
    number, notice = p.batch_index, job.scoring.notice
    prompt = p.prompts[min(number, len(p.prompts) - 1)]
    try:
        found = job.scoring.score(picture, host.words_of(prompt, p.steps))
        if number + 1 >= len(p.prompts):
            job.scoring.leave_card()
    except FAULTS as error:
        job.fail(p, f"{job.scoring.kind.title} could not score them. {error}")
        job.scoring.release()
        return
    if job.scoring.notice != notice:
        host.warn(p, job.scoring.notice)
    masks = shared.opts.return_mask + shared.opts.return_mask_composite
    job.each = 1 + (masks if getattr(p, "mask_for_overlay", None) is not None else 0)
    job.scores.append(found)
    job.notes[p.iteration, number] = score_note(found, job.scoring.kind.title)


def arrange(params: Any) -> None:
    """Sorts a grid's pictures; the host calls it before it draws one, when every picture of the job has its infotext."""
    job = next((job for job in _OPEN if job.scores and len(job.scores) * job.each == len(params.imgs)), None)
    if job is None:
        return
    _OPEN.discard(job)  # Reload may have registered this twice
    job.notes.clear()  # R asks for the grid's infotext as for the last picture's
    if job.fits(params.imgs):
        params.imgs = job.sorted(params.imgs, job.each)


def finish(p: Any, processed: Any) -> None:
    """Sorts the result of a job and releases the scorer. What went wrong stands in the API's answer, too."""
    job = getattr(p, SORTING, None)
    if job is None:
        return
    setattr(p, SORTING, None)
    _OPEN.discard(job)
    job.scoring.release()
    p.extra_generation_params.pop(SCORE_KEY, None)
    if job.is_reordered and not job.problem:
        _reorder(processed, job)
    if job.problem:
        p.extra_generation_params[host.PROBLEM] = job.problem


def _reorder(processed: Any, job: Sorting) -> None:
    first, count = processed.index_of_first_image, len(job.scores)
    images, texts = processed.images[first:], processed.infotexts[first:]
    if not images:
        return  # interrupted before the first
    if not job.fits(images) or len(texts) != count:
        job.problem = f"Hyper-SD: the pictures are not sorted: {INCOMPLETE}"
        processed.comments += f"{job.problem}\n"
        return
    processed.images = processed.images[:first] + job.sorted(images, job.each)
    processed.infotexts = processed.infotexts[:first] + job.sorted(texts)
    for name in LISTS:
        values = getattr(processed, name)
        if len(values) >= count:  # a shorter one was not one entry a picture before, either
            setattr(processed, name, job.sorted(values))
    processed.info = processed.infotexts[0]
    processed.seed, processed.subseed = processed.all_seeds[0], processed.all_subseeds[0]


def register() -> None:
    """Has grids sorted. Reload UI has forgotten earlier callbacks."""
    script_callbacks.on_image_grid(arrange)
