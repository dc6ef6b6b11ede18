"""The scorers of pictures that there are: what each reads, which files it needs, and how it is loaded."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import RewardError
from ..models.catalog import load_catalog
from ..models.embedded import SCORERS as EMBEDDED_FILE
from ..models.embedded import TOKENIZER
from ..models.entry import Entry
from ..models.files import Index, index_folders, look, may_have, sha256_of, size_of
from ..models.progress import State
from . import aesthetic, clip, embedded, hps, image_reward, personal, pick_score
from .scorer import Scorer
from .sights import features_of
from .weights import remedy

Make = Callable[[Mapping[str, Path], torch.device | str], Scorer]
Folders = Path | Sequence[Path]
MY_TASTE = "my_taste"


@dataclass(frozen=True)
class ScorerKind:
    """One scorer.

    Args:
        id: its name in settings and workflows.
        title: its name for people.
        reads: what it looks at, in words.
        make: paths of its files by the catalogue's ids, and a device -> the frozen scorer.
        files: the catalogue's ids of what has to be downloaded; none for a scorer that comes with the pack.
        own: whether it is a file of the person's own, which says what else it needs.
    """

    id: str
    title: str
    reads: str
    make: Make
    files: tuple[str, ...] = ()
    own: bool = False


PICTURE, BOTH = "the picture", "the picture and its prompt"


def _embedded_match(paths: Mapping[str, Path], device: torch.device | str) -> Scorer:
    return embedded.load_match(EMBEDDED_FILE, TOKENIZER).to(device)


def _embedded_quality(paths: Mapping[str, Path], device: torch.device | str) -> Scorer:
    return embedded.load_quality(EMBEDDED_FILE).to(device)


def _my_taste(paths: Mapping[str, Path], device: torch.device | str) -> Scorer:
    return personal.load_taste(paths[MY_TASTE], paths, device)


SCORERS: dict[str, ScorerKind] = {
    kind.id: kind
    for kind in (
        ScorerKind("clip", "CLIP score", BOTH, clip.ClipScore.load, (clip.ClipScore.weights, clip.TOKENIZER)),
        ScorerKind("aesthetic", "LAION aesthetic v2", PICTURE, aesthetic.Aesthetic.load, (aesthetic.CLIP, aesthetic.HEAD)),
        ScorerKind(
            "image_reward", "ImageReward", BOTH, image_reward.ImageReward.load,
            (image_reward.WEIGHTS, image_reward.TOKENIZER),
        ),
        ScorerKind("pick_score", "PickScore", BOTH, pick_score.PickScore.load, (pick_score.PickScore.weights, clip.TOKENIZER)),
        ScorerKind("hps", "HPS v2.1", BOTH, hps.HumanPreference.load, (hps.HumanPreference.weights, clip.TOKENIZER)),
        ScorerKind("embedded_match", "demo model: shows what was asked for", BOTH, _embedded_match),
        ScorerKind("embedded_quality", "demo model: how well it is drawn", PICTURE, _embedded_quality),
        ScorerKind(MY_TASTE, "my taste (from your votes)", PICTURE, _my_taste, own=True),
    )
}  # fmt: skip


def scorer_kind(scorer_id: str) -> ScorerKind:
    """Returns the scorer of an id.

    Raises: RewardError naming those that there are.
    """
    if scorer_id not in SCORERS:
        raise RewardError(f"There is no score {scorer_id!r}; choose one of {', '.join(SCORERS)}.")
    return SCORERS[scorer_id]


def find_files(entry_ids: Iterable[str], folders: Folders) -> tuple[dict[str, Path], dict[str, str]]:
    """Returns the paths of the files that are there, and what is wrong with each of the others, both by id.

    A file under another name is found by its content where the catalogue has its SHA-256.

    Args:
        entry_ids: of the catalogue.
        folders: where the scorers' files lie, one or several.
    """
    index = index_folders([folders] if isinstance(folders, str | Path) else folders)
    catalog, paths, problems = load_catalog(), {}, {}
    for entry in map(catalog.get, entry_ids):
        found = look(entry, index)
        path = found.path if found.state is State.READY else _copy_of(entry, index)
        if path:
            paths[entry.id] = path
        else:
            problems[entry.id] = f"{entry.name} is {(found.problem and 'damaged: ' + found.problem) or 'not there'}"
    return paths, problems


def _copy_of(entry: Entry, index: Index) -> Path | None:
    """Returns a file of an entry's content under another name, None where there is none, or where its hash is not known."""
    for path in (path for paths in index.values() for path in paths if entry.sha256):
        size = size_of(path)
        if path.suffix.lower() == entry.ending and size and may_have(entry, size):
            with suppress(OSError):  # one that cannot be read is no copy
                if sha256_of(path) == entry.sha256:
                    return path
    return None


def require_files(scorer_id: str, folders: Folders) -> dict[str, Path]:
    """Returns the paths of a scorer's files by the catalogue's ids, and a person's own by the scorer's.

    It only looks whether they are there, and reads of none more than what it says of itself.

    Args:
        scorer_id: a key of SCORERS.
        folders: where the scorers' files lie, one or several.
    Raises: RewardError for an unknown id; naming every file that is missing or damaged, and how it is had.
    """
    kind = scorer_kind(scorer_id)
    if not kind.own:
        return require_entries(kind.files, folders, kind.title)
    path = personal.find_taste([folders] if isinstance(folders, str | Path) else folders)
    needed = features_of(personal.require_about(path).features).files
    return {MY_TASTE: path} | require_entries(needed, folders, kind.title)


def require_entries(entry_ids: Iterable[str], folders: Folders, title: str) -> dict[str, Path]:
    """Returns the paths of files of the catalogue by their ids.

    Args:
        entry_ids: of the catalogue.
        folders: where they lie, one or several.
        title: of what needs them, for the message.
    Raises: RewardError naming every file that is missing or damaged, and how it is had.
    """
    paths, problems = find_files(entry_ids, folders)
    if problems:
        raise RewardError(f"{title} lacks its files: {'; '.join(problems.values())}. {remedy(*problems)}")
    return paths


def own_file(scorer_id: str, folders: Folders) -> str:
    """Returns what tells one state of a person's own file from another, "" for a scorer without one, and where it is missing.

    Args:
        scorer_id: a key of SCORERS.
        folders: where the scorers' files lie, one or several.
    """
    if not scorer_kind(scorer_id).own:
        return ""
    try:
        path = personal.find_taste([folders] if isinstance(folders, str | Path) else folders)
        state = path.stat()
    except (RewardError, OSError):
        return ""
    return f"{path} {state.st_mtime_ns} {state.st_size}"


def load(scorer_id: str, folders: Folders, device: torch.device | str = "cpu") -> Scorer:
    """Returns a frozen scorer, read from its files.

    Args:
        scorer_id: a key of SCORERS.
        folders: where the scorers' files lie, one or several.
        device: that does the work.
    Raises: RewardError as require_files(), and for files that are not what they should be.
    """
    return scorer_kind(scorer_id).make(require_files(scorer_id, folders), device)
