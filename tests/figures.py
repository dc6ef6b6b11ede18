"""The figures of docs/reliability.md: each is counted by a test, which holds its row to it.

HYPER_SD_WRITE=1 writes the row.
"""

import os
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"


def hold_row(name: str, test: str, *, tried: int, refused: int, right: int, wrong: int) -> None:
    """Compares what a test counted with its row of the page, or writes the row there.

    Args:
        name: of the row, plain words without "|".
        test: the test's file, a path inside the repository.
        tried: how many cases there were.
        refused: how many of them ended in the error that is meant for them.
        right: how many of them were taken and gave the right result.
        wrong: how many of them did anything else; it must be 0.
    """
    assert tried == refused + right + wrong, f"{name}: {refused} + {right} + {wrong} are not {tried}"
    assert wrong == 0, f"{name}: {wrong} of {tried} went wrong"
    row = f"| {name} | {tried:,} | {refused:,} | {right:,} | {wrong} | `{test}` |"
    if os.environ.get("HYPER_SD_WRITE"):
        _write(name, row)
    assert row in PAGE.read_text(encoding="utf-8").splitlines(), f"{PAGE} has another row; HYPER_SD_WRITE=1 writes this:\n{row}"


def _write(name: str, row: str) -> None:
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    table, after = rest.split(END)
    lines = table.strip().splitlines()
    place = next((number for number, line in enumerate(lines) if line.startswith(f"| {name} |")), None)
    if place is None:
        lines.append(row)
    else:
        lines[place] = row
    table = "\n".join(lines)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
