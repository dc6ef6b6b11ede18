"""The script "Hyper-SD" of the A1111 family: an accordion in both tabs, and what happens when an image is made."""

import logging
from typing import Any

from modules import scripts

from ..errors import HyperSDError
from ..models.lora import LoraPlan
from . import accordion, host, one_step, options, remarks, sampler, settings_table, sorting
from .chosen_model import Model
from .lora_activation import activate, later_in, loras_in
from .planning import apply, choose, inside_of, run_for
from .prompt_loras import keeps_own, kept_of
from .schedule import Run
from .settings_table import Settings, read_settings

TITLE = "Hyper-SD"
# By which the hosts call the boxes in the page.
PROMPTS, STYLES = ("txt2img_prompt", "img2img_prompt"), ("txt2img_styles", "img2img_styles")
AXES = "hyper_sd_axes"  # values of XYZ axes on the host's processing object, by the settings' names
LORA = "hyper_sd_lora"  # the Activation there
PLANNED = "hyper_sd_planned"  # the hosts' names of the LoRAs that the plan there knows of
KEYS = {*settings_table.KEYS, *sampler.KEYS, "Hyper-SD LoRA", host.PROBLEM}
_log = logging.getLogger("hyper_sd")


class HyperSDScript(scripts.Script):
    """Chooses and activates the LoRA and notes what was used. Every decision is made in planning.py."""

    prompt: Any = None  # the tab's box of the prompt, once the host has made it
    styles: Any = None  # the tab's list of styles, as prompt

    def title(self) -> str:
        """Returns the name by which the API calls it, too."""
        return TITLE

    def show(self, is_img2img: bool) -> Any:
        """Returns that it belongs in both tabs."""
        return scripts.AlwaysVisible

    def after_component(self, component: Any, **given: Any) -> None:
        """Keeps the prompt's box and the list of styles, which every host makes before it asks a script for its controls."""
        name = getattr(component, "elem_id", None)
        if name in PROMPTS:
            self.prompt = component
        elif name in STYLES:
            self.styles = component

    def ui(self, is_img2img: bool) -> list[Any]:
        """Returns the controls in the table's order."""
        controls = accordion.build(self.elem_id, self.prompt, self.styles)
        pairs = zip(settings_table.TABLE, controls, strict=True)
        self.infotext_fields = [(control, spec.pasted) for spec, control in pairs if spec.key or spec.paste]
        self.paste_field_names = sorted(settings_table.KEYS)
        return controls

    def process(self, p: Any, *values: Any) -> None:
        """Plans the image. By now its checkpoint is loaded, and nothing has looked at the steps yet."""
        for name in (LORA, PLANNED, sampler.RUN):
            setattr(p, name, None)
        sorting.begin(p, settings_table.UNSORTED)
        for key in KEYS:  # an XYZ grid's images share this dictionary
            p.extra_generation_params.pop(key, None)
        one_step.refuse_unet_only(p)
        chosen = getattr(p, AXES, {})
        if not chosen and not (values and values[0]):
            settings = _plain_settings(values)
            setattr(p, sampler.RUN, settings and _run(settings))
            sorting.begin(p, settings.sort_by if settings else settings_table.UNSORTED)
            return
        try:
            settings = read_settings(values, chosen)
            plan_image(p, settings) if settings.enabled else setattr(p, sampler.RUN, _run(settings))
            sorting.begin(p, settings.sort_by)
        except HyperSDError as error:
            host.stop(p, str(error))

    def process_batch(self, p: Any, *values: Any, **batch: Any) -> None:
        """Activates the LoRA. By now the host has taken the tags out of this batch's prompts."""
        planned = getattr(p, PLANNED, None)
        if planned is not None and not p.disable_extra_networks and (later := later_in(p, planned)):
            p.comment(f"Hyper-SD: {remarks.came_later(later)}")
        lora = getattr(p, LORA, None)
        if lora is not None:
            activate(p, lora)

    def postprocess_image_after_composite(self, p: Any, pp: Any, *values: Any) -> None:
        """Scores a picture that is whole by now. The next that the host does is to save it, with its infotext."""
        sorting.score(p, pp.image)

    def postprocess(self, p: Any, processed: Any, *values: Any) -> None:
        """Sorts what the gallery gets."""
        sorting.finish(p, processed)


def _run(settings: Settings, plan: LoraPlan | None = None) -> Run:
    return run_for(settings, plan, options.default_eta())


def _plain_settings(values: tuple) -> Settings | None:
    """Returns what counts with the panel off. Wrong values must not break another sampler's image."""
    try:
        return read_settings(values, {})
    except HyperSDError as error:
        _log.warning("%s The defaults are used.", error)
        return None


def plan_image(p: Any, settings: Settings) -> None:
    """Writes the plan into the host's processing object.

    Raises: HyperSDError saying what is missing and where to get it.
    """
    model, loras = Model.of(p.sd_model), loras_in(p.all_prompts)
    if own := keeps_own(settings, loras):
        p.comment(f"Hyper-SD: {own}")
        p.extra_generation_params[settings_table.MARK] = settings_table.VARIANTS[settings.variant]
        setattr(p, sampler.RUN, _run(settings))
        return
    kept = kept_of(settings, loras)
    plan = choose(settings, model, settings.steps if settings.recommended else p.steps, kept)
    notes = {settings_table.MARK: settings_table.VARIANTS[plan.variant]}
    if method := _noted_method(settings, model, plan):
        notes["Hyper-SD method"] = method
    if plan.file and not p.disable_extra_networks:
        lora = accordion.find_lora(settings, plan, kept)
        notes |= {"Hyper-SD LoRA": lora.name, "Hyper-SD strength": f"{lora.strength:g}"} if kept is None else {}
        if getattr(p, "enable_hr", False) and lora.hires_strength != lora.strength:
            notes["Hyper-SD hires strength"] = f"{lora.hires_strength:g}"
        setattr(p, LORA, lora)
    setattr(p, PLANNED, {lora.name for lora in loras})
    setattr(p, sampler.RUN, _run(settings, plan))
    if remarks.is_to_be_told(settings, model, plan, kept):
        p.comment(f"Hyper-SD: {plan.reason}")
    if double := "" if p.disable_extra_networks else remarks.two_at_once(settings, model, plan, loras, kept):
        p.comment(f"Hyper-SD: {double}")
    if settings.recommended:
        apply(p, plan)
    p.extra_generation_params.update(notes)
    _log.info("%s", plan)


def _noted_method(settings: Settings, model: Model, plan: LoraPlan) -> str:
    """Returns the method that a pasted infotext needs to give the picture again, "" where the file brings its own."""
    name = settings.method if settings.method != settings_table.BY_FILE else ""
    found = inside_of(model) if plan.variant == "merged" and not name else None
    if found and found.known.recipe:
        name = found.known.recipe.name
    return settings_table.methods().get(name, "")
