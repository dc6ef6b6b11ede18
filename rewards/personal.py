"""A person's own taste as a scorer: a small head, learnt from that person's votes, on features of a frozen network."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ..disk import whole_file
from ..errors import RewardError, UnsupportedModelError
from ..models.files import index_folders
from ..models.header import METADATA, read_header
from ..models.tensor_file import load_tensors
from .scorer import Scorer
from .sights import features_of, load_sight, network_of
from .taste_head import Head

FORMAT = "hyper-sd taste 1"
FILE, ENDING = "my_taste.safetensors", ".safetensors"
FLOOR = 0.55  # of the interval's lower end: below it the votes do not yet tell a taste from chance
HOW = (
    "Vote on pairs of pictures (`python install.py compare A B`, or the node Hyper-SD Vote), then learn from the votes: "
    "`python install.py taste VOTES`, or the node Hyper-SD Learn Taste."
)


@dataclass(frozen=True)
class About:
    """What a file of a taste says of itself.

    Args:
        features: a key of FEATURES.
        network: SHA-256 of the file that the features are made by.
        votes: that it was learnt from.
        accuracy: share of votes that heads like it foresee without having seen their pictures.
        low: lower end of the 95 % interval of the accuracy.
        high: its upper end.
        ceiling: how often the voters gave the same answer to the same pair again; -1 where that is not known.
        missing: votes that are missing until it may be used as a reward, as estimated; 0 where it may; -1 where no estimate
            can be given.
    """

    features: str
    network: str
    votes: int
    accuracy: float
    low: float
    high: float
    ceiling: float = -1.0
    missing: int = 0

    @property
    def is_sure(self) -> bool:
        """Whether it foresees votes surely enough to be learnt from."""
        return self.low > FLOOR

    @property
    def unfit(self) -> str:
        """Why it may not be used as a reward, and what to do; "" where it may."""
        if self.is_sure:
            return ""
        more = f"about {self.missing} more votes are missing" if self.missing > 0 else "how many votes are missing is not known"
        return (
            f"This taste is too unsure to be used as a reward: from {self.votes} votes it foresees {self.accuracy:.0%} of new "
            f"ones ({self.low:.0%} to {self.high:.0%}), and the lower number has to be above {FLOOR:.0%}; {more}. Vote on more "
            "pairs of other prompts and learn it again."
        )


class Personal(Scorer):
    """How much a person would like a picture, as learnt from that person's votes.

    The scores of the pictures that were voted on have a deviation of 1; their differences count, not their values.

    Args:
        sight: pictures -> features [batch, width].
        head: on these features.
        about: what its file says of itself.
    """

    reads_prompt = False

    def __init__(self, sight: nn.Module, head: Head, about: About):
        super().__init__()
        self.sight, self.about = sight, about
        for name, value in asdict(head).items():
            self.register_buffer(name, value.float())
        self.version = hashlib.sha256(b"".join(value.double().numpy().tobytes() for value in asdict(head).values())).hexdigest()
        self.unfit = about.unfit
        weak = about.unfit and "This taste is weak: " + about.unfit[:1].lower() + about.unfit[1:]
        self.notice = " ".join(filter(None, [weak, features_of(about.features).notice]))

    def rate(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """Returns the scores, [batch]."""
        return Head(self.mean, self.deviation, self.weight).score(self.sight(images))


def save_taste(path: Path, head: Head, about: About) -> None:
    """Writes a taste's file, whole or not at all.

    Args:
        path: of the safetensors file.
        head: what was learnt.
        about: what it says of itself.
    Raises: OSError of the system.
    """
    words = {"format": FORMAT} | {name: str(value) for name, value in asdict(about).items()}
    with whole_file(path) as partial:
        save_file({name: value.contiguous() for name, value in asdict(head).items()}, partial, words)


def read_about(path: Path) -> About | None:
    """Returns what a file of a taste says of itself, None for a safetensors file of anything else, or one that is unreadable.

    Raises: RewardError for a file of a taste that says it wrongly.
    """
    try:
        words = read_header(path).get(METADATA, {})
    except (OSError, UnsupportedModelError):
        return None
    if words.get("format") != FORMAT:
        return None
    try:
        about = About(**{field.name: field.type(words[field.name]) for field in fields(About)})
        if not all(0 <= share <= 1 for share in (about.low, about.accuracy, about.high)) or about.votes < 1:
            raise ValueError(f"votes {about.votes}, accuracy {about.accuracy} from {about.low} to {about.high}")
    except (KeyError, ValueError) as error:
        raise RewardError(f"{path} is damaged ({error!r}); learn your taste again. {HOW}") from error
    features_of(about.features)
    return about


def find_taste(folders: Sequence[Path]) -> Path:
    """Returns the file of a person's taste: my_taste.safetensors, or the only one under another name.

    Args:
        folders: where the scorers' files lie.
    Raises: RewardError where there is none, or where there are several and it is not known which one is meant.
    """
    files = [path for paths in index_folders(folders).values() for path in paths if _is_named(path)]
    named = [path for path in files if path.name.lower() == FILE]
    if named:
        return named[0]
    tastes = [path for path in files if read_about(path)]
    if len(tastes) > 1:
        names = ", ".join(path.name for path in tastes)
        raise RewardError(f"There are several tastes ({names}); name the one that is to be used {FILE}.")
    if not tastes:
        raise RewardError(f"There is no taste of yours yet in {' or '.join(map(str, folders)) or 'any folder'}. {HOW}")
    return tastes[0]


def _is_named(path: Path) -> bool:
    return path.suffix.lower() == ENDING and path.is_file()


def load_taste(path: Path, paths: Mapping[str, Path], device: torch.device | str = "cpu") -> Personal:
    """Returns the frozen scorer of a taste's file.

    Args:
        path: of the taste.
        paths: of the files of its features by the catalogue's ids.
        device: that does the work.
    Raises: RewardError for a file that is damaged, or was learnt on another network's features.
    """
    about = require_about(path)
    wanted = {field.name: (features_of(about.features).width,) for field in fields(Head)}
    try:
        tensors, _ = load_tensors(path)
    except (OSError, UnsupportedModelError) as error:
        raise RewardError(f"{path} cannot be read ({error}); learn your taste again. {HOW}") from error
    if {name: tuple(value.shape) for name, value in tensors.items()} != wanted:
        raise RewardError(f"{path} is damaged: it holds other numbers than a taste does; learn your taste again. {HOW}")
    if (
        not all(value.is_floating_point() and value.isfinite().all() for value in tensors.values())
        or not (tensors["deviation"] > 0).all()
    ):
        raise RewardError(f"{path} is damaged: it holds numbers that no taste has; learn your taste again. {HOW}")
    if about.network != network_of(about.features, paths):
        raise RewardError(
            f"{path} was learnt on another version of {features_of(about.features).title}; learn your taste again. {HOW}"
        )
    head = Head(**{name: value.double() for name, value in tensors.items()})
    return Personal(load_sight(about.features, paths), head, about).freeze().to(device)


def require_about(path: Path) -> About:
    """Returns what a file of a taste says of itself.

    Raises: RewardError for any other file, and for one that is damaged.
    """
    about = read_about(path)
    if about is None:
        raise RewardError(f"{path} is not a taste, or is damaged; learn your taste again. {HOW}")
    return about
