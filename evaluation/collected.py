"""Comparisons that grow: a host adds pairs of pictures as it draws them, shows them one by one, and keeps the votes."""

import io
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from filelock import FileLock
from PIL import Image

from ..disk import explain, write_whole
from ..errors import EvaluationError
from .comparison import KEY, Comparison, Pair, Picture, load_key, new_id, save_key
from .vote_file import CHOICES, LONGEST, Ballot, Vote, load_ballot, save_ballot
from .vote_report import report_of, sentences

BALLOT = "own.votes.json"  # beside the key, with the pictures in a folder below it
PICTURES = "pictures"
LOCK_SECONDS = 30
GAP = 4  # pairs between a pair and its second time
_NAME = re.compile(r"[^\x00-\x1f<>:\"/\\|?*.][^\x00-\x1f<>:\"/\\|?*]{0,59}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # Windows' devices

Batch = tuple[str, Sequence[Image.Image]]  # an arm and its pictures


@dataclass(frozen=True)
class Summary:
    """A comparison in a list.

    Args:
        name: its folder's.
        pairs: how many it has.
        voted: how many of them have a vote.
        problem: why it cannot be used, "" where it can.
    """

    name: str
    pairs: int = 0
    voted: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Shown:
    """The pair that a person shall look at next.

    Args:
        pairs: how many the comparison has.
        voted: how many of them have a vote.
        number: the pair's; None where all have a vote.
        left: the id of its left picture.
        right: the id of its right picture.
        prompt: what both were to show.
    """

    pairs: int
    voted: int
    number: int | None = None
    left: str = ""
    right: str = ""
    prompt: str = ""


def folder_of(root: Path, name: str) -> Path:
    """Returns where a comparison lies.

    Args:
        root: the folder of all comparisons.
        name: what a person called it: one folder's name, valid on every system.
    Raises: EvaluationError for any other name.
    """
    name = name.strip()
    if not _NAME.fullmatch(name) or name.endswith(".") or _RESERVED.fullmatch(name):
        raise EvaluationError(
            f"A comparison cannot be called {name[:60]!r}; take 1 to 60 letters, digits and spaces, such as 'my taste'."
        )
    return root / name


def comparisons(root: Path) -> list[Summary]:
    """Returns every comparison below a folder, the one with the newest pictures or votes first."""
    folders = [folder for folder in root.iterdir() if (folder / KEY).is_file()] if root.is_dir() else []

    def newest(folder: Path) -> float:
        return max((path.stat().st_mtime for path in (folder / KEY, folder / BALLOT) if path.is_file()), default=0.0)

    return [_summary(folder) for folder in sorted(folders, key=newest, reverse=True)]


def _summary(folder: Path) -> Summary:
    try:
        shown = next_pair(folder)
    except EvaluationError as error:
        return Summary(folder.name, problem=str(error))
    return Summary(folder.name, shown.pairs, shown.voted)


def loaded(folder: Path) -> tuple[Comparison, list[Ballot]]:
    """Returns a comparison and the ballots of the files that lie beside its key, this person's own among them.

    Raises: EvaluationError where the key or a ballot is missing, damaged or of another comparison.
    """
    comparison = load_key(folder)
    return comparison, [load_ballot(path, comparison) for path in sorted(folder.glob("*.votes.json"))]


def add_pairs(folder: Path, batches: Sequence[Batch], prompts: Sequence[str], rng: random.Random | None = None) -> int:
    """Adds pictures to a comparison, which is made where there is none, and returns how many pairs they gave.

    Every two arms' pictures of one place in their batches become a pair. A single arm's pictures are compared two at a time.
    A tenth of all pairs comes a second time, with the sides swapped.

    Args:
        folder: of the comparison.
        batches: of each arm, equally many pictures.
        prompts: one for each place in the batches.
        rng: what ids, order and sides are drawn from; None takes the system's, which no seed repeats.
    Raises: EvaluationError for batches of different length, an odd single one, and a folder that cannot be written.
    """
    rng = rng or random.SystemRandom()
    batches, prompts = _in_two(batches, prompts)
    if len({len(pictures) for _, pictures in batches}) > 1:
        counts = ", ".join(f"{arm} {len(pictures)}" for arm, pictures in batches)
        raise EvaluationError(f"Every way needs as many pictures as the others, got {counts}; draw them with one batch_size.")
    with _locked(folder):
        before = load_key(folder) if (folder / KEY).is_file() else Comparison(new_id(rng), (), {}, ())
        run = len({picture.name for picture in before.pictures.values()})
        new: dict[str, tuple[Picture, Image.Image]] = {}
        for arm, pictures in batches:
            for place, image in enumerate(pictures):
                key = new_id(rng)
                path = folder / PICTURES / f"{key}.png"
                new[key] = Picture(f"{run + place:06d}", arm, path, prompts[place]), image
        _save_pictures({picture.path: image for picture, image in new.values()})
        pictures = before.pictures | {key: picture for key, (picture, _) in new.items()}
        pairs = (*before.pairs, *_new_pairs({key: picture for key, (picture, _) in new.items()}, rng))
        arms = tuple(dict.fromkeys((*before.arms, *(arm for arm, _ in batches))))
        grown = Comparison(before.id, arms, dict(sorted(pictures.items())), _repeated(pairs, rng))
        save_key(grown, folder)
    return len(grown.pairs) - len(before.pairs)


def require_even(count: int) -> None:
    """Refuses a number of pictures that cannot be compared two at a time.

    Raises: EvaluationError for an odd one.
    """
    if count % 2:
        raise EvaluationError(
            f"One way's pictures are compared two at a time, and {count} is odd; set batch_size to an even number, or wire a "
            "second way's pictures in."
        )


def _in_two(batches: Sequence[Batch], prompts: Sequence[str]) -> tuple[Sequence[Batch], Sequence[str]]:
    """Returns a single arm's pictures as two arms', the first of every two and the second; more arms as they are."""
    if len(batches) > 1:
        return batches, prompts
    [(arm, pictures)] = batches
    require_even(len(pictures))
    return [(f"{arm}, first", pictures[::2]), (f"{arm}, second", pictures[1::2])], prompts[::2]


def _save_pictures(images: dict[Path, Image.Image]) -> None:
    for path, image in images.items():
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "PNG")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, buffer.getvalue())
        except OSError as error:
            raise EvaluationError(f"The pictures were not kept: {explain(error, path.parent)}.") from error


