"""The Hyper-SD LoRA for a number of steps, and everything that goes with it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io

from ..errors import UnsupportedModelError
from ..models.families import FAMILIES, title_of
from ..models.file_plan import plan_for_embedded, plan_for_file
from ..models.inside import Inside, few_steps_inside, plan_inside
from ..models.lora import LoraPlan, effective_strength, plan, scale_note
from ..models.recipe import Recipe, labels_of
from ..models.recognition import Recognition
from ..models.sampling_plan import MAX_STEPS, starting_at
from ..samplers.schedule import NoiseSchedule
from ..samplers.tcd import sample_tcd
from ..samplers.timesteps import LAST_TIMESTEP, distinct_sigmas
from . import demo_model
from .checkpoint import checkpoint_of, loras_before
from .loaded_loras import few_step_beside, few_step_in
from .lora_files import AUTO, add_lora, family_of, known_lora, lora_options, lora_path, read_file, released_path
from .model_downloads import DOWNLOADS
from .schema import CATEGORY, found_as, lasting_text, require_choice
from .shifted_model import asked_shifted
from .unit_noise import UnitNoiseSampler

HOST_SCHEDULER = "simple"  # the host's plain scheduler, which walks a flow model's own table
LABELS = {
    "auto": AUTO, "unified": "unified", "n-step": "n-step", "cfg": "CFG-preserving", "merged": "merged checkpoint",
    "other": "other few-step LoRA",
}  # fmt: skip
BY_FILE = "by the file"
SHIFT = "timestep_shift"  # of a plan: the MODEL's patch sees to it, so the sampler must not


def choose_plan(
    model: Any, steps: int, variant: str, lora_name: str, recipe: Recipe | None = None, inside: Inside | None = None
) -> tuple[LoraPlan, Path | None]:
    """Returns the plan for a MODEL and its LoRA's file, None where the checkpoint has few steps inside.

    Args:
        model: MODEL.
        steps: model evaluations.
        variant: one of VARIANTS.
        lora_name: one of lora_options, or AUTO.
        recipe: of the method that the person named, None for the file's own.
        inside: the few steps that the checkpoint is known to have, None where there are none, or it is not known.
    Raises: ScheduleError, UnsupportedModelError saying what there is.
    """
    if lora_name != AUTO:
        chosen = _plan_for_own(model, steps, variant, known_lora(lora_name), recipe)
        return chosen, lora_path(lora_name) if chosen.file else None
    if recipe and variant != "merged":
        raise UnsupportedModelError(
            f"{recipe.method} needs its LoRA: choose the file under lora_name, or the variant {LABELS['merged']} where it is "
            "in the checkpoint."
        )
    if demo_model.is_embedded(model) and not recipe:
        return plan_for_embedded(steps, variant)
    if inside and not recipe and variant in (AUTO, "merged"):
        return plan_inside(family_of(model), steps, inside), None
    chosen = plan(family_of(model), steps, variant, recipe)
    return chosen, released_path(chosen.entry_id) if chosen.file else None


def _plan_for_own(model: Any, steps: int, variant: str, known: Recognition, recipe: Recipe | None) -> LoraPlan:
    """Returns the plan for a person's own file; on a family's relative it is that of a family of its kind, and says so."""
    family = family_of(model)
    if family in FAMILIES:
        return plan_for_file(family, steps, variant, known, recipe)
    is_flow = schedule_of(model).is_flow
    related = known.entry.family if known.entry else [key for key, other in FAMILIES.items() if other.is_flow == is_flow][-1]
    chosen = plan_for_file(related, steps, variant, known, recipe)
    reason = f"No recipe is released for {title_of(family)}, so one of {title_of(related)} is taken. {chosen.reason}"
    own = ("its own training", "your choice", "a guess")
    return replace(chosen, reason=reason, source=chosen.source if chosen.source in own else "derived")


def schedule_of(model: Any) -> NoiseSchedule:
    """Returns a MODEL's noise levels, patches included."""
    return NoiseSchedule.from_sigmas(model.get_model_object("model_sampling").sigmas.double().cpu())


