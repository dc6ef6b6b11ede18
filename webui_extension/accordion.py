"""The panel "Hyper-SD": its controls from the settings table, a line that says what will be used, and the download button."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..disk import format_bytes
from ..errors import DownloadError, HyperSDError
from ..models.catalog import load_catalog
from ..models.lora import LoraPlan
from ..models.progress import State
from . import host, host_models, remarks, scoring
from .chosen_model import Model
from .lora_activation import Activation, loras_in
from .planning import choose, describe, run_for
from .prompt_loras import Written, keeps_own, kept_of
from .settings_table import TABLE, UNSORTED, Settings, Spec, read_settings

TITLE = "Hyper-SD"
# A checkbox has a row for itself: its sentence stands above it, so that of two neighbours the one with more lines is lower.
SHOWN = (("enabled",), ("steps", "variant"))
FOLDED = (
    ("recommended",), ("strength", "hires_strength"), ("auto_eta",), ("eta", "segments"), ("start_timestep",), ("method",),
    ("sort_by",),
)  # fmt: skip
OWN = "Your own steps, sampler and CFG are used instead"
# Run in the page: of all that is typed only whole tags reach the hidden box, and only a change of that box asks the host.
TAGS_OF = r"(prompt) => (prompt.match(/<(?:lora|lyco):[^<>]*>/g) || []).join('')"
HINT = "Switch on to see what will be used. Eta, segments and start, under More, always count for the sampler Hyper-SD TCD."


def find_lora(settings: Settings, plan: LoraPlan, written: Written | None = None) -> Activation:
    """Returns the plan's LoRA by the host's name, with the strengths to use.

    Args:
        settings: the panel's.
        plan: with a file.
        written: the LoRA of the prompt that the plan is for, None for the released file.
    Raises: DownloadError when it is not there; UnsupportedModelError for a damaged file.
    """
    listed = (written.name, written.path) if written else host_models.listed_lora(plan.entry_id)
    if listed is None:
        raise DownloadError(
            f"{plan.file} is missing. Press Download in the Hyper-SD panel, or in the tab Hyper-SD models; "
            f"or put the file into {host_models.model_folders('loras')[0]}."
        )
    strength = settings.strength or host_models.strength_of(listed[1], plan)
    return Activation(listed[0], strength, settings.hires_strength or strength)


def _component(spec: Spec, elem_id: str) -> Any:
    common = {"label": spec.label, "value": spec.default, "info": spec.info, "elem_id": elem_id}
    if spec.kind is bool:
        return gr.Checkbox(**common)
    if spec.kind is str:
        return gr.Dropdown(choices=list(spec.choices), **{**common, "value": spec.options[spec.default]})
    return gr.Slider(minimum=spec.low, maximum=spec.high, step=spec.step, **common)


def build(elem_id: Callable[[str], str], prompt: Any = None, styles: Any = None) -> list[Any]:
    """Makes the panel and returns the controls in the table's order.

    Args:
        elem_id: makes a name unique in the page.
        prompt: the tab's box of the prompt, whose LoRA the line is about; None where the host has shown none.
        styles: the tab's list of styles, which bring a LoRA into the prompt, too; None where the host has shown none.
    """
    specs, components = {spec.name: spec for spec in TABLE}, {}

    def add(rows: tuple[tuple[str, ...], ...]) -> None:
        for row in rows:
            with gr.Row():
                components.update({name: _component(specs[name], elem_id(name)) for name in row})

    with gr.Accordion(TITLE, open=False, elem_id=elem_id("panel")):
        add(SHOWN)
        line = gr.Markdown(HINT, elem_id=elem_id("line"))
        button = gr.Button("Download", visible=False, elem_id=elem_id("download"))
        with gr.Accordion("More", open=False, elem_id=elem_id("more")):
            add(FOLDED)
    controls = [components[spec.name] for spec in TABLE]
    written = [part for part in (prompt, prompt and styles) if part]
    wires = {"inputs": [*controls, *written], "outputs": [line, button], "show_progress": False}
    for control in [*controls, *([_tags_box(prompt, elem_id("tags"))] if prompt else []), *written[1:]]:
        # Not by the queue: what stands in gradio 3's when Reload UI closes it is never answered, and the host waits for that.
        control.change(look, **wires, queue=False)
    button.click(fetch, **wires)
    return controls


def _tags_box(prompt: Any, elem_id: str) -> Any:
    """Makes a hidden box that changes where the prompt's LoRA tags do, and returns it."""
    tags = gr.Textbox(visible=False, elem_id=elem_id)
    script = "_js" if gr.__version__.startswith("3.") else "js"
    prompt.change(None, inputs=[prompt], outputs=[tags], **{script: TAGS_OF})
    return tags


