"""The tab "Hyper-SD models": the catalogue with its downloads, and the building of checkpoints.

It uses only what gradio 3.41 and 4.40 both have. A row's buttons know their entry, so the page sends nothing but ticked boxes.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr
from modules import script_callbacks

from ..errors import HyperSDError
from ..models.catalog import HEADINGS
from ..models.entry import Entry
from ..models.families import FAMILIES
from ..models.jobs import Downloads
from ..models.search import MORE, is_found
from . import host_models
from .checkpoint_builder import AS_IT_IS, BAKE_DTYPES, DTYPES, SUGGESTED, CheckpointBuilder
from .model_rows import RowAppearance, cancel, follow, press

TITLE, TAB_ID = "Hyper-SD models", "hyper_sd_models"
INTRO = (
    "Files go into this WebUI's own folders and are checked byte by byte. One that was stopped goes on where it stopped. "
    "Afterwards press the refresh button beside the list of checkpoints or LoRAs."
)
NOTHING = "Nothing found. Try fewer words, such as: lightning 4"
BUILD_INTRO = (
    "The SDXL one-step UNet alone makes no picture here. This joins it with the text encoders and the VAE of your SDXL "
    "checkpoint into a new full checkpoint; both files stay as they are."
)
BAKE_INTRO = (
    "Writes a new checkpoint that draws as the checkpoint with this LoRA loaded. Both files stay as they are. A baked Hyper-SD "
    "LoRA needs its own steps, sampler and CFG as before: choose the variant merged checkpoint."
)


def _live() -> dict[str, Any]:
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
        self.start.click(started, inputs=boxes, outputs=self.outputs, **_live())
        self.cancel.click(cancelled, outputs=self.outputs, **_live())


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
        is_open: whether it is open where nothing is searched.
        views: its own rows.
        around: the rows by which it is shown or hidden: its own, and those of the part within it.
    """

    accordion: gr.Accordion
    is_open: bool
    views: list[RowView]
    around: list[RowView]


def _parts(family: str, entries: list[Entry]) -> list[Part]:
    """Builds a family's part, and within it, below Hyper-SD's own files, the folded part of the other few-step methods."""
    if not entries:
        return []
    is_open = family in FAMILIES and not FAMILIES[family].is_flow
    others: list[Part] = []
    with gr.Accordion(HEADINGS[family], open=is_open) as accordion:
        own = [_row(entry) for entry in entries if entry.recipe is None]
        if len(own) < len(entries):
            with gr.Accordion(MORE, open=False) as fold:
                views = [_row(entry) for entry in entries if entry.recipe is not None]
            others = [Part(fold, False, views, views)]
    return [Part(accordion, is_open, own, [*own, *(view for part in others for view in part.views)]), *others]


def _wire_search(asked: gr.Textbox, nothing: gr.Markdown, parts: list[Part]) -> None:
    """Has the list show what fits the words in a field; a folded part opens where something in it does."""
    views = [view for part in parts for view in part.views]

    async def searched(text: str) -> list[Any]:
        found = {view.entry.id for view in views if is_found(view.entry, text)}
        rows = [gr.update(visible=view.entry.id in found) for view in views]
        is_searched = bool(text.strip())
        folds = [
            gr.update(visible=any(view.entry.id in found for view in part.around), open=is_searched or part.is_open)
            for part in parts
        ]
        return [*rows, *folds, gr.update(visible=not found)]

    outputs = [*(view.row for view in views), *(part.accordion for part in parts), nothing]
    asked.change(searched, inputs=[asked], outputs=outputs, **_live())


def _catalogue(downloads: Downloads, page: gr.Blocks) -> None:
    catalog, problem = downloads.catalog()
    with gr.Row():
        gr.Markdown(INTRO)
        again = gr.Button("Look again", scale=0, min_width=160)
    if problem:
        gr.Markdown(f"Your own catalogue file is left out: {problem}")
    asked = gr.Textbox("", label="Search", info="By name, method, family and steps: lightning 4, sd15 pcm", max_lines=1)
    nothing = gr.Markdown(NOTHING, visible=False)
    parts = [part for key in HEADINGS for part in _parts(key, [entry for entry in catalog if entry.family == key])]
    views = [view for part in parts for view in part.views]
    _wire_search(asked, nothing, parts)

    async def show_all() -> AsyncIterator[list[Any]]:
        async for looks in follow(downloads, [view.entry.id for view in views]):
            yield [change for view, look in zip(views, looks, strict=True) for change in view.changes(look)]

    outputs = [component for view in views for component in view.outputs]
    for view in views:
        view.wire(downloads)
    page.load(show_all, outputs=outputs, **_live())
    again.click(show_all, outputs=outputs, **_live())


