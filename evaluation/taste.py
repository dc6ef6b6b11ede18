"""A person's taste, learnt from votes: from pictures and files of votes to a scorer, and what it is worth."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..disk import explain
from ..errors import EvaluationError
from ..rewards.personal import FILE, FLOOR, About, save_taste
from ..rewards.sights import CLIP_L, EMBEDDED, features_of, load_sight, network_of
from ..rewards.table import find_files, require_entries
from ..rewards.taste_head import FOLDS, Head, learn_head
from .comparison import Comparison, Picture
from .intervals import Share, wilson
from .page import read_plain
from .vote_file import Ballot
from .vote_report import fullest
from .votes import preferences, self_agreement

AUTO = "auto"
CHOICES = (AUTO, CLIP_L, EMBEDDED)
MOST = 10_000  # votes up to which an estimate is worth telling
ROUND = 10  # votes to which an estimate is rounded up
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Taste:
    """What was learnt, and what it is worth.

    Args:
        head: on the features that `about` names.
        about: what its file says of itself.
        accuracy: votes that heads like it foresee without having seen their pictures. Its total counts different pairs, which
            are fewer than the votes where several people saw one pair.
        agreement: answers that the voters repeated when they were shown a pair again, ties left out.
        seen: pictures that were looked at.
    """

    head: Head
    about: About
    accuracy: Share
    agreement: Share
    seen: int


def choose_features(wanted: str, folders: Sequence[Path]) -> str:
    """Returns the features to learn on: those that are named, or for "auto" CLIP's where its file is there, else the embedded.

    Args:
        wanted: one of CHOICES.
        folders: where the scorers' files lie.
    Raises: RewardError for an unknown name.
    """
    if wanted != AUTO:
        features_of(wanted)
        return wanted
    return EMBEDDED if find_files(features_of(CLIP_L).files, folders)[1] else CLIP_L


def learn_taste(
    comparison: Comparison,
    ballots: Sequence[Ballot],
    features: str,
    folders: Sequence[Path] = (),
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Taste:
    """Learns from votes which of two pictures is liked better.

    Args:
        comparison: what was voted on; its pictures have to be there.
        ballots: the votes of one person, or of several who shall be learnt together; a person who saved several
            times counts once.
        features: a key of rewards.sights.FEATURES.
        folders: where the scorers' files lie.
        device: that looks at the pictures.
        progress: is called with the pictures that are looked at, and their number.
    Raises: EvaluationError for pictures that cannot be read; RewardError for too few votes, and for files of the features that
        are missing or damaged.
    """
    ballots = fullest(ballots)
    decisions = preferences(comparison, ballots)
    kind = features_of(features)
    paths = require_entries(kind.files, folders, f"Learning a taste on {kind.title}")
    pictures = list(dict.fromkeys(picture for winner, loser, _ in decisions for picture in (winner, loser)))
    found = features_of_pictures(pictures, load_sight(features, paths, device), device, progress)
    winners, losers = (torch.stack([found[decision[side]] for decision in decisions] or [torch.empty(0)]) for side in (0, 1))
    learnt = learn_head(winners, losers, groups_of([winner for winner, _, _ in decisions]))
    pairs = len({frozenset((winner.path, loser.path)) for winner, loser, _ in decisions})
    accuracy = Share(pairs * sum(learnt.right) / len(learnt.right), pairs)
    agreements = [self_agreement(comparison, ballot, decided=True) for ballot in ballots]
    agreement = Share(sum(one.count for one in agreements), sum(one.total for one in agreements))
    about = About(
        features, network_of(features, paths), len(decisions), accuracy.value, *accuracy.interval,
        agreement.value if agreement.total else -1.0, missing_votes(accuracy),
    )  # fmt: skip
    return Taste(learnt.head, about, accuracy, agreement, len(pictures))


def groups_of(pictures: Sequence[Picture]) -> list[str]:
    """Returns what is held out together: votes of one prompt, or of one name where there are too few prompts to hold any out.

    Args: pictures: one of each vote.
    """
    prompts = [picture.prompt or picture.name for picture in pictures]
    return prompts if len(set(prompts)) >= FOLDS else [picture.name for picture in pictures]


@torch.no_grad()
def features_of_pictures(
    pictures: Sequence[Picture], sight: torch.nn.Module, device: torch.device | str, progress: Progress | None = None
) -> Mapping[Picture, torch.Tensor]:
    """Returns the features of pictures, float32 [width] on the processor each.

    Args:
        pictures: whose files are read.
        sight: as rewards.sights.load_sight() gives it.
        device: where it is.
        progress: as in learn_taste.
    Raises: EvaluationError for a picture that is missing or damaged.
    """
    found = {}
    for picture in pictures:
        found[picture] = sight(_pixels(picture.path).to(device))[0].cpu()
        if progress:
            progress(len(found), len(pictures))
    return found


def _pixels(path: Path) -> torch.Tensor:
    """Returns a picture [1, 3, height, width] from 0 to 1, as the page of a comparison shows it."""
    try:
        flat = read_plain(path)
    except EvaluationError as error:
        raise EvaluationError(
            f"The picture {path} cannot be read ({error.__cause__}). A taste is learnt from the pictures that were voted on: "
            "put it back."
        ) from error
    return torch.from_numpy(np.array(flat)).movedim(-1, 0)[None].float() / 255


def missing_votes(accuracy: Share) -> int:
    """Returns how many more votes a taste needs until it may be used as a reward if it goes on foreseeing as many.

    Args:
        accuracy: so far.
    Returns: 0 where it may be used already; -1 where no number can be told.
    """
    enough = next((n for n in range(accuracy.total, MOST) if wilson(accuracy.value * n, n).low > FLOOR), None)
    return -1 if enough is None else math.ceil((enough - accuracy.total) / ROUND) * ROUND


def foreseeable(agreement: float) -> float:
    """Returns the largest share of a person's votes that anything can foresee.

    A person who gives the usual answer with probability p gives the same answer twice in p^2 + (1 - p)^2 of the cases.

    Args: agreement: the share of answers that the person repeats.
    """
    return (1 + max(2 * agreement - 1, 0) ** 0.5) / 2


def report(taste: Taste) -> str:
    """Returns what a taste is worth, in plain sentences, one a line."""
    about, agreement = taste.about, taste.agreement
    lines = [
        f"Learnt from {about.votes} votes on {taste.accuracy.total} pairs, on {features_of(about.features).title}.",
        f"It foresees {about.accuracy:.0%} of votes on pictures that it has not seen ({about.low:.0%} to {about.high:.0%}; "
        "chance is 50%).",
    ]
    if agreement.total:
        low, high = agreement.interval
        lines.append(
            f"Shown a pair again, the same answer came in {agreement.value:.0%} of {agreement.total} cases ({low:.0%} to "
            f"{high:.0%}). No scorer can foresee more than about {foreseeable(high):.0%} of such votes."
        )
    else:
        lines.append("No pair was answered twice, so how many votes can be foreseen at all is not known.")
    if about.unfit:
        lines += [about.unfit, "As the score my_taste it sorts pictures all the same, with that little certainty."]
    else:
        lines.append("It sorts pictures as the score my_taste, and is good enough for a reward of human feedback.")
    return "\n".join([*lines, *filter(None, [features_of(about.features).notice])])


def write_taste(taste: Taste, target: Path) -> Path | None:
    """Writes the file of a taste. One that is there already is kept under another name.

    Args:
        taste: what was learnt.
        target: a safetensors file; FILE in the folder of the scorers is found by that name.
    Returns: where the older file is now, None where there was none.
    Raises: EvaluationError where it cannot be written; the older file then stays in its place.
    """
    older = None
    try:
        if target.exists():
            older = _free_name(target)
            older.write_bytes(target.read_bytes())
        save_taste(target, taste.head, taste.about)
    except OSError as error:
        raise EvaluationError(f"Your taste was not written: {explain(error, target.parent)}.") from error
    return older


def _free_name(target: Path) -> Path:
    names = (target.with_name(f"{target.name}.bak{number or ''}") for number in range(MOST))
    return next(path for path in names if not path.exists())


def target_in(folder: Path) -> Path:
    """Returns where a folder of scorers has a person's taste."""
    return Path(folder) / FILE