def _new_pairs(pictures: dict[str, Picture], rng: random.Random) -> list[Pair]:
    by_name: dict[str, list[str]] = {}
    for key, picture in pictures.items():
        by_name.setdefault(picture.name, []).append(key)
    pairs = [Pair(*rng.sample(two, 2)) for keys in by_name.values() for two in combinations(keys, 2)]
    rng.shuffle(pairs)
    return pairs


def _repeated(pairs: Sequence[Pair], rng: random.Random) -> tuple[Pair, ...]:
    """Returns the pairs with further ones at the end, so that a tenth of all different pairs comes twice."""
    repeated = {pair.first for pair in pairs if pair.first is not None}
    different = [number for number, pair in enumerate(pairs) if pair.first is None]
    can = [number for number in different if number not in repeated and number < len(pairs) - GAP]
    many = min(max(round(len(different) / 10) - len(repeated), 0), len(can))
    again = [Pair(pairs[number].right, pairs[number].left, number) for number in rng.sample(can, many)]
    return (*pairs, *again)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "comparison.lock", timeout=LOCK_SECONDS):
            yield
    except TimeoutError as error:
        raise EvaluationError(f"{folder} is in use by another program; try again in a moment.") from error
    except OSError as error:
        raise EvaluationError(
            f"{folder} cannot be written ({explain(error, folder)}); free it, or take another name."
        ) from error


def _ballot(folder: Path, comparison: Comparison) -> Ballot:
    path = folder / BALLOT
    return load_ballot(path, comparison) if path.is_file() else Ballot(comparison.id, new_id(random.SystemRandom()), ())


def next_pair(folder: Path) -> Shown:
    """Returns the first pair that has no vote of this person.

    Raises: EvaluationError for a comparison or ballot that is missing or damaged.
    """
    comparison = load_key(folder)
    voted = {vote.pair for vote in _ballot(folder, comparison).votes}
    number = next((n for n in range(len(comparison.pairs)) if n not in voted), None)
    if number is None:
        return Shown(len(comparison.pairs), len(voted))
    pair = comparison.pairs[number]
    return Shown(len(comparison.pairs), len(voted), number, pair.left, pair.right, comparison.pictures[pair.left].prompt)


def vote(folder: Path, pair: int, choice: str, seconds: float) -> None:
    """Keeps a vote.

    Args:
        folder: of the comparison.
        pair: its number.
        choice: "left", "right", "tie" or "skip".
        seconds: how long the pair was looked at, 0 or more.
    Raises: EvaluationError for an unknown pair or choice, and one that has a vote already.
    """
    with _locked(folder):
        comparison = load_key(folder)
        ballot = _ballot(folder, comparison)
        if not 0 <= pair < len(comparison.pairs) or choice not in CHOICES or not 0 <= seconds < LONGEST:
            raise EvaluationError(
                f"The vote {choice!r} on pair {pair} after {seconds:g} s does not fit: there are the pairs 0 to "
                f"{len(comparison.pairs) - 1}, the choices {', '.join(CHOICES)}, and 0 seconds or more, below {LONGEST:g}."
            )
        if any(known.pair == pair for known in ballot.votes):
            raise EvaluationError(f"Pair {pair} has a vote already, perhaps from another window; press Look again.")
        save_ballot(replace(ballot, votes=(*ballot.votes, Vote(pair, choice, seconds))), folder / BALLOT)


def undo(folder: Path) -> None:
    """Takes the last vote back.

    Raises: EvaluationError where there is none.
    """
    with _locked(folder):
        ballot = _ballot(folder, load_key(folder))
        if not ballot.votes:
            raise EvaluationError("There is no vote to take back.")
        save_ballot(replace(ballot, votes=ballot.votes[:-1]), folder / BALLOT)


def picture_bytes(folder: Path, key: str) -> bytes:
    """Returns a picture's file by its id.

    Raises: EvaluationError for an id that the comparison does not have, and a file that is gone or lies
        outside of the comparison's folder.
    """
    picture = load_key(folder).pictures.get(key)
    if picture is None:
        raise EvaluationError(f"The comparison {folder.name!r} has no picture {key[:20]!r}; press Look again.")
    try:
        if not picture.path.resolve().is_relative_to(folder.resolve()):
            raise EvaluationError(
                f"A picture of {folder.name!r} lies outside of {folder} and is not shown; put it into that folder, and "
                f"its place there into {KEY}."
            )
        return picture.path.read_bytes()
    except ValueError as error:
        raise EvaluationError(f"{KEY} of {folder.name!r} is damaged: a picture's file has no valid name.") from error
    except OSError as error:
        raise EvaluationError(f"A picture of {folder.name!r} cannot be read: {explain(error, picture.path.parent)}.") from error


def results(folder: Path) -> str:
    """Returns what the votes so far say, in sentences; without strengths, for which hosts have no package.

    Raises: EvaluationError as loaded().
    """
    return "\n".join(sentences(report_of(*loaded(folder), ranks=False)))
