"""Scores of the pictures of a plan, kept by picture: a second run scores only what is new."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ..disk import write_whole
from ..errors import EvaluationError, RewardError
from ..models.embedded import SCORERS as EMBEDDED_FILE
from ..models.embedded import TOKENIZER
from ..rewards import embedded
from ..rewards.aesthetic import CLIP
from ..rewards.scorer import score_all
from ..rewards.table import SCORERS, find_files, load, require_files, scorer_kind
from .features import Features, clip_features, embedded_features
from .plan import Job, Plan
from .prompts import all_labels

SCORES, FEATURES, FORMAT = "scores.json", "features", "hyper-sd scores 1"
BATCH = 8
EMBEDDED = ("embedded_match", "embedded_quality")
Report = Callable[[str, int, int], None]  # what is measured, pictures done, pictures in all


@dataclass
class Scores:
    """What was measured of the pictures of a plan.

    Args:
        by_metric: score of each picture, {metric: {key of the picture: score}}.
        features: of each picture by its key, unit vectors.
        seen_by: what the features are made by, for people.
        knows: whether what makes the features knows pictures like these.
        right: whether the demo model's picture shows its own label best of all labels, by key; empty for other models.
    """

    by_metric: dict[str, dict[str, float]] = field(default_factory=dict)
    features: dict[str, torch.Tensor] = field(default_factory=dict)
    seen_by: str = ""
    knows: bool = True
    right: dict[str, float] = field(default_factory=dict)


def choose_metrics(wanted: Sequence[str], is_embedded: bool, folders: Sequence[Path]) -> tuple[list[str], list[str]]:
    """Returns the scores that are measured, and for each that is left out a sentence that says why and how it is had.

    Args:
        wanted: by their ids; none takes all that fit the model and whose files are there.
        is_embedded: whether the demo model draws, for whose pictures two scores come with the pack.
        folders: where the scorers' files lie.
    Raises: RewardError for a wanted score that does not exist or lacks its files.
    """
    if wanted:
        for metric in wanted:
            require_files(metric, folders)
        return list(dict.fromkeys(wanted)), []
    chosen, left_out = list(EMBEDDED if is_embedded else ()), []
    for metric, kind in SCORERS.items():
        if metric in EMBEDDED or (is_embedded and not kind.own):
            continue
        try:
            require_files(metric, folders)
            chosen.append(metric)
        except RewardError as error:
            left_out += [] if kind.own else [str(error)]  # nobody has to have a taste of their own
    return chosen, left_out


def measure(
    plan: Plan,
    out: Path,
    metrics: Sequence[str],
    folders: Sequence[Path],
    device: torch.device | str = "cpu",
    report: Report | None = None,
) -> Scores:
    """Returns the scores and features of all pictures of a plan, which have to be there.

    Args:
        plan: what was drawn.
        out: the folder of results.
        metrics: ids of rewards.table.
        folders: where the scorers' files lie.
        device: that does the work.
        report: called before the first batch and after each.
    Raises: RewardError for a scorer that cannot be loaded; EvaluationError where a picture cannot be read.
    """
    report = report or (lambda *_: None)
    scores = Scores()
    for metric in metrics:
        kept = _Kept(out / SCORES, metric, _stamp(metric, folders))
        left = [job for job in plan.jobs() if plan.key(job) not in kept.values]
        if left:
            scorer, title = load(metric, folders, device), scorer_kind(metric).title
            for jobs, pictures in _batches(left, out, title, report):
                found = score_all(scorer, pictures, [job.prompt for job in jobs], BATCH)
                kept.add({plan.key(job): value for job, value in zip(jobs, found.tolist(), strict=True)})
            kept.write()
        scores.by_metric[metric] = {plan.key(job): kept.values[plan.key(job)] for job in plan.jobs()}
    seeing = features_for(plan, folders)
    scores.features, scores.seen_by = _features(plan, out, seeing, device, report), seeing.title
    scores.knows = plan.model.is_embedded or seeing.id != "embedded"
    scores.right = _right(plan, scores.features) if plan.model.is_embedded else {}
    return scores


def features_for(plan: Plan, folders: Sequence[Path]) -> Features:
    """Returns what makes features of a plan's pictures: CLIP ViT-L/14 where its file is there, else the demo model's scorer.

    The demo model's pictures are always seen by its own scorer.
    """
    paths, problems = find_files([CLIP], folders)
    return embedded_features() if plan.model.is_embedded or problems else clip_features(paths)


def _batches(jobs: Sequence[Job], out: Path, title: str, report: Report) -> Iterator[tuple[list[Job], torch.Tensor]]:
    """Yields pictures [batch, 3, height, width] from 0 to 1 with their jobs; all of a batch have one size."""
    report(title, 0, len(jobs))
    for first in range(0, len(jobs), BATCH):
        part = list(jobs[first : first + BATCH])
        yield part, torch.stack([read_picture(job.path(out)) for job in part])
        report(title, first + len(part), len(jobs))


def read_picture(path: Path) -> torch.Tensor:
    """Returns a picture [3, height, width] from 0 to 1.

    Raises: EvaluationError where it cannot be read.
    """
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise EvaluationError(
            f"The picture {path} cannot be read ({error}); delete it, and the same command draws it."
        ) from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float().div(255)


class _Kept:
    """The scores of one metric in a file that several share; those of another version of the scorer's files do not count."""

    EVERY = 64  # pictures after which they are written, so that a stop costs little

    def __init__(self, path: Path, metric: str, stamp: str):
        self.path, self.metric, self.stamp, self.new = path, metric, stamp, 0
        entry = self._read().get(metric, {})
        self.values: dict[str, float] = entry.get("values", {}) if entry.get("files") == stamp else {}

    def _read(self) -> dict:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            return content["metrics"] if content.get("format") == FORMAT else {}
        except (OSError, ValueError, KeyError, AttributeError):  # not there, or damaged: all is measured again
            return {}

    def add(self, values: Mapping[str, float]) -> None:
        """Adds scores by the pictures' keys."""
        self.values |= values
        self.new += len(values)
        if self.new >= self.EVERY:
            self.write()

    def write(self) -> None:
        """Writes them beside those of the other metrics."""
        metrics = self._read() | {self.metric: {"files": self.stamp, "values": self.values}}
        write_whole(self.path, json.dumps({"format": FORMAT, "metrics": metrics}).encode())
        self.new = 0


