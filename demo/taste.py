"""`python install.py taste`: learns a person's taste from files of votes, and says what it is worth."""

import argparse
import time
from pathlib import Path

from ..models.host_folders import HOST_FOLDERS, REWARDS
from .console import StatusLine, progress_text, say
from .errors import DemoError
from .fetch_models import model_folders
from .votes_options import find_comparison, vote_files


def reward_folders(comfyui: Path | None) -> list[Path]:
    """Returns the folders of scorers of a ComfyUI, or of the host that is found; none without a host."""
    if comfyui is None:
        return model_folders(REWARDS)
    return [comfyui / "models" / folder for folder in HOST_FOLDERS["comfyui"][REWARDS]]


def run_taste(parsed: argparse.Namespace) -> int:
    """Learns, writes the file and a report, and returns the exit code.

    Raises: DemoError without a host and a file to write to; EvaluationError; RewardError.
    """
    from ..evaluation.comparison import load_key
    from ..evaluation.taste import choose_features, learn_taste, report, target_in, write_taste
    from ..evaluation.vote_file import load_ballot

    folders = reward_folders(parsed.comfyui)
    if not folders and not parsed.out:
        raise DemoError("Found no ComfyUI or A1111 around this folder; say where your taste shall go: --out FILE.")
    files = vote_files(parsed.votes)
    comparison = load_key(parsed.comparison or find_comparison(files))
    ballots = [load_ballot(path, comparison) for path in files]
    line, start = StatusLine(), time.monotonic()

    def progress(done: int, total: int) -> None:
        line.update(progress_text("looking at the pictures", done, total, time.monotonic() - start))

    features = choose_features(parsed.features, folders)
    taste = learn_taste(comparison, ballots, features, folders, progress=progress)
    line.close(f"Looked at {taste.seen} pictures.")
    target = parsed.out or target_in(folders[0])
    older = write_taste(taste, target)
    say(report(taste))
    say(f"Written: {target}" + (f" (the one before is kept as {older.name})" if older else ""))
    return 0
