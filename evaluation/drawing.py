"""Draws the pictures of a plan to the disk, each once: what is there already is kept, and a run that was stopped goes on."""

import io
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..disk import explain, write_whole
from ..errors import EvaluationError
from .plan import PLAN, Job, Plan

NOTE = "hyper-sd evaluation"  # the text in a picture's file that says what it was drawn by
AROUND = 4  # calls of the network that take about as long as all else of a picture: its prompt, its decoding, its file
Paint = Callable[[list[Job]], list[Image.Image]]  # pictures of one arm


@dataclass(frozen=True)
class Drawn:
    """What a picture's file says of it.

    Args:
        key: as Plan.key.
        seconds: that it took, the loading of the model left out; of pictures drawn together each has its share.
        first: whether a program drew nothing else of its arm before, so that loading a LoRA may be in its seconds.
        together: how many were drawn at a time.
    """

    key: str
    seconds: float
    first: bool
    together: int = 1


@dataclass(frozen=True)
class Progress:
    """How far a process is with its share.

    Args:
        done: pictures that it has drawn.
        total: pictures that it had to draw.
        seconds_left: by what the network's calls took so far, None before the first.
        job: the one that was drawn last, None before the first.
    """

    done: int
    total: int
    seconds_left: float | None = None
    job: Job | None = None


def read_drawn(path: Path) -> Drawn | None:
    """Returns what a picture's file says of it, None for one that is not there, is damaged or was not drawn here."""
    try:
        with Image.open(path) as image:
            return Drawn(**json.loads(image.text[NOTE]))
    except (OSError, KeyError, TypeError, ValueError, AttributeError, SyntaxError):
        return None


def missing(plan: Plan, out: Path, again: bool = False) -> list[Job]:
    """Returns what is still to be drawn.

    Args:
        plan: what is wanted.
        out: the folder of results.
        again: whether pictures that were drawn otherwise are drawn anew.
    Raises: EvaluationError where such pictures are there, and `again` is not set.
    """
    left, other = [], []
    for job in plan.jobs():
        path = job.path(out)
        if not path.exists():
            left.append(job)
        elif (found := read_drawn(path)) is None or found.key != plan.key(job):
            other.append(job)
    if other and not again:
        raise EvaluationError(
            f"{len(other)} pictures in {out} were drawn with another model, LoRA, prompt or setting, such as "
            f"{other[0].path(out).relative_to(out)}. Nothing was changed: keep them and give another folder with --out, or "
            "draw these anew with --again."
        )
    return [job for job in plan.jobs() if job in set(left + other)] if other else left


def prepare(plan: Plan, out: Path) -> None:
    """Writes the plan into the folder of results, with which it begins.

    Raises: EvaluationError where the folder cannot be written.
    """
    try:
        write_whole(out / PLAN, json.dumps(plan.as_plain(), indent=1, ensure_ascii=False).encode())
    except OSError as error:
        raise EvaluationError(f"The results cannot be kept: {explain(error, out)}.") from error


def draw(plan: Plan, out: Path, jobs: Iterable[Job], paint: Paint, together: int = 1) -> Iterator[Progress]:
    """Draws pictures and keeps each as soon as it is drawn; yields before the first and whenever some are drawn.

    Args:
        plan: that they belong to.
        out: the folder of results.
        jobs: this process' share of what missing() has returned.
        paint: draws some.
        together: how many of one arm are drawn at a time.
    Raises: EvaluationError where a picture cannot be kept; those that are kept stay.
    """
    jobs = list(jobs)
    yield Progress(0, len(jobs))
    cost, spent, seen, done = sum(job.arm.cost + AROUND for job in jobs), 0, set(), 0
    started = time.monotonic()
    for part in _parts(jobs, together):
        before = time.perf_counter()
        images = paint(part)
        seconds = (time.perf_counter() - before) / len(part)
        for job, image in zip(part, images, strict=True):
            drawn = Drawn(plan.key(job), seconds, job.arm.slug not in seen, len(part))
            try:
                keep(job, image, drawn, out)
            except OSError as error:
                reason = explain(error, out)
                kept = f"The same command goes on with the {done} pictures that are kept."
                raise EvaluationError(f"A picture was not kept: {reason}. {kept}") from error
            done, spent = done + 1, spent + job.arm.cost + AROUND
        seen.add(part[0].arm.slug)
        yield Progress(done, len(jobs), (time.monotonic() - started) / spent * (cost - spent), part[-1])


def _parts(jobs: list[Job], together: int) -> Iterator[list[Job]]:
    """Yields neighbours of one arm, at most so many at a time."""
    for _, same in groupby(jobs, key=lambda job: job.arm.slug):
        own = list(same)
        yield from (own[first : first + together] for first in range(0, len(own), together))


def keep(job: Job, image: Image.Image, drawn: Drawn, out: Path) -> None:
    """Writes a picture, and its prompt beside it.

    Raises: OSError of the system.
    """
    note, content = PngInfo(), io.BytesIO()
    note.add_text(NOTE, json.dumps(vars(drawn)))
    image.convert("RGB").save(content, "PNG", pnginfo=note)
    path = job.path(out)
    write_whole(path.with_suffix(".txt"), job.prompt.encode())
    write_whole(path, content.getvalue())


def seconds_of(plan: Plan, out: Path) -> dict[str, list[tuple[Job, float]]]:
    """Returns the seconds of the pictures of every arm by its slug, without the first ones where there are others."""
    found = {}
    for arm in plan.arms:
        told = [(job, drawn) for job in plan.jobs_of(arm) if (drawn := read_drawn(job.path(out)))]
        later = [(job, drawn.seconds) for job, drawn in told if not drawn.first]
        found[arm.slug] = later or [(job, drawn.seconds) for job, drawn in told]
    return found
