"""The list of the tab "Hyper-SD models": a family's part, the rows in it with their buttons, and the search through them."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..models.catalog import HEADINGS
from ..models.entry import Entry
from ..models.families import FAMILIES
from ..models.jobs import Downloads
from ..models.search import MORE, is_found
from .model_rows import RowAppearance, cancel, press

# Run in the page, which alone knows what a person has folded, by javascript/hyper_sd_tab.js. gradio 3.41 leaves a part as it is
# where it is told twice to be open, though the person has closed it in between.
SEARCH = "(asked) => { window.hyperSDSearch?.(asked); return [asked]; }"


def live() -> dict[str, Any]:
    """Returns the options of a handler that streams: nothing covers the row, and as many run at once as there are pages."""
    # Only gradio 4 knows a limit of its own for every handler, and lets each run once at a time.
    unlimited = {} if gr.__version__.startswith("3.") else {"concurrency_limit": None}
    return {"show_progress": "hidden", **unlimited}


@dataclass(frozen=True)
class RowView:
    """The components of an entry's row.

    Args:
        entry: of the catalogue.
        row: around all of them.
        html: what is known of it.
        start: the button that starts its download.
        cancel: the button that stops it.
        aside: the box that lets a damaged file be renamed.
        accept: the box that accepts its licence, None where nothing has to be accepted.
    """

    entry: Entry
    row: gr.Row
    html: gr.HTML
    start: gr.Button
    cancel: gr.Button
    aside: gr.Checkbox
    accept: gr.Checkbox | None

    @property
    def outputs(self) -> list[Any]:
        """The components that change."""
        return [self.html, self.start, self.cancel, self.aside]

    @staticmethod
    def changes(look: RowAppearance | None) -> list[Any]:
        """Returns the updates of `outputs` for how the row looks. None changes nothing."""
        if look is None:
            return [gr.update()] * 4
        return [
            gr.update(value=look.html),
            gr.update(value=look.button, interactive=look.can_start, visible=not look.can_cancel),
            gr.update(visible=look.can_cancel),
            gr.update(visible=look.can_set_aside),
        ]

    def wire(self, downloads: Downloads) -> None:
        """Connects the row's buttons to its own entry."""
        entry_id, asks = self.entry.id, self.accept is not None

        async def started(*ticked: bool) -> AsyncIterator[list[Any]]:
            set_aside, accepted = bool(ticked[0]), asks and bool(ticked[1])
            async for look in press(downloads, entry_id, accepted, set_aside):
                yield self.changes(look)

        async def cancelled() -> list[Any]:
            return self.changes(await cancel(downloads, entry_id))

        boxes = [self.aside, *([self.accept] if self.accept else [])]
        self.start.click(started, inputs=boxes, outputs=self.outputs, **live())
        self.cancel.click(cancelled, outputs=self.outputs, **live())


def _row(entry: Entry) -> RowView:
    with gr.Row(elem_id=f"hyper_sd_model_{entry.id}") as row:
        with gr.Column(scale=6):
            html = gr.HTML()
            accept = None
            if entry.licence.acknowledge:
                accept = gr.Checkbox(False, label=f"I have read and accept: {entry.licence.title}")
            aside = gr.Checkbox(False, label="Set the damaged file aside (it is renamed, not deleted)", visible=False)
        with gr.Column(scale=1, min_width=160):
            start = gr.Button("Download")
            stop = gr.Button("Cancel", variant="stop", visible=False)
    return RowView(entry, row, html, start, stop, aside, accept)


@dataclass(frozen=True)
class Part:
    """One part of the list that can be folded.

    Args:
        accordion: that folds it.
        views: its own rows.
        around: the rows by which it is shown or hidden: its own, and those of the part within it.
    """

    accordion: gr.Accordion
    views: list[RowView]
    around: list[RowView]


def parts_of(family: str, entries: list[Entry]) -> list[Part]:
    """Builds a family's part, and within it, below Hyper-SD's own files, the folded part of the other few-step methods.

    Args:
        family: a key of HEADINGS.
        entries: the family's; where there are none, nothing is built.
    """
    if not entries:
        return []
    is_open = family in FAMILIES and not FAMILIES[family].is_flow
    others: list[Part] = []
    name = f"hyper_sd_part_{family}"
    with gr.Accordion(HEADINGS[family], open=is_open, elem_id=name) as accordion:
        own = [_row(entry) for entry in entries if entry.recipe is None]
        if len(own) < len(entries):
            with gr.Accordion(MORE, open=False, elem_id=f"{name}_more") as fold:
                views = [_row(entry) for entry in entries if entry.recipe is not None]
            others = [Part(fold, views, views)]
    return [Part(accordion, own, [*own, *(view for part in others for view in part.views)]), *others]


def wire_search(asked: gr.Textbox, nothing: gr.Markdown, parts: list[Part]) -> None:
    """Has the list show what fits the words in a field.

    The page opens every part for it; once the field is empty again, each is as the person had it before.

    Args:
        asked: the field.
        nothing: what is shown where nothing fits.
        parts: of the list.
    """
    views = [view for part in parts for view in part.views]

    async def searched(text: str) -> list[Any]:
        found = {view.entry.id for view in views if is_found(view.entry, text)}
        rows = [gr.update(visible=view.entry.id in found) for view in views]
        folds = [gr.update(visible=any(view.entry.id in found for view in part.around)) for part in parts]
        return [*rows, *folds, gr.update(visible=not found)]

    outputs = [*(view.row for view in views), *(part.accordion for part in parts), nothing]
    script = {"_js" if gr.__version__.startswith("3.") else "js": SEARCH}
    asked.change(searched, inputs=[asked], outputs=outputs, **script, **live())
