"""The catalogue's rows as the tab shows them: words, HTML, and a row's changes while its download is under way."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from ..disk import format_bytes
from ..errors import HyperSDError
from ..models.jobs import Downloads
from ..models.progress import Row, State
from ..models.search import SIZE_UNKNOWN, names_its_method

POLL = 0.5  # seconds between two rows that a page is sent
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
READ_FIRST = "Read the licence first. If you accept it, tick the box, and download then."
UNET_HINT = "To make pictures with it here, build a full checkpoint from it below."


def progress_text(row: Row) -> str:
    """Returns how far a download is: "44 % · 120 MB of 269 MB · 11 MB/s · 14 s left"."""
    amounts = row.progress.amounts() if row.state is State.DOWNLOADING else []
    return " · ".join([f"{row.progress.percent} %", *amounts])


def problem_text(row: Row) -> str:
    """Returns what is wrong and what to do. The look at the folders tells only what is wrong."""
    if row.state is not State.CORRUPT or row.problem.endswith("."):
        return row.problem
    return (
        f"The file in your folder cannot be used: {row.problem}. Tick the box and download again: it will be renamed, not "
        "deleted."
    )


def row_html(row: Row, problem: str = "") -> str:
    """Returns a row as HTML. Every text in it is escaped.

    Fixed words stand in elements of their own, since the host's translation looks at whole texts only.

    Args:
        row: an entry's.
        problem: of the last click, empty where there is none.
    """
    entry, licence = row.entry, row.entry.licence
    size = format_bytes(entry.approximate_size) if entry.approximate_size else SIZE_UNKNOWN
    method = [] if entry.recipe is None or names_its_method(entry) else [f"<span>{escape(entry.method)}</span>"]
    facts = [
        *method,
        f"<span>{escape(size)}</span>",
        f'<span title="{escape(row.file)}">{STATES[row.state]}</span>',
        f'<a href="{escape(licence.url)}" target="_blank" rel="noreferrer" title="{escape(licence.title)}">licence</a>',
    ]
    parts = [
        f'<strong title="{escape(entry.folder)}: {escape(entry.name)}">{escape(entry.title)}</strong>',
        f"<div>{' · '.join(facts)}</div>",
    ]
    if row.is_busy or row.state is State.PARTIAL:
        value = f'max="100" value="{row.progress.percent}"'
        parts.append(f'<progress {value} aria-label="{escape(entry.title)}" style="width: 100%"></progress>')
        parts.append(f"<div>{escape(progress_text(row))}</div>")
    if row.progress.note:
        parts.append(f"<div>{escape(row.progress.note)}</div>")
    if row.state is State.READY and entry.folder == "diffusion_models":
        parts.append(f"<div>{UNET_HINT}</div>")
    problem = problem or ("" if row.is_busy else problem_text(row))
    if problem:
        parts.append(f'<div role="alert" style="color: var(--error-text-color, #b91c1c)">{escape(problem)}</div>')
    return "".join(parts)


@dataclass(frozen=True)
class RowAppearance:
    """How a row looks, and what can be done with it.

    Args:
        html: its words and its bar.
        button: the words on its button.
        can_start: whether the button starts a download.
        can_cancel: whether a download can be cancelled.
        can_set_aside: whether a damaged file can be renamed.
    """

    html: str
    button: str
    can_start: bool
    can_cancel: bool
    can_set_aside: bool


def appearance(row: Row, problem: str = "") -> RowAppearance:
    """Returns how a row looks.

    Args:
        row: an entry's.
        problem: of the last click, empty where there is none.
    """
    can_start = not row.is_busy and row.state is not State.READY
    return RowAppearance(row_html(row, problem), BUTTONS[row.state], can_start, row.is_busy, row.state is State.CORRUPT)


async def press(
    downloads: Downloads, entry_id: str, accepted: bool = False, set_aside: bool = False
) -> AsyncIterator[RowAppearance]:
    """Starts a download, or joins it, and yields how its row looks until it has ended. Leaving early stops nothing.

    Args:
        downloads: of this host.
        entry_id: of the catalogue.
        accepted: whether the person accepts the licence.
        set_aside: whether a damaged file may be renamed.
    """
    row = await asyncio.to_thread(downloads.row, entry_id)
    if row.entry.licence.acknowledge and not accepted:
        yield appearance(row, READ_FIRST)
        return
    try:
        await asyncio.to_thread(downloads.start, entry_id, acknowledged=accepted, set_aside=set_aside)
    except HyperSDError as error:
        yield appearance(row, str(error))
        return
    async for (look,) in follow(downloads, [entry_id]):
        yield look


async def cancel(downloads: Downloads, entry_id: str) -> RowAppearance:
    """Stops a download if one is under way, and returns how its row looks once it has ended. What came so far is kept."""
    await asyncio.to_thread(downloads.cancel, entry_id)
    *_, row = await asyncio.to_thread(list, downloads.follow(entry_id))
    return appearance(row)


def _next_rows(followed: list[Iterator[Row]]) -> list[Row]:
    return [row for rows in followed if (row := next(rows, None))]


async def follow(downloads: Downloads, entry_ids: Sequence[str]) -> AsyncIterator[list[RowAppearance | None]]:
    """Yields how these entries look, then what changes, until none of them is under way.

    Args:
        downloads: of this host.
        entry_ids: of the catalogue.
    Returns: one for each id, None for one that looks as before, or has gone from the catalogue.
    """
    last: dict[str, RowAppearance] = {}
    while True:
        rows = [row for row in await asyncio.to_thread(downloads.rows) if row.id in entry_ids]
        followed = [downloads.follow(row.id, pause=0) for row in rows if row.is_busy]
        while rows:
            looks = {row.id: appearance(row) for row in rows}
            changed = {entry_id: look for entry_id, look in looks.items() if last.get(entry_id) != look}
            if changed:
                yield [changed.get(entry_id) for entry_id in entry_ids]
            last |= changed
            await asyncio.sleep(POLL if followed else 0)
            rows = await asyncio.to_thread(_next_rows, followed)
        if not followed:
            return