def _stamp(metric: str, folders: Sequence[Path]) -> str:
    paths = list(require_files(metric, folders).values()) or [EMBEDDED_FILE]
    return " ".join(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in sorted(paths))


def _features(plan: Plan, out: Path, seeing: Features, device: torch.device | str, report: Report) -> dict[str, torch.Tensor]:
    """Returns the features of every picture by its key; an arm's are kept in a file."""
    network, found = None, {}
    for arm in plan.arms:
        path = out / FEATURES / f"{arm.slug}-{seeing.id}.safetensors"
        kept, jobs = _load(path), plan.jobs_of(arm)
        left = [job for job in jobs if plan.key(job) not in kept]
        if left:
            network = network or seeing.load(device)
            for part, pictures in _batches(left, out, f"features of {arm.label}", report):
                with torch.no_grad():
                    seen = network(pictures.to(device)).cpu()
                kept |= {plan.key(job): row.clone() for job, row in zip(part, seen, strict=True)}
            write_whole(path, save(kept))
        found |= {plan.key(job): kept[plan.key(job)] for job in jobs}
    return found


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError):  # not there, or damaged: all is looked at again
        return {}


@torch.no_grad()
def _right(plan: Plan, features: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Returns by picture 1.0 where of all labels its own is the nearest, else 0.0; nothing where a prompt is no label."""
    labels = all_labels()
    if not set(plan.prompts) <= set(labels):
        return {}
    words = embedded.load_match(EMBEDDED_FILE, TOKENIZER).words(labels)
    jobs = list(plan.jobs())
    nearest = (torch.stack([features[plan.key(job)] for job in jobs]) @ words.T).argmax(1).tolist()
    return {plan.key(job): float(labels[place] == job.prompt) for job, place in zip(jobs, nearest, strict=True)}
