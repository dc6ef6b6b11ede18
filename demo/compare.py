"""`python install.py compare`: one page on which people vote blind, and the key that stays with whoever made it."""

import argparse
import time

from ..disk import format_bytes
from ..evaluation.comparison import KEY, Comparison, find_pictures, plan_comparison, save_key, without_partner
from ..evaluation.page import PICTURES, BlindPage, uneven_arms, write_page
from .compare_options import COMPARISONS
from .console import StatusLine, progress_text, say

SEND = "send"  # the folder that voters get
LISTED = 5  # names that are listed


def run_compare(parsed: argparse.Namespace) -> int:
    """Writes the page and the key, says what to do with them, and returns the exit code.

    Raises: EvaluationError.
    """
    alone = without_partner(find_pictures(parsed.folders))
    if alone:
        more = f" and {len(alone) - LISTED} more" if len(alone) > LISTED else ""
        say(f"Left out, because no other folder has a picture of that name: {', '.join(alone[:LISTED])}{more}")
    comparison = plan_comparison(parsed.folders, parsed.limit)
    if uneven := uneven_arms(comparison):
        sides = ", ".join(f"{arm} {side}" for arm, side in uneven.items())
        say(f"The pictures differ in size ({sides} pixels). Smaller ones are scaled up, which shows: draw them in one size.")
    folder = parsed.out or COMPARISONS / comparison.id[:8]
    line, start = StatusLine(), time.monotonic()

    def progress(done: int, total: int) -> None:
        line.update(progress_text("writing pictures", done, total, time.monotonic() - start))

    key = save_key(comparison, folder)
    try:
        page = write_page(comparison, folder / SEND, parsed.question, parsed.inside, parsed.longest, progress)
    except BaseException:
        key.unlink(missing_ok=True)  # without a page it reads no votes, and would bar the folder to the next try
        raise
    line.close(f"Wrote {len(comparison.pictures)} pictures as {'PNG' if page.lossless else 'JPEG'} without metadata.")
    _explain(comparison, page)
    return 0


def _explain(comparison: Comparison, page: BlindPage) -> None:
    repeats = sum(pair.first is not None for pair in comparison.pairs)
    shown = f"{len(comparison.pairs)} pairs of {', '.join(comparison.arms)}"
    say(f"{shown}; {repeats} repeat an earlier one, which shows how steady a voter is." if repeats else f"{shown}.")
    say(f"\nThe page: {page.file} ({format_bytes(page.size)})")
    if page.inside:
        say("  Open it in any browser, or send this one file. It asks for no network and sends nothing.")
    else:
        say(f"  Open it in any browser, or send the whole folder {page.file.parent}: the page needs {PICTURES} beside it.")
    say(f"The key: {page.file.parent.parent / KEY}")
    say("  Keep it to yourself: it says which picture is whose, and no vote can be read without it.")
    say("When the files of votes are back: python install.py votes FILES...")