def _builder(builder: CheckpointBuilder, page: gr.Blocks) -> None:
    with gr.Accordion("Build a full checkpoint from the SDXL one-step UNet", open=False):
        gr.Markdown(BUILD_INTRO)
        with gr.Row():
            unet = gr.Dropdown([], label="UNet", info="A file with only an SDXL UNet.")
            base = gr.Dropdown([], label="SDXL checkpoint", info="Gives its text encoders and its VAE.")
        with gr.Row():
            name = gr.Textbox(SUGGESTED, label="Name of the new checkpoint", max_lines=1)
            dtype = gr.Radio(list(DTYPES), value="fp16", label="Precision", info="fp16: 6.9 GB. Others only if you need them.")
        lists = {unet: builder.unets, base: builder.bases}
        _work(builder, page, builder.start, [unet, base, name, dtype], lists)


def _baker(builder: CheckpointBuilder, page: gr.Blocks) -> None:
    with gr.Accordion("Bake a LoRA into a checkpoint", open=False):
        gr.Markdown(BAKE_INTRO)
        with gr.Row():
            base = gr.Dropdown([], label="Checkpoint to bake into", info="SD1.5 or SDXL.")
            lora = gr.Dropdown([], label="LoRA to bake", info="A plain one, made for the same family.")
        with gr.Row():
            common = {"minimum": -2, "maximum": 2, "step": 0.05}
            strength = gr.Slider(
                value=1, label="Strength of the LoRA", info="As in a LoRA tag. Below 0: takes it away.", **common
            )
            text = gr.Slider(value=1, label="Strength in the text encoders", info="Usually the same.", **common)
        with gr.Row():
            name = gr.Textbox("", label="Name of the new checkpoint", info="Empty: the names of both files.", max_lines=1)
            dtype = gr.Radio(list(BAKE_DTYPES), value=AS_IT_IS, label="Precision", info="Others only if you need them.")
        lists = {base: builder.checkpoints, lora: builder.loras}
        _work(builder, page, builder.bake, [base, lora, strength, text, name, dtype], lists)


def _work(
    builder: CheckpointBuilder,
    page: gr.Blocks,
    start: Callable[..., None],
    inputs: list[Any],
    lists: dict[Any, Callable[[], list[str]]],
) -> None:
    """Adds the buttons and the line of a build, and fills its lists.

    Args:
        builder: of this host.
        page: which fills the lists when it loads.
        start: the builder's, called with the inputs' values.
        inputs: the components whose values it takes.
        lists: those of them that offer files -> what returns the files.
    """
    with gr.Row():
        build = gr.Button("Build checkpoint", variant="primary")
        stop = gr.Button("Cancel", variant="stop")
        again = gr.Button("Look again")
    said = gr.Textbox("", label="Progress", interactive=False)

    async def options() -> AsyncIterator[list[Any]]:
        found = await asyncio.gather(*(asyncio.to_thread(names) for names in lists.values()))
        updates = [gr.update(choices=names, value=names[0] if names else None) for names in found]
        async for text in builder.follow():
            yield [*updates, text]
            updates = [gr.update()] * len(lists)

    async def started(*chosen: Any) -> AsyncIterator[str]:
        try:
            await asyncio.to_thread(start, *map(str, chosen))
        except HyperSDError as error:
            yield str(error)
            return
        async for text in builder.follow():
            yield text

    build.click(started, inputs=inputs, outputs=[said], **_live())
    stop.click(builder.cancel, **_live())
    page.load(options, outputs=[*lists, said], **_live())
    again.click(options, outputs=[*lists, said], **_live())


def build_tab(downloads: Downloads, builder: CheckpointBuilder) -> list[tuple[gr.Blocks, str, str]]:
    """Returns the tab as the host takes it: its blocks, title and id.

    Args:
        downloads: of this host.
        builder: makes checkpoints.
    """
    with gr.Blocks(analytics_enabled=False) as page:
        _catalogue(downloads, page)
        _builder(builder, page)
        _baker(builder, page)
    return [(page, TITLE, TAB_ID)]


def register() -> None:
    """Adds the tab when the host builds its page. Its button Reload UI forgets earlier callbacks."""
    builder = CheckpointBuilder(host_models.model_folders, host_models.refresh_lists)
    script_callbacks.on_ui_tabs(lambda: build_tab(host_models.DOWNLOADS, builder))
