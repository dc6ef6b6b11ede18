"""Folders of small pictures, and comparisons and voters made of nothing, for the tests of blind votes."""

import random
from pathlib import Path

from hyper_sd.evaluation.comparison import Comparison, Picture, plan_pairs
from hyper_sd.evaluation.vote_file import Ballot, Vote
from PIL import Image

VOTER = "0123456789abcdef"


def write_arms(folder: Path, arms=("base", "hyper"), names=4, size=16) -> list[Path]:
    """Writes one folder of PNG files for each arm, the red of an arm in all its pictures, and returns the folders."""
    folders = [folder / arm for arm in arms]
    for hue, path in enumerate(folders):
        path.mkdir(parents=True)
        for number in range(names):
            Image.new("RGB", (size, size), (60 + 90 * hue, number % 250, number // 250)).save(path / f"drawing-{number:03}.png")
    return folders


def comparison_of(names: int, arms=("base", "hyper"), seed: int = 0, limit: int | None = None) -> Comparison:
    """Returns a comparison whose pictures need no file."""
    rng = random.Random(seed)
    named = [Picture(f"{number:04}", arm, Path(arm, f"{number:04}.png")) for number in range(names) for arm in arms]
    pictures = {f"{rng.getrandbits(64):016x}": picture for picture in named}
    return Comparison("c0ffee", tuple(arms), pictures, plan_pairs(pictures, limit, rng))


def ballot_of(comparison: Comparison, choose, voter: str = VOTER) -> Ballot:
    """Returns the votes of somebody who answers every pair.

    Args:
        comparison: what is voted on.
        choose: takes the number of a pair, its left and its right picture, and returns a choice.
        voter: the person's id.
    """
    pictures = comparison.pictures
    shown = enumerate(comparison.pairs)
    votes = (Vote(number, choose(number, pictures[pair.left], pictures[pair.right]), 1.25) for number, pair in shown)
    return Ballot(comparison.id, voter, tuple(votes))