def sigmas_of(model: Any, chosen: LoraPlan, denoise: float) -> torch.Tensor:
    """Returns the plan's noise levels [steps + 1], from the MODEL's own, patches included."""
    if chosen.grid != "default":
        return distinct_sigmas(schedule_of(model), chosen.timesteps(denoise))
    model_sampling = model.get_model_object("model_sampling")
    whole = comfy.samplers.calculate_sigmas(model_sampling, HOST_SCHEDULER, int(chosen.steps / denoise))
    return whole[-(chosen.steps + 1) :]


def sampler_of(chosen: LoraPlan, denoise: float) -> Any:
    """Returns the plan's SAMPLER. A new image starts from exact unit noise, also below the highest timestep."""
    if chosen.sampler != "hyper_sd_tcd":
        return comfy.samplers.sampler_object(chosen.sampler)
    is_lower = chosen.start_timestep < LAST_TIMESTEP and denoise == 1
    kind = UnitNoiseSampler if is_lower else comfy.samplers.KSAMPLER
    return kind(sample_tcd, extra_options={name: value for name, value in chosen.rule.items() if name != SHIFT})


def methods() -> dict[str, Recipe]:
    """Returns the other methods' recipes, a person's own included, by the names that people choose."""
    return labels_of(DOWNLOADS.catalog()[0].recipes, BY_FILE)


STEPS = io.Int.Input(
    "steps",
    default=4,
    min=1,
    max=MAX_STEPS,
    tooltip="Model evaluations, 1 to 16. 4 is a good start, 8 gives more detail; from 9 on CFG and negative prompts work.",
)
VARIANT = io.Combo.Input(
    "variant",
    options=list(LABELS.values()),
    default=AUTO,
    tooltip="auto: the file its authors made for that many steps; none where the checkpoint's name says that few steps are in "
    "it. unified: one file for 1 to 8 steps. n-step: a file for exactly 2, 4 or 8. CFG-preserving: for negative prompts. "
    "merged checkpoint: Hyper-SD, or the method below, is in the model already. other few-step LoRA: the one in lora_name, by "
    "its own method.",
)
STRENGTH = io.Float.Input(
    "strength",
    default=0.0,
    min=-2.0,
    max=4.0,
    step=0.05,
    tooltip="0 is auto: what the released file is meant for. Lower it (0.7 to 0.9) when pictures look burnt, or when another "
    "LoRA's style is lost.",
)
DENOISE = io.Float.Input(
    "denoise",
    default=1.0,
    min=0.01,
    max=1.0,
    step=0.01,
    optional=True,
    tooltip="1 makes a new image; lower values (0.5 to 0.8) keep more of the input image. All steps are used.",
)
START = io.Int.Input(
    "start_timestep",
    default=0,
    min=0,
    max=LAST_TIMESTEP,
    optional=True,
    tooltip="Timestep of the first step, for SD1.5 and SDXL. 0 follows the file; the authors' own is 999. Lower makes a single "
    "step cleaner, but below 700 it invents less and looks paler. Try 800 with the released unified LoRA at 1 step.",
)
OUTPUTS = [
    io.Model.Output(tooltip="With the LoRA."),
    io.Sampler.Output(tooltip="For SamplerCustom."),
    io.Sigmas.Output(tooltip="For SamplerCustom."),
    io.Float.Output("cfg", display_name="cfg", tooltip="For the cfg of SamplerCustom; 1 leaves the negative prompt out."),
    io.String.Output("chosen", display_name="chosen", tooltip="What was chosen, and why, in a line."),
]


