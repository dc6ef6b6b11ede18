"""The catalogue's rows as the tab shows them: words, HTML, and a row's changes while its download is under way."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ..disk import format_bytes
from ..errors import HyperSDError
from ..models.files import State
from ..models.jobs import Downloads

POLL = 0.5  # seconds between two looks at what is under way
STATES = {
    State.MISSING: "not downloaded",
    State.PARTIAL: "partly here",
    State.DOWNLOADING: "downloading",
    State.VERIFYING: "checking",
    State.READY: "ready",
    State.CORRUPT: "damaged",
}
BUTTONS = {
    State.MISSING: "Download",
    State.PARTIAL: "Resume",
    State.DOWNLOADING: "Download",
    State.VERIFYING: "Download",
    State.READY: "Ready",
    State.CORRUPT: "Download again",
}
UNET_HINT = "To make pictures with it here, build a full checkpoint from it below."
BUSY = (State.DOWNLOADING, State.VERIFYING)
Row = dict[str, Any]


def is_busy(row: Row) -> bool:
    """Tells whether a row's download is under way."""
    return row["state"] in BUSY


def duration(seconds: float) -> str:
    """Returns a time as people say it: "14 s", "3 min", "1.5 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def percent(row: Row) -> int:
    """Returns how much of a row's file is there, 0 to 100."""
    return min(100, 100 * row["bytes_done"] // row["bytes_total"]) if row["bytes_total"] else 0


def progress_text(row: Row) -> str:
    """Returns how far a download is: "44 % · 120 MB of 269 MB · 11 MB/s · 14 s left"."""
    parts = [f"{percent(row)} %"]
    if row["state"] == State.DOWNLOADING:
        parts.append(f"{format_bytes(row['bytes_done'])} of {format_bytes(row['bytes_total'])}")
        if row["rate"]:
            parts.append(f"{format_bytes(row['rate'])}/s")
        if row["eta_seconds"] is not None and row["bytes_done"] < row["bytes_total"]:
            parts.append(f"{duration(row['eta_seconds'])} left")
    return " · ".join(parts)


def problem_text(row: Row) -> str:
    """Returns what is wrong and what to do; the look at the folders tells only what is wrong."""
    if row["state"] != State.CORRUPT or row["problem"].endswith("."):
        return row["problem"]
    return (
        f"The file in your folder cannot be used: {row['problem']}. Tick the box and download again: it will be renamed, not "
        "deleted."
    )


def row_html(row: Row, problem: str = "") -> str:
    """Returns a row as HTML; every text in it is escaped, and fixed words stand in elements of their own.

    The host's translation looks at whole texts only.
    Args: problem: of the last click, where there is one.
    """
    busy, licence, file = is_busy(row), row["licence"], row["models"]
    size = format_bytes(row["size"]) if row["size"] else "size unknown"
    facts = [
        f"<span>{escape(size)}</span>",
        f'<span title="{escape(row["file"])}">{STATES[row["state"]]}</span>',
        f'<a href="{escape(licence["url"])}" target="_blank" rel="noreferrer" title="{escape(licence["title"])}">licence</a>',
    ]
    parts = [
        f'<strong title="{escape(file["directory"])}: {escape(file["name"])}">{escape(row["title"])}</strong>',
        f"<div>{' · '.join(facts)}</div>",
    ]
    if busy or row["state"] == State.PARTIAL:
        bar = f'<progress max="100" value="{percent(row)}" aria-label="{escape(row["title"])}" style="width: 100%"></progress>'
        parts += [bar, f"<div>{escape(progress_text(row))}</div>"]
    if busy and row["note"]:
        parts.append(f"<div>{escape(row['note'])}</div>")
    if row["state"] == State.READY and file["directory"] == "diffusion_models":
        parts.append(f"<div>{UNET_HINT}</div>")
    problem = problem or ("" if busy else problem_text(row))
    if problem:
        parts.append(f'<div role="alert" style="color: var(--error-text-color, #b91c1c)">{escape(problem)}</div>')
    return "".join(parts)


@dataclass(frozen=True)
class Shown:
    """How a row looks: its HTML, its button's words, and what can be done with it."""

    html: str
    button: str
    can_start: bool
    can_cancel: bool
    can_set_aside: bool


def shown(row: Row, problem: str = "") -> Shown:
    """Returns how a row looks."""
    state, busy = State(row["state"]), is_busy(row)
    return Shown(row_html(row, problem), BUTTONS[state], not busy and state is not State.READY, busy, state is State.CORRUPT)


async def press(downloads: Downloads, entry_id: str, accepted: bool = False, set_aside: bool = False) -> AsyncIterator[Shown]:
    """Starts a download, or joins it, and yields the row until it has ended; leaving early stops nothing.

    Args: accepted: whether the licence is; set_aside: whether a damaged file may be renamed.
    """
    row = await asyncio.to_thread(downloads.row, entry_id)
    if row["licence"]["acknowledge"] and not accepted:
        yield shown(
            row, f"Read the licence first ({row['licence']['title']}); if you accept it, tick the box, and download then."
        )
        return
    try:
        await asyncio.to_thread(downloads.start, entry_id, acknowledged=accepted, set_aside=set_aside)
    except HyperSDError as error:
        yield shown(row, str(error))
        return
    async for (look,) in follow(downloads, [entry_id]):
        yield look


async def cancel(downloads: Downloads, entry_id: str) -> Shown:
    """Stops a download if one is under way, and returns its row once it has ended; what came so far is kept."""
    await asyncio.to_thread(downloads.cancel, entry_id)
    while any(row["id"] == entry_id for row in downloads.active()):
        await asyncio.sleep(POLL)
    return shown(await asyncio.to_thread(downloads.row, entry_id))


async def follow(downloads: Downloads, entry_ids: Sequence[str]) -> AsyncIterator[list[Shown | None]]:
    """Yields how these entries look, then what changes, until none of them is under way.

    Returns: one for each id; None for one that looks as before, or has gone from the catalogue.
    """
    last: dict[str, Shown] = {}

    def news(rows: dict[str, Row]) -> list[Shown | None]:
        looks = {entry_id: shown(row) for entry_id, row in rows.items() if entry_id in entry_ids}
        changed = {entry_id: look for entry_id, look in looks.items() if last.get(entry_id) != look}
        last.update(changed)
        return [changed.get(entry_id) for entry_id in entry_ids]

    while True:
        rows = {row["id"]: row for row in await asyncio.to_thread(downloads.rows)}
        if any(looks := news(rows)):
            yield looks
        busy = {entry_id for entry_id in entry_ids if entry_id in rows and is_busy(rows[entry_id])}
        if not busy:
            return
        while (under_way := {row["id"]: row for row in downloads.active() if row["id"] in busy}).keys() == busy:
            if any(looks := news(under_way)):
                yield looks
            await asyncio.sleep(POLL)
