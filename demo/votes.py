"""`python install.py votes`: what many people's votes say, in words, numbers and a chart."""

import argparse
import json
import sys
from pathlib import Path

from ..disk import explain, write_whole
from ..errors import EvaluationError
from ..evaluation.comparison import Comparison, load_key
from ..evaluation.vote_chart import vote_chart
from ..evaluation.vote_file import Ballot, load_ballot
from ..evaluation.vote_report import VoteReport, fullest, report_of, sentences
from .console import say
from .votes_options import RESULT, find_comparison, vote_files

CHART = "result.png"


def run_votes(parsed: argparse.Namespace) -> int:
    """Says what the votes say, writes it down, and returns the exit code: 1 where a file was refused, and the others counted.

    Raises: DemoError and EvaluationError where nothing can be counted.
    """
    files = vote_files(parsed.files)
    folder = parsed.comparison or find_comparison(files)
    comparison = load_key(folder)
    ballots, refused = _read(files, comparison)
    if not ballots:
        raise EvaluationError("No file of votes could be read; the reasons stand above.")
    if len(people := fullest(ballots)) < len(ballots):
        say(f"{len(ballots) - len(people)} files are of people who saved several times; the one with most votes counts.")
    report = report_of(comparison, ballots)
    _tell(report)
    _write(report, parsed.out or (folder if folder.is_dir() else folder.parent))
    if refused:
        say(f"{refused} of {len(files)} files were refused and not counted; the reasons stand above.", stream=sys.stderr)
    return 1 if refused else 0


def _read(files: list[Path], comparison: Comparison) -> tuple[list[Ballot], int]:
    ballots, refused = [], 0
    for file in files:
        try:
            ballots.append(load_ballot(file, comparison))
        except EvaluationError as error:
            say(f"Refused: {error}", stream=sys.stderr)
            refused += 1
    return ballots, refused


def _tell(report: VoteReport) -> None:
    people = "1 person" if report.voters == 1 else f"{report.voters} people"
    skipped = f", {report.skipped} pairs skipped" if report.skipped else ""
    say(f"{people}, {report.answers} answers{skipped}.\n")
    for sentence in sentences(report):
        say(f"- {sentence}")
    if len(report.arms) > 2 and not report.strengths:
        say("- The answers do not put three arms on one scale, so there are no strengths; more pairs have to be answered.")
    if report.voters > 1:
        say()
        for voter, share in report.selves.items():
            if share.total:
                say(f"  voter {voter[:8]}: {int(share.count)} of {share.total} repeated pairs alike")


def _write(report: VoteReport, folder: Path) -> None:
    contents = {RESULT: json.dumps(report.to_json(), ensure_ascii=False, indent=1).encode()}
    if report.meetings:
        contents[CHART] = vote_chart(report)
    for name, content in contents.items():
        try:
            write_whole(folder / name, content)
        except OSError as error:
            raise EvaluationError(f"The results were not written: {explain(error, folder)}.") from error
    say(f"\nWritten: {', '.join(str(folder / name) for name in contents)}")