class HyperSDLoraLoader(io.ComfyNode):
    """MODEL with the right Hyper-SD LoRA for a number of steps, and SAMPLER, SIGMAS and CFG to go with it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperSDLoraLoader",
            display_name="Hyper-SD",
            category=CATEGORY,
            **found_as("few steps", "fast", "turbo", "lightning", "LCM", "LoRA loader", "distilled"),
            description="Choose a number of steps: the file, its strength, the sampler, its steps and CFG follow.",
            inputs=[
                io.Model.Input("model", tooltip="SD1.5, SDXL, SD3 or FLUX.1-dev. Other LoRAs may come before or after."),
                STEPS,
                VARIANT,
                STRENGTH,
                io.Combo.Input(
                    "lora_name",
                    options=[AUTO, *lora_options()],
                    default=AUTO,
                    optional=True,
                    tooltip="A LoRA of your own in place of the released one. Released files, under any name, and those "
                    "trained here bring their recipe; for others set variant. auto: the released file for these steps.",
                ),
                DENOISE,
                START,
                io.Combo.Input(
                    "method",
                    options=[BY_FILE, *methods()],
                    default=BY_FILE,
                    optional=True,
                    tooltip="How another few-step LoRA, or a merged checkpoint, was distilled: it sets the sampler, the "
                    "timesteps and CFG. by the file: known files bring their own. Choose one for an unknown file or a merge.",
                ),
            ],
            outputs=OUTPUTS,
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, steps, variant, strength, lora_name=AUTO, denoise=1.0, start_timestep=0, method=BY_FILE
    ) -> io.NodeOutput:
        require_choice("variant", variant, LABELS.values())
        require_choice("method", method, (BY_FILE, *methods()))
        key = next(key for key, label in LABELS.items() if label == variant)
        inside = inside_of(cls, model)
        chosen, path = choose_plan(model, steps, key, lora_name, methods().get(method), inside)
        chosen = starting_at(chosen, start_timestep)
        if path:
            patched, text = _with_lora(model, chosen, path, strength)
        else:
            unused = "" if lora_name == AUTO else f" {lora_name} is not used."
            patched, text = model, f"{chosen}{unused}"
        text += two_at_once(cls, model, inside, is_adding=path is not None)
        patched = asked_shifted(patched, chosen.timestep_shift)
        sigmas = sigmas_of(model, chosen, denoise)
        return io.NodeOutput(patched, sampler_of(chosen, denoise), sigmas, chosen.cfg, text, ui=lasting_text(text))

    @classmethod
    def fingerprint_inputs(cls, lora_name=AUTO, **inputs) -> str:
        """Changes when the chosen file does."""
        if lora_name == AUTO:
            return ""
        path = lora_path(lora_name)
        return f"{path.stat().st_mtime_ns} {path.stat().st_size}"


def inside_of(node: type[io.ComfyNode], model: Any) -> Inside | None:
    """Returns the few steps that a running node's checkpoint has inside, None where nothing tells of any."""
    checkpoint = checkpoint_of(node)
    return checkpoint and few_steps_inside(checkpoint, family_of(model), DOWNLOADS.catalog()[0])


def two_at_once(node: type[io.ComfyNode], model: Any, inside: Inside | None, is_adding: bool) -> str:
    """Returns a sentence where a picture gets few steps twice, empty elsewhere.

    Args:
        node: that is running.
        model: MODEL, which may have a few-step LoRA already.
        inside: what its checkpoint has.
        is_adding: whether a LoRA comes on top.
    """
    loaded = few_step_in(model) or few_step_beside(model, loras_before(node))
    there = [f"{loaded} is in this model already"] if loaded else []
    there += [str(inside)] if inside else []
    if len(there) + is_adding < 2:
        return ""
    return f" Two few-step LoRAs at once often burn the picture: {', and '.join(there)}; remove one."


def _with_lora(model: Any, chosen: LoraPlan, path: Path, strength: float) -> tuple[Any, str]:
    info, tensors = read_file(path, model)
    used = strength or effective_strength(info, chosen)
    patched, match = add_lora(model, path, tensors, used)
    note = "" if strength else scale_note(info, chosen)
    text = f"{replace(chosen, file=path.name, strength=used)} {match}. {note}"
    return patched, text.strip()


NODES = [HyperSDLoraLoader]
