"""The tab "Hyper-SD models": the catalogue with its downloads, and the building of checkpoints.

It uses only what gradio 3.41 and 4.40 both have. A row's buttons know their entry, so the page sends nothing but ticked boxes.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import gradio as gr
from modules import script_callbacks

from ..errors import HyperSDError
from ..models.catalog import HEADINGS
from ..models.jobs import Downloads
from . import host_models
from .checkpoint_builder import AS_IT_IS, BAKE_DTYPES, DTYPES, SUGGESTED, CheckpointBuilder
from .model_list import live, parts_of, wire_search
from .model_rows import follow

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
    "Writes a new checkpoint that draws as the checkpoint with this LoRA loaded. Both files stay as they are. A few-step LoRA "
    "that is baked in needs its own steps, sampler and CFG as before: the panel's variant auto takes them from the new file's "
    "note, which is written for every few-step LoRA that is recognised."
)


def _catalogue(downloads: Downloads, page: gr.Blocks) -> None:
    catalog, problem = downloads.catalog()
    with gr.Row():
        gr.Markdown(INTRO)
        again = gr.Button("Look again", scale=0, min_width=160)
    if problem:
        gr.Markdown(f"Your own catalogue file is left out: {problem}")
    asked = gr.Textbox("", label="Search", info="By name, method, family and steps: lightning 4, sd15 pcm", max_lines=1)
    nothing = gr.Markdown(NOTHING, visible=False)
    parts = [part for key in HEADINGS for part in parts_of(key, [entry for entry in catalog if entry.family == key])]
    views = [view for part in parts for view in part.views]
    wire_search(asked, nothing, parts)

    async def show_all() -> AsyncIterator[list[Any]]:
        async for looks in follow(downloads, [view.entry.id for view in views]):
            yield [change for view, look in zip(views, looks, strict=True) for change in view.changes(look)]

    outputs = [component for view in views for component in view.outputs]
    for view in views:
        view.wire(downloads)
    page.load(show_all, outputs=outputs, **live())
    again.click(show_all, outputs=outputs, **live())


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

    build.click(started, inputs=inputs, outputs=[said], **live())
    stop.click(builder.cancel, **live())
    page.load(options, outputs=[*lists, said], **live())
    again.click(options, outputs=[*lists, said], **live())


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
    builder = CheckpointBuilder(
        host_models.model_folders, host_models.refresh_lists, lambda: host_models.DOWNLOADS.catalog()[0]
    )
    script_callbacks.on_ui_tabs(lambda: build_tab(host_models.DOWNLOADS, builder))
