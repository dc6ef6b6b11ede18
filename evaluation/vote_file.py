"""The file in which one person's votes travel: small JSON without a name, which the page and this module write alike."""

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from ..disk import explain, write_whole
from ..errors import EvaluationError
from .comparison import Comparison

FORMAT = "hyper-sd votes 1"
CHOICES = ("left", "right", "tie", "skip")
LONGEST = 1e9  # seconds, below which a vote lies
LARGEST = 16 * 2**20  # bytes; a vote takes about 20
_VOTER = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True)
class Vote:
    """One answer.

    Args:
        pair: its number in the comparison.
        choice: one of CHOICES; the side that was liked better as it was shown.
        seconds: how long the pair was looked at.
    """

    pair: int
    choice: str
    seconds: float


@dataclass(frozen=True)
class Ballot:
    """One person's answers to one comparison.

    Args:
        comparison: its id.
        voter: random letters and digits that tell people apart and nothing about them.
        votes: in the order in which they were given.
    """

    comparison: str
    voter: str
    votes: tuple[Vote, ...]


def check_of(comparison: str, voter: str, votes: list) -> str:
    """Returns the SHA-256 of a ballot's canonical text: what it is, then a line for each vote, seconds in whole thousandths.

    It finds damage and edits by hand. Whoever knows this rule can write a valid file, so it is no signature.

    Args:
        comparison: the comparison's id.
        voter: the voter's random id.
        votes: (pair, choice, seconds) of each.
    """
    lines = [FORMAT, comparison, voter, *(f"{pair} {choice} {round(seconds * 1000)}" for pair, choice, seconds in votes)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def save_ballot(ballot: Ballot, path: Path) -> None:
    """Writes a ballot.

    Raises: EvaluationError where the file cannot be written.
    """
    votes = [[vote.pair, vote.choice, round(vote.seconds, 3)] for vote in ballot.votes]
    content = {"format": FORMAT, "comparison": ballot.comparison, "voter": ballot.voter, "votes": votes}
    content["check"] = check_of(ballot.comparison, ballot.voter, votes)
    try:
        write_whole(Path(path), json.dumps(content).encode())
    except OSError as error:
        raise EvaluationError(f"The votes were not written: {explain(error, Path(path).parent)}.") from error


def load_ballot(path: Path, comparison: Comparison) -> Ballot:
    """Returns the ballot of a file, after everything about it was checked.

    Args:
        path: the file.
        comparison: the one that the votes must belong to.
    Raises: EvaluationError for another format or comparison, an unknown pair or choice, a pair twice, and a wrong check.
    """
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST:
            raise EvaluationError(f"{path} is far too large for a file of votes; give what the comparison's page saved.")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(f"{path} cannot be read as votes ({error}); give what the comparison's page saved.") from error
    return read_ballot(content, comparison, str(path))


def read_ballot(content, comparison: Comparison, source: str = "This") -> Ballot:
    """Returns the ballot of what a vote file holds; see load_ballot.

    Args:
        content: the parsed JSON.
        comparison: the one that the votes must belong to.
        source: how messages begin, such as the file's name.
    Raises: EvaluationError as load_ballot does.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise EvaluationError(f"{source} is no file of votes: its format is {found!r}, not {FORMAT!r}.")
    if content.get("comparison") != comparison.id:
        raise EvaluationError(
            f"{source} belongs to another comparison ({content.get('comparison')!r}, not {comparison.id!r}); "
            "give votes that were saved on the page of this comparison."
        )
    voter, rows = content.get("voter"), content.get("votes")
    if not isinstance(voter, str) or not _VOTER.fullmatch(voter) or not isinstance(rows, list):
        raise EvaluationError(f"{source} is damaged: it has no voter or no list of votes. Ask the voter to save it again.")
    votes = tuple(_read_vote(row, len(comparison.pairs), source) for row in rows)
    if len({vote.pair for vote in votes}) < len(votes):
        raise EvaluationError(f"{source} answers a pair twice; the page never does that. Ask the voter to save it again.")
    if content.get("check") != check_of(comparison.id, voter, rows):
        raise EvaluationError(
            f"{source} was changed or damaged after it was saved: its check does not fit. Ask the voter to save it again."
        )
    return Ballot(comparison.id, voter, votes)


def _read_vote(row, pairs: int, source: str) -> Vote:
    pair, choice, seconds = row if isinstance(row, list) and len(row) == 3 else (None, None, None)
    if type(pair) is not int or not 0 <= pair < pairs:
        raise EvaluationError(f"{source} answers the pair {pair!r}; this comparison has the pairs 0 to {pairs - 1}.")
    if choice not in CHOICES:
        raise EvaluationError(f"{source} has the choice {choice!r} for pair {pair}; allowed are {', '.join(CHOICES)}.")
    if type(seconds) not in {int, float} or not math.isfinite(seconds) or not 0 <= seconds < LONGEST:
        raise EvaluationError(f"{source} has {seconds!r} seconds for pair {pair}; a vote takes 0 seconds or more.")
    return Vote(pair, choice, float(seconds))
