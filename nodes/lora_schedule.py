"""A LoRA's strength from step to step, through the host's own hooks."""

from itertools import pairwise
from typing import Any

import comfy.hooks
import torch
from comfy_api.latest import io

from ..errors import ScheduleError
from ..models.lora_curve import CURVES, LIMIT, percent_between, read_strengths, strengths_of
from .lora_files import fit, lora_options, lora_path, read_file
from .schema import CATEGORY, found_as, lasting_text


def keyframes_of(model: Any, sigmas: torch.Tensor, strengths: list[float]) -> comfy.hooks.HookKeyframeGroup:
    """Returns the host's keyframes that give each step its strength; equal neighbours share one, since a change costs time.

    A step of no length has none: of those that begin at one noise level, the last goes on from there, and its strength counts.

    Args:
        model: the MODEL, which knows at what share of a run a noise level comes.
        sigmas: the noise levels [steps + 1] that will be sampled.
        strengths: one a step.
    """
    model_sampling = model.get_model_object("model_sampling")
    levels = sigmas.double().tolist()
    by_level = dict(zip(levels, strengths, strict=False))  # the end has no strength
    first, *_ = by_level.values()
    group = comfy.hooks.HookKeyframeGroup()
    group.add(comfy.hooks.HookKeyframe(strength=first, start_percent=0.0))
    for (level, before), (next_level, now) in pairwise(by_level.items()):
        if now != before:
            percent = percent_between(lambda p: float(model_sampling.percent_to_sigma(p)), level, next_level)
            group.add(comfy.hooks.HookKeyframe(strength=now, start_percent=percent))
    return group


_RANGE = {"min": -LIMIT, "max": LIMIT, "step": 0.05}
SIGMAS = io.Sigmas.Input(
    "sigmas",
    tooltip="The steps that will be sampled, of any scheduler, also with denoise below 1. Wire the same into SamplerCustom.",
)
CURVE = io.Combo.Input(
    "curve",
    options=list(CURVES),
    default="linear",
    tooltip="constant: strength_start at every step. linear and cosine go from strength_start to strength_end, cosine slowly "
    "at both ends. list: the numbers in strengths.",
)
START = io.Float.Input("strength_start", default=1.0, **_RANGE, tooltip="At the first step; the LoRA's usual strength.")
END = io.Float.Input(
    "strength_end",
    default=0.5,
    **_RANGE,
    tooltip="At the last step, for linear and cosine. Lower it when the LoRA burns fine detail.",
)
STRENGTHS = io.String.Input(
    "strengths",
    default="1, 0.8, 0.5",
    tooltip="For list: one number a step, -10 to 10, with commas between; the last one holds for the steps that are left.",
)


class HyperSDLoraSchedule(io.ComfyNode):
    """CONDITIONING that carries a LoRA whose strength follows a curve over the steps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperSDLoraSchedule",
            display_name="Hyper-SD LoRA Schedule",
            category=CATEGORY,
            **found_as("LoRA strength per step", "LoRA hook", "keyframes", "fade"),
            description="Applies a LoRA with another strength at each step. Use it instead of a LoRA loader, not after one.",
            inputs=[
                io.Model.Input("model", tooltip="The model that will be sampled, without this LoRA."),
                SIGMAS,
                io.Conditioning.Input("positive", tooltip="The prompt, as it would go into the sampler."),
                io.Conditioning.Input("negative", tooltip="The negative prompt; it needs the LoRA as well."),
                io.Combo.Input("lora_name", options=lora_options(), tooltip="The LoRA, of the model's family."),
                CURVE,
                START,
                END,
                STRENGTHS,
            ],
            outputs=[
                io.Conditioning.Output("positive_scheduled", display_name="positive"),
                io.Conditioning.Output("negative_scheduled", display_name="negative"),
            ],
        )

    @classmethod
    def execute(cls, model, sigmas, positive, negative, lora_name, curve, strength_start, strength_end, strengths):
        steps = len(sigmas) - 1
        if steps < 1:
            raise ScheduleError("sigmas holds no step; wire a scheduler with at least 1 step.")
        values = read_strengths(strengths) if curve == "list" else ()
        path = lora_path(lora_name)
        _, tensors = read_file(path, model)
        fitting = fit(model, path, tensors)
        hooks = comfy.hooks.create_hook_lora(lora=fitting.tensors, strength_model=1.0, strength_clip=0.0)
        hooks.set_keyframes_on_hooks(
            keyframes_of(model, sigmas, strengths_of(curve, steps, strength_start, strength_end, values))
        )
        scheduled = (comfy.hooks.set_hooks_for_conditioning(cond, hooks) for cond in (positive, negative))
        said = {} if fitting.match.is_whole else {"ui": lasting_text(f"{path.name}: {fitting.match}.")}
        return io.NodeOutput(*scheduled, **said)


NODES = [HyperSDLoraSchedule]