@dataclass(frozen=True)
class _Wanted:
    """What the page asks for: a plan where the panel is on and one is made, and what there is to say of it."""

    settings: Settings
    plan: LoraPlan | None = None
    kept: Written | None = None
    said: str = HINT

    @property
    def is_missing(self) -> bool:
        """Whether the plan's file has to be fetched."""
        return bool(self.plan and self.plan.file and not self.kept and host_models.listed_lora(self.plan.entry_id) is None)


def _wanted(values: tuple) -> _Wanted:
    settings = read_settings(values[: len(TABLE)], {})
    if not settings.enabled:
        return _Wanted(settings)
    prompt, styles = (*values[len(TABLE) :], None, None)[:2]
    loras = loras_in([host.with_styles(prompt or "", styles or [])])
    if own := keeps_own(settings, loras):
        return _Wanted(settings, said=own)
    model, kept = Model.on_page(), kept_of(settings, loras)
    plan = choose(settings, model, settings.steps, kept)
    return _Wanted(settings, plan, kept, remarks.two_at_once(settings, model, plan, loras, kept))


def look(*values: Any) -> tuple[str, Any]:
    """Returns the line under the controls, and whether the download button is seen.

    Args:
        values: of the controls in the table's order, then of the prompt's box and the list of styles where the page has them.
    """
    try:
        wanted = _wanted(values)
        sort_by = wanted.settings.sort_by
        problem = "" if sort_by == UNSORTED else scoring.problem_of(sort_by)
        text = _plan_line(wanted) if wanted.plan else wanted.said
        return f"{text}\n\n**{problem}**" if problem else text, gr.update(visible=wanted.is_missing)
    except HyperSDError as error:
        return f"**{error}**", gr.update(visible=False)


def _plan_line(wanted: _Wanted) -> str:
    """Returns what will be used, and what there is to say of it."""
    settings, plan, kept = wanted.settings, wanted.plan, wanted.kept
    if wanted.is_missing:
        size = format_bytes(load_catalog().get(plan.entry_id).approximate_size)
        return f"**{plan.file} is missing** ({size})."
    strength = find_lora(settings, plan, kept).strength if plan.file else 0.0
    text = describe(plan, run_for(settings, plan, plan.eta), kept.strength if kept else strength)
    own = "" if settings.recommended else f"{OWN}." if kept else f"{OWN}; the file follows your steps."
    return " ".join(filter(None, (text, own, wanted.said)))


def fetch(*values: Any) -> Iterator[tuple[str, Any]]:
    """Downloads the plan's file, and yields its progress and in the end what look() says."""
    try:
        wanted = _wanted(values)
        plan = wanted.plan
        if plan and plan.file and not wanted.kept:
            host_models.DOWNLOADS.start(plan.entry_id)
            for row in host_models.DOWNLOADS.follow(plan.entry_id):
                if row.is_busy:
                    amount, note = row.progress.amounts()[0], row.progress.note
                    yield f"{plan.file}: {row.state.value}, {amount}. {note}", gr.update(visible=False)
            if row.state is not State.READY:
                yield f"**{row.problem or 'The download was stopped; press again, and it goes on.'}**", gr.update(visible=True)
                return
        yield look(*values)
    except HyperSDError as error:
        yield f"**{error}**", gr.update(visible=True)
